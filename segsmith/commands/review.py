"""Commands for the reviewer: `step` and `why`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segsmith.commands.console import (
    app,
    busy,
    command_line,
    out,
    parts_of_this_call,
    print_json,
    quiet_libraries,
    screen,
)
from segsmith.commands.options import Address, AsJson, Engine, Lock, RunArgument, UnitTimeout, Workers
from segsmith.commands.summary import print_how_to_continue, print_summary
from segsmith.terminal_text import shown

if TYPE_CHECKING:
    from segsmith.engine.options import EngineOptions


@app.command()
def step(
    run: Annotated[Path, typer.Argument(help="a run folder, stopped or finished")],
    answers: Annotated[
        Path | None, typer.Option(help="read decisions from this file instead of asking; see docs/step.md")
    ] = None,
    lock: Lock = "auto",
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    unit_timeout: UnitTimeout = None,
) -> None:
    """Review the prompts, verdicts, labels and masks of a run, and overrule the agents where you like.

    A run that is not finished then continues, and pauses for you.
    """
    quiet_libraries()
    with busy("loading"):
        from segsmith.engine.options import engine_options
        from segsmith.workflows.reviewing import terminal_reviewer
        from segsmith.workflows.step import catch_up, is_finished

    where = engine_options(engine, address, workers, unit_timeout)
    if answers is not None:
        _take(run, answers)
    elif is_finished(run):
        _look_back(run, where)
    elif catch_up(run, terminal_reviewer(out)).stopped:
        print_how_to_continue(run)
    else:
        _build(run, where)


@app.command()
def why(
    run: RunArgument,
    image_id: Annotated[str, typer.Argument(help="the id of an image, or the beginning of it")],
    as_json: AsJson = False,
) -> None:
    """Show the history of one image: prompt and ancestors, seed, scores, verdict, labels, mask, your decisions."""
    from segsmith.review.cards import sections
    from segsmith.workflows.run import open_run

    story = open_run(run).why(image_id)
    if as_json:
        print_json(story)
        return
    out.print(f"[b]{story.id}[/b]  {shown(story.class_name)}  {shown(str(story.path))}", soft_wrap=True)
    out.print(sections({title: list(lines) for title, lines in story.sections.items()}))
    for line in story.models:
        out.print(f"[dim]{shown(line)}[/dim]", soft_wrap=True)


def _build(run: Path, engine: EngineOptions) -> None:
    """Continue the run, pausing for the reviewer."""
    from segsmith.workflows.build import build
    from segsmith.workflows.step import settings_of

    print_summary(
        build(
            (),
            run,
            config=settings_of(run),
            step=True,
            engine=engine,
            screen=screen(),
            parts=parts_of_this_call.get(),
            command=command_line(),
        )
    )


def _take(run: Path, answers: Path) -> None:
    from segsmith.workflows.step import take_decisions

    review = take_decisions(run, answers)
    out.print("1 decision recorded" if review.decisions == 1 else f"{review.decisions} decisions recorded")
    if not review.finished:
        print_how_to_continue(run)
    elif review.changed:
        out.print(f"they change the dataset; update it with: {_rebuild(run)}", soft_wrap=True)
    else:
        out.print("they change nothing in the dataset")


def _look_back(run: Path, engine: EngineOptions) -> None:
    """Review a finished run, then offer to update its dataset."""
    from segsmith.workflows.reviewing import terminal_reviewer
    from segsmith.workflows.step import look_back, unseen

    counts = ", ".join(f"{n} {kind}s" for kind, n in unseen(run).items())
    out.print(f"this run is finished; not reviewed yet: {counts}")
    review = look_back(run, terminal_reviewer(out))
    if not review.changed:
        out.print("nothing in the dataset changes")
    elif _yes("your decisions change the dataset; update it now? [Y/n] "):
        _build(run, engine)
    else:
        out.print(f"update it with: {_rebuild(run)}", soft_wrap=True)


def _yes(question: str) -> bool:
    """Whether the answer is not no. Where nobody can answer, it is no."""
    from segsmith.review.session import read_line

    try:
        return not read_line(question, "").strip().lower().startswith("n")
    except EOFError:
        return False


def _rebuild(run: Path) -> str:
    """The command that brings a finished run up to date."""
    command = ["segsmith", "build", "--from", str(run / "run.toml"), "--out", str(run)]
    return shown(shlex.join(command))
