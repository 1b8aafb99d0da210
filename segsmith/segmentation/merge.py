"""Many masks of one picture become one label map; what is contested or unclear becomes 255."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from segsmith.types import IGNORE

MARGIN = 0.1
"""How far a region's score must be ahead of another class's to win a pixel both claim (ours)."""


@dataclass(frozen=True)
class Region:
    """One mask with its class. `score` in [0, 1] decides conflicts; `instance` numbers a class's objects.

    Regions of one class never conflict, whatever their instance.
    """

    class_index: int
    mask: NDArray[np.bool_]
    score: float
    instance: int = 0


def merge_masks(
    regions: Sequence[Region],
    size: tuple[int, int],
    uncertain: NDArray[np.bool_] | None = None,
    border_px: int = 0,
    *,
    margin: float = MARGIN,
) -> NDArray[np.uint8]:
    """(H, W) uint8 label map: 0 background, i + 1 for class index i, 255 unknown.

    A pixel claimed by several classes goes to the class of the highest-scored region there if that score
    is at least `margin` ahead of the next class's, and is 255 otherwise. Then every pixel within
    `border_px` (chessboard distance) of a pixel with another label is 255, as on PASCAL VOC's contours;
    0 leaves no border. `uncertain` pixels that no region claims are 255: high score, but no mask.
    """
    classes = sorted({region.class_index for region in regions})
    claims = np.full((len(classes), *size), -np.inf)
    for region in regions:
        claim = claims[classes.index(region.class_index)]
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
    """Share of the pixels that are 255, in [0, 1]."""
    return float((label_map == IGNORE).mean())


def pixel_counts(label_map: NDArray[np.uint8], classes: Sequence[str]) -> dict[str, int]:
    """Class name -> pixels, for every class of the list, 0 included; background and 255 are not counted."""
    counts = np.bincount(label_map.ravel(), minlength=256)
    return {name: int(counts[i + 1]) for i, name in enumerate(classes)}


def _winners(claims: NDArray[np.float64], classes: Sequence[int], margin: float) -> NDArray[np.uint8]:
    """The label of the highest claim, 0 where nobody claims, 255 where the lead is under `margin`."""
    best = claims.max(axis=0)
    labels = (np.asarray(classes)[claims.argmax(axis=0)] + 1).astype(np.uint8)
    if len(classes) > 1:
        second = np.partition(claims, -2, axis=0)[-2]
        # Both are the caller's decimals: 0.9 - 0.8 must count as 0.1.
        contested = np.isfinite(second) & (best < second + margin - 1e-9)
        labels[contested] = IGNORE
    labels[np.isneginf(best)] = 0
    return labels
