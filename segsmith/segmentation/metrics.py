"""The one number everybody asks for, and what is behind it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from segsmith.types import IGNORE

BACKGROUND = "background"


@dataclass(frozen=True)
class SegmentationScore:
    """Quality of predicted label maps, every ratio in [0, 1].

    `miou` is the mean over background and classes, as on PASCAL VOC, of the intersection over union; a
    class in neither truth nor prediction has IoU nan and is left out of the mean. `confusion` is
    (C + 1, C + 1) pixel counts, truth in rows. Pixels that are 255 in the truth count nowhere.
    """

    miou: float
    iou_per_class: dict[str, float]
    pixel_accuracy: float
    confusion: NDArray[np.int64]


def score_pairs(pairs: Iterable[tuple[Tensor, Tensor]], classes: Sequence[str]) -> SegmentationScore:
    """Score (prediction, truth) pairs of equal shape, integer labels 0..C, truth also 255."""
    matrix = MulticlassConfusionMatrix(len(classes) + 1, ignore_index=IGNORE, validate_args=False)
    for prediction, truth in pairs:
        matrix.update(prediction.long().cpu(), truth.long().cpu())
    return score_confusion(matrix.compute(), classes)


def score_confusion(confusion: Tensor, classes: Sequence[str]) -> SegmentationScore:
    """Score a (C + 1, C + 1) confusion matrix with truth in rows; all nan when it is empty."""
    counts = confusion.to(torch.float64)
    hits, total = counts.diagonal(), counts.sum()
    iou = hits / (counts.sum(0) + counts.sum(1) - hits)  # 0 / 0 = nan: absent from truth and prediction
    return SegmentationScore(
        miou=float(iou.nanmean()),
        iou_per_class=dict(zip((BACKGROUND, *classes), iou.tolist(), strict=True)),
        pixel_accuracy=float(hits.sum() / total) if total > 0 else math.nan,
        confusion=confusion.to(torch.int64).numpy(),
    )
