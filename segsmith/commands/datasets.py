"""Commands on datasets: `export`, `validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segsmith.commands.console import app, out, quiet_libraries
from segsmith.terminal_text import shown

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
    from segsmith.datasets.export import export_dataset
    from segsmith.graph.context import RunContext

    deps = RunContext.open(run)
    try:
        with deps.run.held():
            summary = export_dataset(deps.run, deps.ledger, deps.config, form, out_dir)
    finally:
        deps.close()
    splits = ", ".join(f"{name} {n}" for name, n in summary.splits.items())
    state = "" if summary.written else " (was there already)"
    out.print(f"{summary.images} images: {splits}{state}")
    out.print(shown(str(summary.folder)), soft_wrap=True)


@app.command()
def validate(
    dataset: Annotated[Path, typer.Argument(help="a dataset folder, exported by segsmith or not")],
    run: Annotated[Path | None, typer.Option(help="run folder to compare every pixel and label with")] = None,
) -> None:
    """Read a dataset with its users' library and list what is wrong; exit code 1 if anything is."""
    quiet_libraries()
    from collections import Counter

    from segsmith.datasets.validate import KINDS
    from segsmith.datasets.validate import validate as check

    found = check(dataset, None if run is None else _original(run))
    splits = ", ".join(f"{name or 'no split'} {n}" for name, n in sorted(found.splits.items()))
    out.print(
        f"{found.format}: {found.images} images ({splits or 'none'}), {len(found.classes)} classes",
        markup=False,
    )
    for problem in found.problems[:SHOWN]:
        out.print(f"[red]{problem.kind}[/red] {shown(f'{problem.where}: {problem.text}')}", soft_wrap=True)
    if len(found.problems) > SHOWN:
        out.print(f"... and {len(found.problems) - SHOWN} more")
    for kind, count in Counter(problem.kind for problem in found.problems).most_common():
        out.print(f"{count:6} {kind}: {KINDS[kind]}", soft_wrap=True)
    if found.problems:
        raise typer.Exit(1)
    out.print("Nothing is wrong." if run is None else "Nothing is wrong, and all of it is as in the run.")


def _original(run: Path) -> Any:
    """What the run exports."""
    from segsmith.datasets.run_dataset import collect
    from segsmith.graph.context import RunContext

    deps = RunContext.open(run)
    try:
        return collect(deps.run, deps.ledger, deps.config)
    finally:
        deps.close()
