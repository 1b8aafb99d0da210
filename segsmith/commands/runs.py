"""Commands on what a run left: `evaluate`, `report`, `gallery`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from segsmith.commands.console import app, err, out, quiet_libraries
from segsmith.terminal_text import shown


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="a segmenter.safetensors of a run, or its folder")],
    dataset: Annotated[Path, typer.Option(help="VOC, COCO, Ultralytics, CVAT or Hugging Face folder")],
    split: Annotated[str, typer.Option(help="which of its splits")] = "val",
) -> None:
    """Intersection over union of a trained segmenter on a labelled dataset, class by class.

    Classes are matched by name; what the segmenter does not know is background.
    """
    quiet_libraries()
    from segsmith.datasets.imports import ImportedSplit
    from segsmith.segmentation.inference import evaluate_on

    def open_split(classes: tuple[str, ...]) -> ImportedSplit:
        data = ImportedSplit(dataset, split, classes)
        for problem in data.source.skipped:
            err.print(f"[yellow]skipped[/yellow] {shown(str(problem))}", soft_wrap=True)
        if data.ignored_classes:
            out.print(f"counted as background: {shown(', '.join(data.ignored_classes))}", soft_wrap=True)
        return data

    score = evaluate_on(checkpoint, open_split)
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    table.add_column("IoU", justify="right")
    for name, iou in score.iou_per_class.items():
        table.add_row(shown(name), "absent" if iou != iou else f"{iou:.3f}")
    out.print(table)
    out.print(f"mIoU [b]{score.miou:.3f}[/b]   pixel accuracy {score.pixel_accuracy:.3f}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    open_: Annotated[bool, typer.Option("--open", help="show it in the web browser")] = False,
) -> None:
    """Write report.html of a run again, whatever state it is in."""
    import webbrowser

    from segsmith.report.report import build_report

    path = _write_of_run(run, build_report)
    if open_ and not webbrowser.open(path.resolve().as_uri()):
        err.print("no web browser was found; open the file above in one")


@app.command()
def gallery(run: Annotated[Path, typer.Argument(help="a run folder")]) -> None:
    """Write gallery.png: the best pictures of each class above their masks."""
    from segsmith.report.gallery import write_gallery

    _write_of_run(run, write_gallery)


def _write_of_run(run: Path, write: Callable[[Any, Any, Any], Path]) -> Path:
    """Let `write` make its file from a run's folder, ledger and config, and say where it lies."""
    from segsmith.graph.context import RunContext

    deps = RunContext.open(run)
    try:
        path = write(deps.run, deps.ledger, deps.config)
    finally:
        deps.close()
    out.print(shown(str(path)), soft_wrap=True)
    return path
