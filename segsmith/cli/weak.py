"""Commands on weak labels: `weaken`, `refine`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from segsmith.cli.console import app, out, quiet_libraries, settings_of, shown
from segsmith.errors import SegsmithError


@app.command()
def weaken(
    dataset: Annotated[Path, typer.Option(help="a dataset in PASCAL VOC's layout, fully labelled")],
    out_dir: Annotated[Path, typer.Option("--out", help="new folder for the copy")],
    kind: Annotated[str, typer.Option(help="points, scribbles, coarse or image")] = "points",
    seed: Annotated[int, typer.Option(help="another seed draws other points and lines")] = 0,
) -> None:
    """Make weak labels from full ones in split train, to measure what refines them."""
    quiet_libraries()
    from segsmith.segmentation.weak import KINDS
    from segsmith.tools.weak_labels import weaken_dataset

    if kind not in KINDS:
        raise SegsmithError(
            f"There is no weak label {kind!r}.", f"Type --kind with one of: {', '.join(KINDS)}."
        )
    share = weaken_dataset(dataset, out_dir, kind, seed)
    out.print(f"{kind}: {share:.2%} of the pixels of split train keep their label")
    out.print(shown(str(out_dir)), soft_wrap=True)


@app.command()
def refine(
    dataset: Annotated[
        Path, typer.Option(help="VOC layout; 255 where nobody drew: points, scribbles or coarse polygons")
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="new folder for dense masks and the segmenter")],
    seed: Annotated[int, typer.Option(help="another seed draws other points for SAM")] = 0,
    train: Annotated[bool, typer.Option(help="train a segmenter on the dense masks")] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="labeler or trainer setting, e.g. --set trainer.epochs=40"),
    ] = None,
) -> None:
    """Weak labels to dense masks with SAM (SeSAM), and a segmenter trained on them.

    What was drawn stays as drawn; what SAM cannot settle stays 255.
    """
    quiet_libraries()
    from segsmith.config import load_config
    from segsmith.segmentation.masks import MaskSettings
    from segsmith.tools.sam import SamSegmenter
    from segsmith.tools.weak_labels import refine_dataset

    config = load_config(
        flags=settings_of(["trainer.encoder_init=none", "trainer.teacher_weight=1", *(set_ or [])])
    )
    segmenter = SamSegmenter.load(config.labeler.sam)
    voc = out_dir / "voc"
    with out.status("asking SAM") as status:
        done = refine_dataset(
            dataset, voc, segmenter, MaskSettings.of(config.labeler), seed,
            on_batch=lambda n, total: status.update(f"asking SAM: {n}/{total} images"),
        )  # fmt: skip
    refused = {reason.removeprefix("sam:"): n for reason, n in done.how.items() if reason != "sam:ok"}
    words = ", ".join(f"{reason} {n}" for reason, n in sorted(refused.items())) or "none"
    out.print(f"{done.images} images: labelled pixels {done.drawn_share:.2%} -> {done.known_share:.1%}")
    out.print(f"pieces SAM outlined: {done.how.get('sam:ok', 0)}; refused: {words}")
    out.print(shown(str(voc)), soft_wrap=True)
    if train:
        _train(voc, out_dir / "checkpoints", config, seed)


def _train(voc: Path, checkpoints: Path, config: object, seed: int) -> None:
    from segsmith.config import Config
    from segsmith.segmentation.trainer import train

    assert isinstance(config, Config)
    with out.status("training") as status:
        result = train(
            voc, checkpoints, config.trainer, seed,
            on_epoch=lambda r: status.update(f"training, epoch {r.epoch}/{r.epochs}, loss {r.loss:.3f}"),
        )  # fmt: skip
    if result.validation is not None:
        table = Table("class", "IoU", box=None, pad_edge=False)
        for name, iou in result.validation.iou_per_class.items():
            table.add_row(shown(name), "absent" if iou != iou else f"{iou:.3f}")
        out.print(table)
        out.print(f"mIoU on split val [b]{result.validation.miou:.3f}[/b]")
    out.print(shown(str(result.checkpoint)), soft_wrap=True)
