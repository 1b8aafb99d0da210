"""`segsmith build`: the whole line, its progress and its closing summary."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from segsmith.commands.console import app, out, parts_of_this_call, quiet_libraries
from segsmith.commands.options import (
    ConfigFile,
    MaxHours,
    MaxImages,
    MaxUsd,
    Memory,
    Offline,
    PresetChoice,
    Seed,
    Step,
    flags_of,
)
from segsmith.errors import SegsmithError
from segsmith.terminal_text import shown


@app.command()
def build(
    classes: Annotated[str, typer.Option(help="class names, separated by commas: cat,dog,bus")] = "",
    out_dir: Annotated[
        Path, typer.Option("--out", help="run folder; the same folder goes on where it stopped")
    ] = Path("runs/run"),
    per_class: Annotated[int | None, typer.Option(help="accepted images wanted of each class")] = None,
    preset: PresetChoice = None,
    config: ConfigFile = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="any setting, e.g. --set judge.top_k=3")
    ] = None,
    seed: Seed = None,
    memory: Memory = None,
    max_images: MaxImages = None,
    offline: Offline = False,
    max_hours: MaxHours = None,
    max_usd: MaxUsd = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="run.toml of another run: build the same again in --out")
    ] = None,
    step: Step = False,
) -> None:
    """Write prompts, draw, judge, relabel, segment, export, train and evaluate.

    The same command again goes on where it stopped, or says that it is done.
    """
    from segsmith.commands.models import chosen_preset, pull_missing
    from segsmith.config import load_config, merged_config
    from segsmith.memory.run_config import installed_versions, read_record

    names = tuple(classes.split(",")) if classes else None
    flags = flags_of(
        set_,
        {"classes": names, "per_class": per_class, "seed": seed},
        memory=memory,
        offline=offline,
        caps={"max_images": max_images, "max_hours": max_hours, "max_usd": max_usd},
    )
    why = ""
    if from_ is not None:
        if preset or config:
            raise SegsmithError("--from brings all settings.", "Leave --preset and --config out.")
        record = read_record(from_)
        other = [n for n, v in installed_versions().items() if record.versions.get(n, v) != v]
        if other:
            out.print(
                f"[yellow]other versions than then, so pictures may differ: {', '.join(other)}[/yellow]"
            )
        settings = merged_config(record.config, flags, str(from_))
    else:
        preset, why = chosen_preset(preset or "auto", offline, out_dir)
        settings = load_config(preset=preset, file=config, flags=flags)
    if not settings.classes:
        raise SegsmithError("No classes are named.", "Type --classes cat,dog,bus")
    if settings.images.backend == "simulator":
        from segsmith.tools.images.simulator import check_drawable, untaught

        check_drawable(settings.classes)
        if settings.judge.clip == "mini" and (strange := untaught(settings.classes)):
            unknown = shown(", ".join(strange))
            out.print(
                f"[yellow]The mini CLIP was never taught {unknown}: expect a poor yield there.[/yellow]"
            )
    if why:
        out.print(f"preset [b]{preset}[/b]: {shown(why)}", soft_wrap=True)
    quiet_libraries()
    pull_missing(settings)
    run_build(settings, out_dir, step=step)


def run_build(
    settings: Any, out_dir: Path, *, step: bool = False, prepare: Callable[[], object] = lambda: None
) -> None:
    """Build in `out_dir` with live progress and a closing summary; with `step`, ask at each pause."""
    from segsmith.commands.review import converse, stopped_here
    from segsmith.workflows.build import build_run
    from segsmith.workflows.progress import BuildProgress

    command = shlex.join(["segsmith", *sys.argv[1:]])
    with BuildProgress(out, settings.wanted) as progress:
        end = None
        parts = parts_of_this_call.get()
        events = build_run(settings, out_dir, command, step=step, prepare=prepare, parts=parts)
        for event in events:
            if event["kind"] == "pause":
                progress.hide()
                if not converse(event["deps"], event["review"], event["subjects"]):
                    events.close()
                    out.print(stopped_here(out_dir), soft_wrap=True)
                    break
                progress.unhide()
                continue
            progress.show(event)
            if event["kind"] in ("end", "already_done"):
                end = event
    if end is not None:
        _summary(end, settings)
        if end["kind"] == "end":
            _keep_figures(end["run"], settings)


def _keep_figures(run: Any, settings: Any) -> None:
    """What this run took is what `plan` says of the next one."""
    from segsmith.memory.ledger import Ledger
    from segsmith.workflows.estimate import measure, remember

    ledger = Ledger(run.ledger)
    remember(settings, measure(ledger, run, settings))
    ledger.close()


def _summary(end: dict[str, Any], settings: Any) -> None:
    from segsmith.types import ClassTally

    run, evaluation, spent = end["run"], end["evaluation"], end["summary"]
    held_out = "real_val" if "real_val" in evaluation else "synthetic_val"
    if end["kind"] == "already_done":
        out.print(f"{shown(str(run.root))} is done. Nothing was left to do.")
    table = Table(box=None, pad_edge=False)
    for heading in ("class", "accepted", "drawn", "yield", "IoU, held out", "IoU, real world"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name in settings.classes:
        tally = end["tallies"].get(name, ClassTally())
        accepted, judged = tally.accepted, tally.judged
        table.add_row(
            shown(name),
            f"{accepted}/{settings.wanted[name]}",
            str(tally.drawn),
            f"{accepted / judged:.0%}" if judged else "-",
            *(_iou(evaluation, world, name) for world in (held_out, "test_set")),
        )
    out.print(table)
    for world, words in (
        ("synthetic_val", "held-out synthetic images"),
        ("real_val", "the real images of split val"),
        ("test_set", "the real-style test world"),
    ):
        if world in evaluation:
            out.print(f"mIoU on {words}: [b]{evaluation[world].miou:.3f}[/b]")
    if end["accepted"]:
        out.print(f"uncertain pixels (255) in the masks: {end['ignore_share']:.1%}")
    minutes, memory = spent.wall_seconds / 60, spent.peak_memory_mb / 1024
    out.print(
        f"{end['drawn']} images drawn, {end['accepted']} accepted, {minutes:.1f} min, peak {memory:.1f} GiB"
    )
    if end["missing"]:
        short = ", ".join(f"{shown(c)} {n}" for c, n in end["missing"].items())
        words = {
            "stalled": "no accepted image in several rounds",
            "budget_spent": f"the cap {end['cap']} is reached" if end["cap"] else "the budget is spent",
            "nothing_accepted": "not one image was accepted",
        }[end["reason"]]
        out.print(f"[yellow]Missing, because {words}: {short}[/yellow]")
    for title, path in (
        ("report", run.report),
        ("dataset", run.voc),
        ("segmenter", run.checkpoints / "segmenter.safetensors"),
    ):
        if path.exists():
            out.print(f"{title:10}{shown(str(path))}", soft_wrap=True)


def _iou(evaluation: dict[str, Any], world: str, name: str) -> str:
    value = evaluation[world].iou.get(name) if world in evaluation else None
    return "-" if value is None else f"{value:.3f}"
