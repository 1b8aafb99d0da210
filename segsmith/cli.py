"""The `segsmith` command: the only file that prints or exits. Torch is imported inside commands alone."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segsmith.errors import SegsmithError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Forge a labelled segmentation dataset from a class list, and train a segmenter on it.",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


@app.command()
def build(
    classes: Annotated[str, typer.Option(help="class names, separated by commas: cat,dog,bus")] = "",
    out_dir: Annotated[
        Path, typer.Option("--out", help="run folder; the same folder goes on where it stopped")
    ] = Path("runs/run"),
    per_class: Annotated[int | None, typer.Option(help="accepted images wanted of each class")] = None,
    preset: Annotated[
        str | None, typer.Option(help="which models to use; sim needs nothing but this install")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; flags win over it")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="any setting, e.g. --set judge.top_k=3")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="another seed gives other prompts and pictures")] = None,
    memory: Annotated[
        Path | None, typer.Option(help="prompt memory shared by runs; else the run's own")
    ] = None,
    max_images: Annotated[int | None, typer.Option(help="draw at most so many images")] = None,
) -> None:
    """Write prompts, draw, judge, relabel, segment, export, train and evaluate.

    The same command again goes on where it stopped, or says that it is done.
    """
    from segsmith.config import load_config
    from segsmith.tools.simulator import check_drawable

    flags: dict[str, Any] = _settings(set_ or [])
    names = tuple(classes.split(",")) if classes else ()
    given = {"classes": names or None, "per_class": per_class, "seed": seed}
    flags |= {key: value for key, value in given.items() if value is not None}
    if memory is not None:
        flags["memory"] = str(memory)
    if max_images is not None:
        flags.setdefault("budget", {})["max_images"] = max_images
    settings = load_config(preset=preset or "sim", file=config, flags=flags)
    if not settings.classes:
        raise SegsmithError("No classes are named.", "Type --classes cat,dog,bus")
    check_drawable(settings.classes)
    if preset is None:
        out.print("preset [b]sim[/b]: no GPU model or model hub is set up, so a simulator draws the pictures")
    _quiet_libraries()
    _run(settings, out_dir)


def _run(settings: Any, out_dir: Path) -> None:
    from segsmith.graph.run import build_run
    from segsmith.progress import BuildProgress

    command = shlex.join(["segsmith", *sys.argv[1:]])
    with BuildProgress(out, settings.classes, settings.per_class) as progress:
        end = None
        for event in build_run(settings, out_dir, command):
            progress.show(event)
            if event["kind"] in ("end", "already_done"):
                end = event
    if end is not None:
        _summary(end, settings)


def _summary(end: dict[str, Any], settings: Any) -> None:
    run, evaluation, spent = end["run"], end["evaluation"], end["summary"]
    if end["kind"] == "already_done":
        out.print(f"{escape(str(run.root))} is done. Nothing was left to do.")
    table = Table(box=None, pad_edge=False)
    for heading in ("class", "accepted", "drawn", "yield", "IoU, held out", "IoU, real world"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name in settings.classes:
        tally = end["tallies"].get(name, {})
        accepted, judged = tally.get("accepted", 0), tally.get("judged", 0)
        table.add_row(
            escape(name),
            f"{accepted}/{settings.per_class}",
            str(tally.get("drawn", 0)),
            f"{accepted / judged:.0%}" if judged else "-",
            *(_iou(evaluation, world, name) for world in ("synthetic_val", "real")),
        )
    out.print(table)
    for world, words in (
        ("synthetic_val", "held-out synthetic images"),
        ("real", "the real-style test world"),
    ):
        if world in evaluation:
            out.print(f"mIoU on {words}: [b]{evaluation[world]['miou']:.3f}[/b]")
    if end["accepted"]:
        out.print(f"uncertain pixels (255) in the masks: {end['ignore_share']:.1%}")
    minutes, memory = spent.get("wall_seconds", 0) / 60, spent.get("peak_memory_mb", 0) / 1024
    out.print(
        f"{end['drawn']} images drawn, {end['accepted']} accepted, {minutes:.1f} min, peak {memory:.1f} GiB"
    )
    if end["missing"]:
        short = ", ".join(f"{escape(c)} {n}" for c, n in end["missing"].items())
        words = {
            "stalled": "no accepted image in several rounds",
            "budget_spent": "the budget is spent",
            "nothing_accepted": "not one image was accepted",
        }[end["reason"]]
        out.print(f"[yellow]Missing, because {words}: {short}[/yellow]")
    for title, path in (
        ("report", run.report),
        ("dataset", run.voc),
        ("segmenter", run.checkpoints / "segmenter.safetensors"),
    ):
        if path.exists():
            out.print(f"{title:10}{escape(str(path))}", soft_wrap=True)


def _iou(evaluation: dict[str, Any], world: str, name: str) -> str:
    value = evaluation.get(world, {}).get("iou", {}).get(name)
    return "-" if value is None else f"{value:.3f}"


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="a segmenter.safetensors of a run, or its folder")],
    dataset: Annotated[Path, typer.Option(help="a dataset in PASCAL VOC's layout")],
    split: Annotated[str, typer.Option(help="a file of ImageSets/Segmentation")] = "val",
) -> None:
    """Intersection over union of a trained segmenter on a labelled dataset, class by class."""
    _quiet_libraries()
    from segsmith.segmentation.trainer import evaluate as evaluate_checkpoint

    score = evaluate_checkpoint(checkpoint, dataset, split)
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    table.add_column("IoU", justify="right")
    for name, iou in score.iou_per_class.items():
        table.add_row(escape(name), "absent" if iou != iou else f"{iou:.3f}")
    out.print(table)
    out.print(f"mIoU [b]{score.miou:.3f}[/b]   pixel accuracy {score.pixel_accuracy:.3f}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="a run folder")]) -> None:
    """Write report.html of a run again, whatever state it is in."""
    from segsmith.report.build import build_report

    _write_of_run(run, build_report)


@app.command()
def gallery(run: Annotated[Path, typer.Argument(help="a run folder")]) -> None:
    """Write gallery.png: the best pictures of each class above their masks."""
    from segsmith.report.contact_sheet import write_contact_sheet

    _write_of_run(run, write_contact_sheet)


def _write_of_run(run: Path, write: Callable[[Any, Any, Any], Path]) -> None:
    """Let `write` make its file from a run's folder, ledger and config, and print where it lies."""
    from segsmith.graph.deps import opened

    deps = opened(str(run))
    path = write(deps.run, deps.ledger, deps.config)
    deps.close()
    out.print(escape(str(path)), soft_wrap=True)


@app.command()
def nouns() -> None:
    """List every class the simulator can draw."""
    from segsmith.world.nouns import NOUNS

    out.print(", ".join(sorted(NOUNS)))


@app.command()
def diagram() -> None:
    """Print the agents' graph as Mermaid."""
    from segsmith.graph.diagram import mermaid

    typer.echo(mermaid())


def _settings(pairs: list[str]) -> dict[str, Any]:
    """``["judge.top_k=3"]`` as a nested mapping; values are TOML where they parse as such, else text."""
    import tomllib

    tree: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key:
            raise SegsmithError(f"--set {pair!r} is not KEY=VALUE.", "Type e.g. --set judge.top_k=3")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        node = tree
        *sections, last = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree


def _quiet_libraries() -> None:
    """Nothing of a run phones home, and libraries' warnings do not break the progress display."""
    os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import warnings

    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)


def main() -> None:
    """Run the command; a `SegsmithError` becomes one line and exit code 2."""
    try:
        app(standalone_mode=True)
    except SegsmithError as error:
        err.print(f"[red]segsmith:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("stopped; the same command goes on from here")
        sys.exit(130)


if __name__ == "__main__":
    main()
