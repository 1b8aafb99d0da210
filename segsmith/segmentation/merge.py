"""Merges the masks of an image into a label map, in which contested and uncertain pixels are 255."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from segsmith.types import IGNORE

MARGIN = 0.1
"""Lead in score that a region needs to win a pixel that a region of another class also claims (ours)."""


@dataclass(frozen=True)
class Region:
    """The mask of one object. `score` in [0, 1] resolves conflicts between classes.

    `mask` is an (h, w) bool array for the rows and columns of `window`, by default for the whole image; there is
    nothing outside of it. `instance` numbers the objects of a class; regions of the same class never conflict.
    """

    class_index: int
    mask: NDArray[np.bool_]
    score: float
    instance: int = 0
    window: tuple[slice, slice] = (slice(None), slice(None))

    def full(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """The mask of the whole image of `size` (H, W)."""
        full = np.zeros(size, bool)
        full[self.window] = self.mask
        return full


def merge_masks(
    regions: Sequence[Region],
    size: tuple[int, int],
    uncertain: NDArray[np.bool_] | None = None,
    border_px: int = 0,
    *,
    margin: float = MARGIN,
) -> NDArray[np.uint8]:
    """(H, W) uint8 label map: 0 background, i + 1 for class index i, 255 unknown.

    A pixel claimed by several classes gets the class with the highest score there if that score is at least
    `margin` above the next class's; otherwise it is 255. Then every pixel within `border_px` (chessboard distance)
    of a pixel with another label becomes 255, like the contours of PASCAL VOC. `uncertain` (H, W) pixels that no
    region claims are 255.
    """
    classes = sorted({region.class_index for region in regions})
    claims = np.full((len(classes), *size), -np.inf)
    for region in regions:
        claim = claims[classes.index(region.class_index)][region.window]
        claim[region.mask] = np.maximum(claim[region.mask], region.score)
    labels = _winners(claims, classes, margin) if classes else np.zeros(size, np.uint8)
    merged = labels.copy()
    if border_px:
        window = 2 * border_px + 1
        merged[maximum_filter(labels, window) != minimum_filter(labels, window)] = IGNORE
    if uncertain is not None:
        merged[uncertain & (labels == 0)] = IGNORE
    return merged


def ignore_share(label_map: NDArray[np.uint8]) -> float:
    """Share of all pixels that are 255, in [0, 1]."""
    return float((label_map == IGNORE).mean())


def pixel_counts(label_map: NDArray[np.uint8], classes: Sequence[str]) -> dict[str, int]:
    """Class name -> number of pixels, for every name in `classes`; background and 255 are not counted."""
    counts = np.bincount(label_map.ravel(), minlength=256)
    return {name: int(counts[i + 1]) for i, name in enumerate(classes)}


def _winners(claims: NDArray[np.float64], classes: Sequence[int], margin: float) -> NDArray[np.uint8]:
    """The label with the highest claim; 0 where there is no claim, 255 where the lead is below `margin`."""
    best = claims.max(axis=0)
    labels = (np.asarray(classes)[claims.argmax(axis=0)] + 1).astype(np.uint8)
    if len(classes) > 1:
        second = np.partition(claims, -2, axis=0)[-2]
        # Scores are often decimals: 0.9 - 0.8 must count as 0.1 despite rounding.
        contested = np.isfinite(second) & (best < second + margin - 1e-9)
        labels[contested] = IGNORE
    labels[np.isneginf(best)] = 0
    return labels
