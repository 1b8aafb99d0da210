"""Commands on segmenters: `train`, `evaluate`, `predict`."""

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
    print_scores,
    quiet_libraries,
    screen,
    settings_of,
)
from segsmith.commands.options import Address, AsJson, Lock, TrainEngine, TrainerSet, TrainWorkers

if TYPE_CHECKING:
    from segsmith.workflows.train import Training

CheckpointArgument = Annotated[
    Path, typer.Argument(help="segmenter.safetensors of a run, or the folder that holds it")
]


@app.command()
def train(
    dataset: Annotated[Path, typer.Option(help="a dataset in PASCAL VOC's layout, with a split train")],
    out_dir: Annotated[
        Path,
        typer.Option("--out", help="folder for the segmenter; the same command resumes if it stopped"),
    ],
    seed: Annotated[int, typer.Option(help="the same seed and data give the same segmenter")] = 0,
    set_: TrainerSet = None,
    engine: TrainEngine = "local",
    address: Address = None,
    workers: TrainWorkers = None,
    lock: Lock = "auto",
) -> None:
    """Train a segmenter on a labelled dataset. Rerun the command to resume.

    Several processes split each batch, so the result is that of one but for rounding and dropout.
    """
    quiet_libraries()
    with busy("loading"):
        from segsmith.workflows.train import is_main_process
        from segsmith.workflows.train import train as run_train

    training = run_train(
        dataset,
        out_dir,
        seed=seed,
        settings=settings_of(set_),
        engine=engine,
        address=address,
        workers=workers,
        screen=screen(),
    )
    if is_main_process():
        print_training(training)


@app.command()
def evaluate(
    checkpoint: CheckpointArgument,
    dataset: Annotated[Path, typer.Option(help="VOC, COCO, Ultralytics, CVAT or Hugging Face folder")],
    split: Annotated[str, typer.Option(help="name of the split")] = "val",
    as_json: AsJson = False,
) -> None:
    """Print the intersection over union of a segmenter on a labelled dataset, class by class.

    Classes are matched by name; a class that the segmenter does not know counts as background.
    """
    quiet_libraries()
    with busy("loading"):
        from segsmith.workflows.evaluate import evaluate as run_evaluate

    evaluation = run_evaluate(checkpoint, dataset, split=split, screen=screen(as_json))
    if as_json:
        print_json(evaluation)
        return
    print_scores(evaluation)
    out.print(f"mIoU [b]{evaluation.miou:.3f}[/b]   pixel accuracy {evaluation.pixel_accuracy:.3f}")


@app.command()
def predict(
    checkpoint: CheckpointArgument,
    images: Annotated[Path, typer.Argument(help="an image, or a folder of images")],
    out_dir: Annotated[Path, typer.Option("--out", help="folder for masks, overlays and shares.json")],
    overlays: Annotated[bool, typer.Option(help="also write each image with its masks drawn over it")] = True,
) -> None:
    """Write the label map of each image as a palette PNG, an overlay to look at, and the share of each class.

    Index 0 is background, 1.. are the classes of the segmenter. Images may have any size.
    """
    quiet_libraries()
    with busy("loading"):
        from segsmith.workflows.predict import write_predictions

    count = write_predictions(checkpoint, images, out_dir, overlays=overlays, screen=screen())
    out.print("1 label map" if count == 1 else f"{count} label maps")
    print_path(out_dir)


@app.command("export-model")
def export_model(
    checkpoint: CheckpointArgument,
    format_: Annotated[str, typer.Option("--format", help="onnx or torchscript")] = "onnx",
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="folder to write; default: FORMAT beside the segmenter")
    ] = None,
) -> None:
    """Write a segmenter for other programs, with its model card, and check it against the original.

    The model takes RGB images as (N, 3, H, W) float32 in [0, 1], H and W multiples of 32, and returns logits
    (N, classes + 1, H, W).
    """
    quiet_libraries()
    with busy("loading"):
        from segsmith.workflows.export_model import export_model as run_export

    with busy("writing the model"):
        exported = run_export(checkpoint, format_, out_dir)
    out.print(f"largest difference from the original: {exported.difference:.1e}")
    print_path(exported.model)


def print_training(training: Training) -> None:
    """Epochs, scores and the path of the segmenter."""
    last = training.epochs[-1]
    early = " (stopped early: no progress on split val)" if training.stopped_early else ""
    out.print(f"epochs {last.epoch}, steps {last.step}{early}, loss {last.loss:.4f}")
    if training.validation is not None:
        print_scores(training.validation)
        out.print(f"mIoU on split val [b]{training.validation.miou:.3f}[/b]")
    print_path(training.segmenter)
