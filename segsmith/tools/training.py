"""LangChain tools that train and evaluate a segmenter on a dataset: for a graph's tool nodes, or for an LLM.

Arguments are paths and settings, replies are small JSON objects without tensors, and torch is imported only
when a tool runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel, ConfigDict, Field

from segsmith.config import TrainerConfig
from segsmith.files import local_folder

if TYPE_CHECKING:
    from torch import Tensor, nn


class TrainArguments(BaseModel):
    """Arguments of `train_segmenter`."""

    model_config = ConfigDict(extra="forbid")

    dataset: str = Field(description="folder of a dataset in PASCAL VOC's layout, with classes.txt")
    out: str = Field(description="folder for the checkpoint and for the state to resume from")
    settings: TrainerConfig = Field(TrainerConfig.model_validate({}), description="how to train")
    seed: int = Field(0, ge=0, description="the same seed and data give the same segmenter")


class EvaluateArguments(BaseModel):
    """Arguments of `evaluate_segmenter`."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: str = Field(description="segmenter.safetensors, or the folder that contains it")
    dataset: str = Field(description="folder of a dataset in PASCAL VOC's layout with the same classes")
    split: str = Field("test", description="name of a file in ImageSets/Segmentation, without .txt")


def trainer_tool(
    *,
    clip_tower: Callable[[], nn.Module] | None = None,
    directions: Callable[[Sequence[str]], Tensor] | None = None,
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
) -> BaseTool:
    """The tool ``train_segmenter``, bound to callables that JSON arguments cannot hold.

    `clip_tower` opens the image tower that initialises the encoder; without it only ``encoder_init = "none"``
    works. `directions` is that of `segsmith.segmentation.trainer.train`. `on_epoch` is called with each epoch's
    report as a JSON object. The tool replies with the checkpoint's path, the classes, the last epoch, all epochs, and
    the score on split val (null without one).
    """

    def train_segmenter(dataset: str, out: str, settings: TrainerConfig, seed: int) -> dict[str, Any]:
        from segsmith.segmentation.trainer import EpochReport, train

        def told(report: EpochReport) -> None:
            if on_epoch is not None:
                on_epoch(_plain(asdict(report)))

        tower = clip_tower() if clip_tower is not None and settings.encoder_init == "clip" else None
        result = train(
            Path(dataset),
            local_folder(out),
            settings,
            seed,
            clip_tower=tower,
            directions=directions,
            on_epoch=told,
        )
        score = result.validation
        return {
            "checkpoint": str(result.checkpoint),
            "classes": list(result.classes),
            "last_epoch": _plain(asdict(result.reports[-1])),
            "epochs": [_plain(asdict(report)) for report in result.reports],
            "validation": None if score is None else _plain(asdict(score)),
        }

    return StructuredTool.from_function(
        train_segmenter,
        args_schema=TrainArguments,
        description="Train a semantic segmenter on a dataset; resumes an interrupted call.",
    )


def _evaluate_segmenter(checkpoint: str, dataset: str, split: str) -> dict[str, Any]:
    from segsmith.segmentation.inference import evaluate

    return _plain(asdict(evaluate(Path(checkpoint), Path(dataset), split)))


train_segmenter = trainer_tool()
evaluate_segmenter = StructuredTool.from_function(
    _evaluate_segmenter,
    name="evaluate_segmenter",
    args_schema=EvaluateArguments,
    description="Score a trained segmenter on one split: mIoU, IoU per class, accuracy, confusion matrix.",
)


def _plain(value: Any) -> Any:
    """Convert to JSON types: arrays become lists, and nan (a class without pixels) becomes null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.tolist() if hasattr(value, "tolist") else value
