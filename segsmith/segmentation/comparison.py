"""Whether one segmenter is better than another on the same images, beyond chance.

On few images the higher mIoU is often chance: with generated images that lowered mIoU on the test set by 0.023, split
val of 20 images said +0.009, with a standard error of 0.064 (docs/augment.md). So a gain must exceed its standard
error, as in the one-standard-error rule of Breiman et al. (Classification and Regression Trees, 1984), by which
the simpler model is kept unless another one is clearly better. The error is that of a bootstrap over the images
(Efron, 1979), in which both segmenters see the same images, because their scores on an image are alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segsmith.datasets.voc_folder import VocFolder
from segsmith.segmentation.inference import pairs_of_checkpoint
from segsmith.types import IGNORE

SAMPLES = 1000
"""Of the bootstrap (ours)."""


@dataclass(frozen=True)
class Comparison:
    """mIoU in [0, 1] of two segmenters on the same images, and the standard error of their difference.

    The error is infinite where it is unknown: with fewer than two images.
    """

    first: float
    second: float
    error: float

    @property
    def gain(self) -> float:
        """mIoU of the first segmenter less that of the second."""
        return self.first - self.second

    @property
    def first_is_better(self) -> bool:
        """Whether the gain exceeds its standard error."""
        return self.gain > self.error


def compare(first: Path, second: Path, dataset: Path, split: str) -> Comparison:
    """Compare two checkpoints on one split of a dataset in VOC layout; the same input gives the same answer.

    Raises `SegsmithError` as `evaluate` does.
    """
    counts = [image_counts(*_pairs(checkpoint, dataset, split)) for checkpoint in (first, second)]
    return compare_counts(*counts)


def compare_counts(first: NDArray[np.int64], second: NDArray[np.int64]) -> Comparison:
    """The comparison of two segmenters whose `image_counts` on the same N images are given."""
    images = len(first)
    whole = [float(_miou(counts.sum(axis=0))) for counts in (first, second)]
    if images < 2:
        return Comparison(whole[0], whole[1], math.inf)
    drawn = np.random.default_rng(0).multinomial(images, [1 / images] * images, size=SAMPLES)
    resampled = [_miou(np.tensordot(drawn, counts, axes=1)) for counts in (first, second)]
    return Comparison(whole[0], whole[1], float(np.nanstd(resampled[0] - resampled[1])))


def image_counts(pairs: Iterable[tuple[Tensor, Tensor]], classes: int, background: bool) -> NDArray[np.int64]:
    """(N, 3, K): per image and class the pixels that are right, that are predicted, and that are true.

    `pairs` are batches as of `predicted_pairs`, with `classes` classes beside background. K is `classes` + 1, or
    `classes` where `background` is False; pixels that count nowhere are those of `score_pairs`.
    """
    names, found = classes + 1, []
    for prediction, truth in pairs:
        for given, true in zip(prediction, truth, strict=True):
            counted = true != IGNORE
            cells = true[counted].long().cpu() * names + given[counted].long().cpu()
            confusion = torch.bincount(cells, minlength=names**2).view(names, names)
            confusion = confusion if background else confusion[1:, 1:]
            found.append(torch.stack([confusion.diagonal(), confusion.sum(0), confusion.sum(1)]).numpy())
    return np.stack(found) if found else np.zeros((0, 3, names if background else classes), dtype=np.int64)


def _pairs(checkpoint: Path, dataset: Path, split: str) -> tuple[Iterable[tuple[Tensor, Tensor]], int, bool]:
    pairs, meta = pairs_of_checkpoint(checkpoint, lambda _: VocFolder(dataset, split))
    return pairs, len(meta.classes), meta.background


def _miou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """mIoU of (..., 3, K) counts; a class in neither truth nor prediction is left out of the mean."""
    right, predicted, true = np.moveaxis(counts, -2, 0)
    union = predicted + true - right
    seen = union > 0
    iou = np.divide(right, union, out=np.zeros(union.shape), where=seen)
    count = seen.sum(axis=-1)
    total = np.where(seen, iou, 0).sum(axis=-1)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
