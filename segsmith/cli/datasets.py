"""Commands on datasets: `export`, `validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from segsmith.cli.console import app, out, quiet_libraries

SHOWN = 50
"""Problems printed; the rest is counted."""


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    form: Annotated[
        str, typer.Option("--format", help="voc, coco, yolo, cvat, webdataset or hf (Hugging Face)")
    ] = "voc",
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="else dataset/FORMAT in the run folder")
    ] = None,
) -> None:
    """Write a run's dataset in a format that other tools read."""
    quiet_libraries()
    from segsmith.exports.export import export_dataset
    from segsmith.graph.deps import opened

    deps = opened(str(run))
    try:
        with deps.run.held():
            summary = export_dataset(deps.run, deps.ledger, deps.config, form, out_dir)
    finally:
        deps.close()
    splits = ", ".join(f"{name} {n}" for name, n in summary.splits.items())
    state = "" if summary.written else " (was there already)"
    out.print(f"{summary.images} images: {splits}{state}")
    out.print(escape(str(summary.folder)), soft_wrap=True)
