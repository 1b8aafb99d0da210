"""Commands of a person's own decisions: `step` and `why`."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segsmith.commands.console import app, out, quiet_libraries
from segsmith.errors import SegsmithError
from segsmith.terminal_text import shown

if TYPE_CHECKING:
    from segsmith.graph.context import RunContext

FINISHED_KINDS = ("verdict", "label", "mask")
"""What a finished run still asks about; its prompts are drawn already."""


@app.command()
def step(
    run: Annotated[Path, typer.Argument(help="a run folder, stopped or finished")],
    answers: Annotated[
        Path | None, typer.Option(help="take decisions from this file instead of asking; see docs/step.md")
    ] = None,
) -> None:
    """Go through prompts, verdicts, labels and masks of a run, and decide otherwise where you like.

    A run that is not finished goes on from where it stopped, pausing for you.
    """
    quiet_libraries()
    config = _config(run)
    if answers is not None:
        _take(run, answers)
    elif _finished(run):
        _look_back(run, config)
    elif _catch_up(run):
        from segsmith.commands.build import run_build

        run_build(config, run, step=True)


@app.command()
def why(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    image_id: Annotated[str, typer.Argument(help="an image's id, or the beginning of it")],
) -> None:
    """Tell one image's whole life: prompt and ancestors, seed, scores, verdict, labels, mask, your decisions."""
    from segsmith.memory.ledger import Ledger
    from segsmith.memory.run_folder import RunFolder
    from segsmith.review.cards import life
    from segsmith.review.decisions import find_id
    from segsmith.review.facts import RunFacts

    config, folder = _config(run), RunFolder(run)
    ledger = Ledger(folder.ledger)
    try:
        facts = RunFacts(ledger, config.classes, config.wanted, config.images.size)
        found = find_id(list(facts.images), image_id)
        out.print(
            f"[b]{found}[/b]  {shown(facts.target(found))}  {shown(str(folder.image(found)))}",
            soft_wrap=True,
        )
        out.print(life(facts, found))
        for line in facts.models():
            out.print(f"[dim]{shown(line)}[/dim]", soft_wrap=True)
    finally:
        ledger.close()


def converse(deps: RunContext, kind: Any, subjects: list[str]) -> bool:
    """Hold the conversation of one pause; False when the person wants to stop here."""
    from segsmith.review.session import Conversation, Quit, read_line

    try:
        Conversation(deps, out, read_line).hold(kind, subjects)
    except Quit:
        return False
    return True


def _config(run: Path) -> Any:
    from segsmith.memory.run_config import read_record
    from segsmith.memory.run_folder import RunFolder

    folder = RunFolder(run)
    if not folder.config.exists():
        raise SegsmithError(f"{run} is not a run folder (no run.toml).", "Start one with `segsmith build`.")
    return read_record(folder.config).asked


def _finished(run: Path) -> bool:
    from segsmith.memory.ledger import Ledger
    from segsmith.memory.run_folder import RunFolder

    ledger = Ledger(RunFolder(run).ledger)
    try:
        return ledger.finished_at is not None
    finally:
        ledger.close()


def _held(run: Path, stack: ExitStack) -> RunContext:
    """The run's parts, with its folder held, until the stack closes."""
    from segsmith.graph.context import RunContext
    from segsmith.memory.run_folder import RunFolder

    folder = RunFolder(run)
    stack.enter_context(folder.held())
    deps = RunContext(_config(run), folder)
    stack.callback(deps.close)
    return deps


def _catch_up(run: Path) -> bool:
    """Ask about what waits already, before any model is loaded; False when the person wants to stop here."""
    from segsmith.review.decisions import KINDS, pending

    with ExitStack() as stack:
        deps = _held(run, stack)
        for kind in KINDS:
            waiting = pending(deps.ledger, kind)
            if waiting and not converse(deps, kind, waiting):
                out.print(stopped_here(run), soft_wrap=True)
                return False
    return True


def stopped_here(run: Path) -> str:
    """What is said when a person leaves a conversation."""
    return f"stopped here; go on with: {shown(shlex.join(['segsmith', 'step', str(run)]))}"


def _take(run: Path, answers: Path) -> None:
    from segsmith.review.decisions import record, stale
    from segsmith.review.decisions_file import read_answers

    with ExitStack() as stack:
        deps = _held(run, stack)
        rows = read_answers(deps, answers)
        for row in rows:
            record(deps, row)
        finished, changed = deps.ledger.finished_at is not None, stale(deps.ledger)
    out.print("1 decision is in the ledger" if len(rows) == 1 else f"{len(rows)} decisions are in the ledger")
    if not finished:
        out.print(f"go on with: {shown(shlex.join(['segsmith', 'step', str(run)]))}", soft_wrap=True)
    elif changed:
        out.print(f"they change the dataset; make it again with: {_again(run)}", soft_wrap=True)
    else:
        out.print("they change nothing in the dataset")


def _look_back(run: Path, config: Any) -> None:
    """Go through what a finished run decided and nobody looked at; then, if asked, make the dataset again."""
    from segsmith.review.decisions import autos, pending, set_auto, stale

    with ExitStack() as stack:
        deps = _held(run, stack)
        if autos(deps.ledger):  # who asks to look back wants to be asked
            set_auto(deps.ledger, None)
            out.print("auto is off again: you are asked about everything you have not seen", style="dim")
        todo = {kind: pending(deps.ledger, kind) for kind in FINISHED_KINDS}  # type: ignore[arg-type]
        counts = ", ".join(f"{len(ids)} {kind}s" for kind, ids in todo.items())
        out.print(f"this run is finished; not looked at yet: {counts}")
        for kind, ids in todo.items():
            if ids and not converse(deps, kind, ids):
                break
        changed = stale(deps.ledger)
    if not changed:
        out.print("nothing in the dataset changes")
    elif _yes("your decisions change the dataset; make it again now? [Y/n] "):
        from segsmith.commands.build import run_build

        run_build(config, run, step=True)
    else:
        out.print(f"make it again with: {_again(run)}", soft_wrap=True)


def _yes(question: str) -> bool:
    """Is the answer not no? Where nobody can answer, it is no."""
    from segsmith.review.session import read_line

    try:
        return not read_line(question, "").strip().lower().startswith("n")
    except EOFError:
        return False


def _again(run: Path) -> str:
    """The command that takes a finished run up where decisions changed it."""
    command = ["segsmith", "build", "--from", str(run / "run.toml"), "--out", str(run)]
    return shown(shlex.join(command))
