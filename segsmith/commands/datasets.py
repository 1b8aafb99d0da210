"""Commands on datasets: `validate`, `weaken`, `refine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segsmith.commands.console import (
    app,
    busy,
    out,
    print_json,
    print_path,
    quiet_libraries,
    screen,
    settings_of,
)
from segsmith.commands.options import Address, AsJson, Lock, TrainEngine, TrainWorkers
from segsmith.commands.train import print_training
from segsmith.terminal_text import shown

if TYPE_CHECKING:
    from segsmith.datasets.records import Problem
    from segsmith.workflows.refine import Refinement

SHOWN = 50
"""Problems printed; the rest is counted."""
SHOWN_OF_KIND = 10
"""Problems of one kind printed, so that a frequent kind hides no other."""


@app.command()
def validate(
    dataset: Annotated[Path, typer.Argument(help="a dataset folder, exported by segsmith or not")],
    run: Annotated[Path | None, typer.Option(help="run folder to compare every pixel and label with")] = None,
    as_json: AsJson = False,
) -> None:
    """Read every image and label of a dataset and list what is wrong; exit code 1 if anything is."""
    quiet_libraries()
    from collections import Counter

    from segsmith.datasets.validate import KINDS
    from segsmith.datasets.validate import validate as check
    from segsmith.files import conversion_notes
    from segsmith.workflows.run import open_run

    with busy("reading the dataset"):
        found = check(dataset, None if run is None else open_run(run).exported())
    if as_json:
        print_json(found)
        raise typer.Exit(1 if found.problems else 0)
    splits = ", ".join(f"{name or 'no split'} {n}" for name, n in sorted(found.splits.items()))
    out.print(
        f"{found.format}: {found.images} images ({splits or 'none'}), {len(found.classes)} classes",
        markup=False,
    )
    kinds: Counter[str] = Counter()
    printed: list[Problem] = []
    for problem in found.problems:
        kinds[problem.kind] += 1
        if kinds[problem.kind] <= SHOWN_OF_KIND and len(printed) < SHOWN:
            printed.append(problem)
    for problem in printed:
        out.print(f"[red]{problem.kind}[/red] {shown(f'{problem.where}: {problem.text}')}", soft_wrap=True)
    if len(found.problems) > len(printed):
        out.print(f"... and {len(found.problems) - len(printed)} more")
    for kind, count in kinds.most_common():
        out.print(f"{count:6} {kind}: {KINDS[kind]}", soft_wrap=True)
    for note in conversion_notes(found.conversions):
        out.print(f"Not used as stored: {note}", soft_wrap=True)
    if found.problems:
        raise typer.Exit(1)
    out.print("No problems found." if run is None else "No problems found; everything is as in the run.")
    if found.also_read_by:
        out.print(f"{found.also_read_by} reads the same.")


@app.command()
def weaken(
    dataset: Annotated[Path, typer.Option(help="a dataset in PASCAL VOC's layout, fully labelled")],
    out_dir: Annotated[Path, typer.Option("--out", help="new folder for the copy")],
    kind: Annotated[str, typer.Option(help="points, scribbles, coarse or image")] = "points",
    seed: Annotated[int, typer.Option(help="another seed draws other points and lines")] = 0,
    min_area: Annotated[
        int | None,
        typer.Option(min=1, show_default="4", help="connected components with fewer pixels are not drawn on"),
    ] = None,
) -> None:
    """Copy a dataset with weak labels in split train, to measure how well `refine` restores the full ones."""
    quiet_libraries()
    with busy("loading"):
        from segsmith.workflows.weaken import weak_kind, weaken_dataset

    with busy("weakening the labels"):
        share = weaken_dataset(dataset, out_dir, weak_kind(kind, "--kind"), seed, min_area)
    out.print(f"{kind}: {share:.2%} of the pixels of split train keep their label")
    print_path(out_dir)


@app.command()
def refine(
    dataset: Annotated[
        Path,
        typer.Option(
            help="VOC, COCO or a folder of images per class; in VOC masks, 255 marks undrawn pixels"
        ),
    ],
    out_dir: Annotated[
        Path,
        typer.Option("--out", help="folder for masks and segmenter; the same command resumes if it stopped"),
    ],
    preset: Annotated[
        str | None,
        typer.Option(
            show_default="sim", help="which SAM, CLIP and encoder to use: auto, sim, cpu, gpu or hosted"
        ),
    ] = None,
    weak: Annotated[
        str | None, typer.Option(help="points, scribbles, coarse or image; default: detected")
    ] = None,
    zero_is_undrawn: Annotated[
        bool,
        typer.Option(
            "--zero-is-undrawn", help="index 0 in a mask means that nothing was drawn, not background"
        ),
    ] = False,
    background: Annotated[
        bool | None,
        typer.Option(
            help="whether pixels outside every mask are background; default: not if masks hold no 0",
            show_default="detected",
        ),
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="the same images fully labelled; prints the quality of the masks")
    ] = None,
    seed: Annotated[int, typer.Option(help="another seed places other points for SAM")] = 0,
    train: Annotated[bool, typer.Option(help="train a segmenter, and use it to improve the masks")] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="a labeler or trainer setting, e.g. trainer.epochs=40; may be repeated",
        ),
    ] = None,
    engine: TrainEngine = "local",
    address: Address = None,
    workers: TrainWorkers = None,
    lock: Lock = "auto",
) -> None:
    """Turn weak labels into dense masks with SAM, and train a segmenter on them (SeSAM).

    Drawn pixels keep their label; pixels that cannot be decided stay 255. Rerun the command to resume.
    """
    quiet_libraries()
    with busy("loading"):
        from segsmith.workflows.refine import refine as run_refine
        from segsmith.workflows.train import is_main_process

    refinement = run_refine(
        dataset,
        out_dir,
        preset=preset,
        weak=weak,
        zero_is_undrawn=zero_is_undrawn,
        background=background,
        truth=truth,
        seed=seed,
        train=train,
        settings=settings_of(set_),
        engine=engine,
        address=address,
        workers=workers,
        screen=screen(),
    )
    if is_main_process():
        _print_refinement(refinement)


def _print_refinement(refinement: Refinement) -> None:
    if refinement.training is not None:
        print_training(refinement.training)
    if refinement.components:
        rejected = {reason: n for reason, n in sorted(refinement.components.items()) if reason != "ok"}
        reasons = ", ".join(f"{reason} {n}" for reason, n in rejected.items()) or "none"
        out.print(
            f"components outlined by SAM: {refinement.components.get('ok', 0)}; without an outline: {reasons}"
        )
    for stage, quality in refinement.quality.items():
        out.print(f"{stage}: {quality.known:.1%} of the pixels labelled, mIoU on them {quality.miou:.3f}")
    print_path(refinement.dataset)
