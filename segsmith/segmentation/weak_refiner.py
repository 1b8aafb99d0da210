"""Weak labels become dense ones: SeSAM's steps 0 to 3 on points, scribbles, coarse polygons or image labels.

The seeds that `masks` finds in a classifier's scores are here what a person drew, or, where there are only
image labels, those same seeds; the rest is the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.objects import components
from segsmith.datasets.voc_folder import VocFolder
from segsmith.ids import seed_of
from segsmith.protocols import PointSegmenter
from segsmith.segmentation.masks import (
    Component,
    MaskSettings,
    Outlined,
    PlannedMask,
    doubtful,
    merge_outlined,
    outline,
    sample_points,
)
from segsmith.segmentation.sources import Opinion
from segsmith.types import IGNORE, Image

BACKGROUND = -1
"""Key of the drawn background among a plan's seeds: a mask that takes it in is refused, none is asked for."""
BATCH = 16


def plan_weak(
    weak: NDArray[np.uint8],
    rng: np.random.Generator,
    settings: MaskSettings,
    step0: NDArray[np.uint8] | None = None,
    confidence: NDArray[np.float32] | None = None,
) -> PlannedMask:
    """Components and points of an (H, W) weak label map (SeSAM, steps 1 and 2).

    `step0` is a label map of confident predictions, 255 where there are none: it fills what nobody drew on
    before the components are taken (SeSAM, step 0); it never replaces what was drawn. A piece of it that no
    drawn pixel belongs to needs `min_area_px` pixels to be asked about; a single drawn pixel is a person's
    word. `confidence` (H, W) is the predictions' certainty, for settings that take points from it.
    """
    known = weak if step0 is None else np.where(weak == IGNORE, step0, weak)
    seeds = {int(v) - 1: known == v for v in np.unique(known) if v != IGNORE}
    plan = PlannedMask(weak.shape[:2], seeds)
    for index, seed in seeds.items():
        if index != BACKGROUND:
            for piece in components(seed):
                if piece.sum() >= settings.min_area_px or (weak[piece] == index + 1).any():
                    points = sample_points(piece, rng, settings, confidence)
                    plan.parts.append(Component(index, piece, points, 1.0))
    return plan


def refine_weak(
    images: Sequence[Image],
    drawn_maps: Sequence[NDArray[np.uint8]],
    plans: Sequence[PlannedMask],
    segmenter: PointSegmenter,
    settings: MaskSettings,
) -> list[tuple[NDArray[np.uint8], dict[str, int]]]:
    """Dense (H, W) uint8 label maps, each with a count of how its components were resolved.

    The rules: what was drawn stays as drawn. Elsewhere SAM's masks hold, contested pixels are 255
    (`merge_masks`). What no mask claims is background, as far as it is not in doubt: a component without a
    mask is an object of unknown extent, so what its refused candidates cover, and what is near it, is 255. A
    picture on which nothing is drawn and no component found stays 255: nobody said that it is empty.
    """
    results = []
    for found, drawn in zip(outline(images, plans, segmenter, settings), drawn_maps, strict=True):
        label_map, how = merge_outlined(found, settings)
        results.append((_settled(label_map, drawn, found), how))
    return results


def _settled(label_map: NDArray[np.uint8], drawn: NDArray[np.uint8], found: Outlined) -> NDArray[np.uint8]:
    settled, known = label_map.copy(), drawn != IGNORE
    nothing_said = not (found.how or known.any())
    settled[(doubtful(found) | nothing_said) & (label_map == 0)] = IGNORE
    settled[known] = drawn[known]
    return settled


class WeakRefiner:
    """SeSAM over a whole split, as often as it is asked: the trainer's `SamLabels`.

    `seeds` gives the (H, W) label map that SAM is asked about for each image id, where that is not what was
    drawn: seeds of a classifier that knows image labels alone. Step 0 takes what the teacher is at least
    `threshold` sure of. The same pictures, opinions and round give the same labels.
    """

    def __init__(
        self,
        segmenter: PointSegmenter,
        settings: MaskSettings,
        seed: int,
        *,
        threshold: float,
        step0: bool = True,
        seeds: Callable[[str], NDArray[np.uint8]] | None = None,
        on_image: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.how: Counter[str] = Counter()
        """How the pieces of the last round were resolved; reasons as in `Selection`, after ``sam:``."""
        self.name = f"{segmenter.name} {asdict(settings)} {seed} {threshold} {step0} {seeds is not None}"
        self._segmenter, self._settings, self._seed = segmenter, settings, seed
        self._threshold, self._step0, self._seeds = threshold, step0, seeds
        self._on_image = on_image

    def label_maps(
        self, data: VocFolder, opinions: Iterable[Opinion] | None, round_: int
    ) -> Iterator[NDArray[np.uint8]]:
        """Dense (H, W) uint8 label maps of the split's pictures, in order."""
        self.how = Counter()
        views: Iterator[Opinion | None] = repeat(None) if opinions is None else iter(opinions)
        for start in range(0, len(data), BATCH):
            names = data.ids[start : start + BATCH]
            images, drawn = zip(*(data.raw(start + i) for i in range(len(names))), strict=True)
            plans = [
                self._plan(name, weak, next(views), round_) for name, weak in zip(names, drawn, strict=True)
            ]
            for label_map, how in refine_weak(images, drawn, plans, self._segmenter, self._settings):
                self.how.update(how)
                yield label_map
            self._on_image(start + len(names), len(data))

    def _plan(self, name: str, drawn: NDArray[np.uint8], opinion: Opinion | None, round_: int) -> PlannedMask:
        rng = np.random.default_rng(seed_of("refine", self._seed, name, round_))
        weak = drawn if self._seeds is None else self._seeds(name)
        if opinion is None:
            return plan_weak(weak, rng, self._settings)
        sure = np.where(opinion.confidence >= self._threshold, opinion.labels, IGNORE).astype(np.uint8)
        return plan_weak(weak, rng, self._settings, sure if self._step0 else None, opinion.confidence)
