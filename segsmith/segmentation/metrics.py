"""Scores of predicted label maps: mean IoU, IoU per class, pixel accuracy and the confusion matrix."""

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
    """Scores of predicted label maps; all ratios are in [0, 1].

    `miou` is the mean intersection over union of background and all classes, as for PASCAL VOC. The IoU of a class
    in neither truth nor prediction is nan and is left out of the mean. `confusion` holds (C + 1, C + 1) pixel counts
    with the truth in rows. Pixels that are 255 in the truth are not counted. Where background is no class, its
    entry, row and column are missing, and pixels that are 0 in the truth are not counted either.
    """

    miou: float
    iou_per_class: dict[str, float]
    pixel_accuracy: float
    confusion: NDArray[np.int64]


def score_pairs(
    pairs: Iterable[tuple[Tensor, Tensor]], classes: Sequence[str], background: bool = True
) -> SegmentationScore:
    """Scores of (prediction, truth) pairs of equal shape with integer labels 0 to C; the truth may also be 255.

    `background` says whether index 0 counts as one of the classes.
    """
    matrix = MulticlassConfusionMatrix(len(classes) + 1, ignore_index=IGNORE, validate_args=False)
    for prediction, truth in pairs:
        matrix.update(prediction.long().cpu(), truth.long().cpu())
    confusion = matrix.compute()
    if background:
        return score_confusion(confusion, (BACKGROUND, *classes))
    return score_confusion(confusion[1:, 1:], classes)


def score_confusion(confusion: Tensor, names: Sequence[str]) -> SegmentationScore:
    """Scores of an (N, N) confusion matrix of these names with the truth in rows; all nan if it has no counts."""
    counts = confusion.to(torch.float64)
    hits, total = counts.diagonal(), counts.sum()
    iou = hits / (counts.sum(0) + counts.sum(1) - hits)  # 0 / 0 is nan: in neither truth nor prediction
    return SegmentationScore(
        miou=float(iou.nanmean()),
        iou_per_class=dict(zip(names, iou.tolist(), strict=True)),
        pixel_accuracy=float(hits.sum() / total) if total > 0 else math.nan,
        confusion=confusion.to(torch.int64).numpy(),
    )
