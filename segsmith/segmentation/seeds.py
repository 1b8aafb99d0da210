"""From patch scores to class scores (pooling) and to seeds, the coarse masks that SeSAM starts from.

This module does not import torch, so that agents can use it; `top_k_pool` only calls methods of its argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.objects import numbered_components

if TYPE_CHECKING:
    from torch import Tensor


def top_k_pool(patch_logits: Tensor, k: int) -> Tensor:
    """Mean of the k highest patch logits per class: (B, C, h, w) -> (B, C).

    The pooling of the ViT that relabels images. SynthSeg-Agents (Fig. 4) does not state its pooling; top-k is from
    TKP-PCL (arXiv 2310.09828). k = 1 is max pooling, k >= h * w is the mean.
    """
    patches = patch_logits.flatten(2)
    return patches.topk(min(max(k, 1), patches.shape[-1]), dim=-1).values.mean(dim=-1)


def upsample_maps(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bilinear resizing of (C, h, w) maps to (C, H, W) float32, like torch's with `align_corners=False`."""
    rows = resize_matrix(maps.shape[1], size[0])
    columns = resize_matrix(maps.shape[2], size[1])
    return np.asarray(rows @ np.asarray(maps, np.float32) @ columns.T, np.float32)


def blend_maps(
    maps: NDArray[np.float32], attention: Mapping[int, NDArray[np.uint8]], weight: float
) -> NDArray[np.float32]:
    """(C, h, w) patch scores in [0, 1], blended with what the image model attended to.

    `attention` maps a class index to its attention, of any size, from 0 to 255. It is scaled to the class's highest
    patch score, so that it moves a class's scores within the image but not against those of other classes. `weight`
    is in [0, 1]; classes without attention keep their scores.
    """
    blended = np.array(maps, np.float32)
    for index, of_class in attention.items():
        (resized,) = upsample_maps(np.asarray(of_class[None] / 255, np.float32), blended.shape[1:])
        blended[index] = (1 - weight) * blended[index] + weight * blended[index].max() * resized
    return blended


def seed_masks(
    maps: NDArray[np.float32], present: Sequence[int], *, high: float = 0.5, min_area_px: int = 4
) -> dict[int, NDArray[np.bool_]]:
    """Confident pixels of each present class: {class index: (H, W) bool}.

    `maps` are (C, H, W) scores in [0, 1]. A pixel belongs to a class if its score is at least `high` (0 to 1) times
    the maximum of that class's map and no other present class scores higher there. Connected pieces with fewer than
    `min_area_px` pixels are removed, except the largest. A class that is outscored everywhere keeps the pixels of
    its maximum, where seeds of two classes may overlap. A map without a positive score gives an empty mask.
    """
    if not present:
        return {}
    scores = np.asarray(maps, np.float32)[list(present)]
    best = scores.max(axis=0)
    seeds = {}
    for index, score in zip(present, scores, strict=True):
        peak = float(score.max())
        if peak <= 0:
            seeds[index] = np.zeros(score.shape, bool)
            continue
        mask = (score >= high * peak) & (score >= best)
        seeds[index] = _without_small(mask if mask.any() else score >= peak, min_area_px)
    return seeds


def _without_small(mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
    """The (H, W) mask without connected pieces of fewer pixels; if all are smaller, the largest stays."""
    numbers, order, areas = numbered_components(mask)
    kept = np.concatenate([[False], areas >= min_area_px])
    if not kept.any() and len(order):
        kept[order[0]] = True
    return kept[numbers]


def resize_matrix(source: int, target: int) -> NDArray[np.float32]:
    """(target, source) float32 matrix whose row i holds the bilinear weights of output pixel i (no antialiasing)."""
    centre = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    low = np.floor(centre).astype(int)
    matrix = np.zeros((target, source), np.float32)
    rows = np.arange(target)
    np.add.at(matrix, (rows, low), 1 - (centre - low))
    np.add.at(matrix, (rows, np.minimum(low + 1, source - 1)), centre - low)
    return matrix
