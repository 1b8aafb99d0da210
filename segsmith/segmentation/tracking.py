"""Reporting of a training to TensorBoard, W&B or MLflow, through accelerate's trackers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from segsmith.config import TrainerConfig
from segsmith.errors import SegsmithError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from segsmith.segmentation.checkpoint import EpochReport

PROJECT = "segsmith"
FOLDER = "tracking"
"""Folder beside the checkpoint for the files of trackers that write any."""


def check_tracker(config: TrainerConfig) -> None:
    """Raise `SegsmithError` where the package of ``trainer.tracker`` is not installed."""
    if config.tracker is not None and find_spec(config.tracker) is None:
        raise SegsmithError(
            f"trainer.tracker is {config.tracker!r}, and that package is not installed.",
            f"Type: pip install {config.tracker}",
        )


def tracking_folder(out: Path) -> Path:
    """Where TensorBoard writes its files, for a training that writes its checkpoint to `out`.

    W&B and MLflow write where their own variables say (`WANDB_DIR`, `MLFLOW_TRACKING_URI`).
    """
    return out / FOLDER


def start(accelerator: Accelerator, config: TrainerConfig, seed: int) -> None:
    """Open the tracker that `accelerator` was made with, and tell it the settings."""
    if config.tracker is not None:
        settings = config.model_dump(mode="json", exclude_none=True)
        accelerator.init_trackers(PROJECT, config={**settings, "seed": seed})


def report(accelerator: Accelerator, config: TrainerConfig, epoch: EpochReport) -> None:
    """Send the figures of one epoch."""
    if config.tracker is not None:
        values = {
            "loss": epoch.loss,
            "learning_rate": epoch.learning_rate,
            "val_miou": epoch.miou,
            "images_per_second": epoch.images_per_second,
        }
        accelerator.log({name: v for name, v in values.items() if v is not None}, step=epoch.epoch)


def finish(accelerator: Accelerator, config: TrainerConfig) -> None:
    """Close the tracker, which sends what it still holds."""
    if config.tracker is not None:
        accelerator.end_training()
