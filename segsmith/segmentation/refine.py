"""Weak labels become dense ones: SeSAM's three steps on points, scribbles or coarse polygons.

The seeds that `masks` finds in a classifier's scores are here what a person drew; the rest is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segsmith.segmentation.masks import Component, MaskSettings, PlannedMask, finish_mask
from segsmith.segmentation.sesam import components, skeleton_points
from segsmith.tools.protocols import IGNORE, Image, PointSegmenter

BACKGROUND = -1
"""Key of the drawn background among a plan's seeds: a mask that takes it in is refused, none is asked for."""


def plan_weak(
    weak: NDArray[np.uint8],
    rng: np.random.Generator,
    settings: MaskSettings,
    step0: NDArray[np.uint8] | None = None,
) -> PlannedMask:
    """Components and skeleton points of an (H, W) weak label map (SeSAM, steps 1 and 2).

    `step0` is a label map of confident predictions, 255 where there are none: it fills what nobody drew on
    before the components are taken (SeSAM, step 0); it never replaces what was drawn. `min_area_px` is not
    used: a single drawn pixel is a person's word.
    """
    known = weak if step0 is None else np.where(weak == IGNORE, step0, weak)
    seeds = {int(v) - 1: known == v for v in np.unique(known) if v != IGNORE}
    plan = PlannedMask(weak.shape[:2], seeds)
    for index, seed in seeds.items():
        if index != BACKGROUND:
            for piece in components(seed):
                plan.parts.append(Component(index, piece, skeleton_points(piece, settings.points, rng), 1.0))
    return plan


def refine_weak(
    images: Sequence[Image],
    weak_maps: Sequence[NDArray[np.uint8]],
    plans: Sequence[PlannedMask],
    segmenter: PointSegmenter,
    settings: MaskSettings,
) -> list[tuple[NDArray[np.uint8], dict[str, int]]]:
    """Dense (H, W) uint8 label maps, each with a count of how its components were resolved.

    The rules: what was drawn stays as drawn. Elsewhere SAM's masks hold, contested pixels are 255
    (`merge_masks`). What no mask claims is background if every component got its mask; if one did not,
    an object of unknown extent is somewhere there, and all unclaimed pixels are 255.
    """
    found = finish_mask(images, plans, segmenter, settings)
    return [
        (_settled(label_map, weak, how), how) for (label_map, how), weak in zip(found, weak_maps, strict=True)
    ]


def _settled(label_map: NDArray[np.uint8], weak: NDArray[np.uint8], how: dict[str, int]) -> NDArray[np.uint8]:
    settled = label_map.copy()
    if any(reason != "sam:ok" for reason in how):
        settled[label_map == 0] = IGNORE
    drawn = weak != IGNORE
    settled[drawn] = weak[drawn]
    return settled
