"""The command `train`, and the training that other commands end with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from segsmith.commands.console import app, out, quiet_libraries, settings_of
from segsmith.terminal_text import shown

if TYPE_CHECKING:
    from segsmith.config import Config
    from segsmith.segmentation.trainer import TrainResult


@app.command()
def train(
    dataset: Annotated[Path, typer.Option(help="a dataset in PASCAL VOC's layout, with a split train")],
    out_dir: Annotated[Path, typer.Option("--out", help="folder for the segmenter; the same goes on")],
    seed: Annotated[int, typer.Option(help="the same seed and data give the same segmenter")] = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="trainer setting, e.g. --set trainer.epochs=40")
    ] = None,
) -> None:
    """Train a segmenter on a labelled dataset; killed, the same command goes on.

    On several GPUs: accelerate launch --num_processes 2 -m segsmith.cli train ...
    """
    quiet_libraries()
    from segsmith.config import load_config

    one_voice()
    config = load_config(flags=settings_of(["trainer.encoder_init=none", *(set_ or [])]))
    train_and_show(dataset, out_dir, config, seed)


def one_voice() -> None:
    """Under ``accelerate launch`` only the main process prints."""
    from segsmith.segmentation.trainer import processes

    out.quiet = not processes().is_main_process


def train_and_show(dataset: Path, out_dir: Path, config: Config, seed: int, sam: Any = None) -> TrainResult:
    """Train, with `sam` as the trainer's source of SAM's labels, and print what came of it."""
    from segsmith.segmentation.trainer import EpochReport
    from segsmith.segmentation.trainer import train as run
    from segsmith.tools.vision.clip import OpenClipEncoder

    tower = None
    if config.trainer.encoder_init == "clip":
        tower = OpenClipEncoder.load(config.judge.clip, "cpu").tower
    with out.status("training") as status:

        def told(report: EpochReport) -> None:
            status.update(f"training, epoch {report.epoch}/{report.epochs}, loss {report.loss:.3f}")

        result = run(dataset, out_dir, config.trainer, seed, clip_tower=tower, sam=sam, on_epoch=told)
    last = result.reports[-1]
    stopped = " (stopped early: no progress on split val)" if last.epoch < last.epochs else ""
    out.print(f"epochs {last.epoch}{stopped}, loss {last.loss:.4f}")
    if result.validation is not None:
        table = Table("class", "IoU", box=None, pad_edge=False)
        for name, iou in result.validation.iou_per_class.items():
            table.add_row(shown(name), "absent" if iou != iou else f"{iou:.3f}")
        out.print(table)
        out.print(f"mIoU on split val [b]{result.validation.miou:.3f}[/b]")
    out.print(shown(str(result.checkpoint)), soft_wrap=True)
    return result
