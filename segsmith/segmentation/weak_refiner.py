"""Refines weak labels to dense ones: SeSAM's steps 0 to 3 for points, scribbles, coarse polygons or image labels.

The steps are those of `segsmith.segmentation.masks`, but the seeds are what users have drawn. For image labels, the
seeds come from a classifier's patch scores, as there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.objects import components_by_class
from segsmith.datasets.voc_folder import VocFolder
from segsmith.errors import SegsmithError
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
from segsmith.segmentation.sources import Prediction
from segsmith.types import IGNORE, Image

BACKGROUND = -1
"""Key of the drawn background in `PlannedMask.seeds`: it counts as another class's seed, but gets no mask."""
BATCH = 16
"""Number of images given to SAM at a time."""


def plan_weak(
    weak: NDArray[np.uint8],
    rng: np.random.Generator,
    settings: MaskSettings,
    step0: NDArray[np.uint8] | None = None,
    confidence: NDArray[np.float32] | None = None,
) -> PlannedMask:
    """Components and points of an (H, W) weak label map (SeSAM, steps 1 and 2).

    `weak` has index + 1 for class indices, 0 for background and 255 for unlabelled. `step0` is an (H, W) label map of
    confident predictions, 255 elsewhere: it labels only unlabelled pixels, before components are found (SeSAM,
    step 0). Components without any drawn pixel need at least `min_area_px` pixels; a single drawn pixel is enough
    for the others. `confidence` (H, W) is that of the predictions, for ``points_from = "confidence"``.
    """
    known = weak if step0 is None else np.where(weak == IGNORE, step0, weak)
    seeds = {int(v) - 1: known == v for v in np.unique(known) if v != IGNORE}
    plan = PlannedMask(weak.shape[:2], seeds)
    pieces = components_by_class(known)
    for index in seeds:
        if index != BACKGROUND:
            for piece in pieces[index + 1]:
                drawn = weak[piece.window] == index + 1
                if piece.area >= settings.min_area_px or (drawn & piece.crop()).any():
                    points = sample_points(piece, rng, settings, confidence)
                    plan.parts.append(Component(index, piece, points, 1.0))
    return plan


def refine_weak(
    images: Sequence[Image],
    drawn_maps: Sequence[NDArray[np.uint8]],
    plans: Sequence[PlannedMask],
    segmenter: PointSegmenter | None,
    settings: MaskSettings,
    background: bool = True,
) -> list[tuple[NDArray[np.uint8], dict[str, int]]]:
    """Dense (H, W) uint8 label maps, each with the number of its components by outcome (`Outlined.how`).

    Drawn labels never change. Elsewhere, pixels get the class of SAM's mask, and contested pixels are 255
    (`merge_masks`); without a segmenter, the seeds take the place of its masks. Other pixels are background unless
    they are in doubt: a component without a mask is an object of unknown extent, so its rejected candidates and its
    surroundings are 255 (`doubtful`). An image without drawn labels and components stays 255 everywhere, because it
    is not known to be empty. Without `background`, in data in which every pixel belongs to a class, all these pixels
    are 255.
    """
    return [
        dense_map(found, drawn, settings, background)
        for found, drawn in zip(outline(images, plans, segmenter, settings), drawn_maps, strict=True)
    ]


def dense_map(
    found: Outlined, drawn: NDArray[np.uint8], settings: MaskSettings, background: bool
) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """`refine_weak` for one image, whose regions are known."""
    label_map, how = merge_outlined(found, settings)
    return _settled(label_map, drawn, found, background), how


def _settled(
    label_map: NDArray[np.uint8], drawn: NDArray[np.uint8], found: Outlined, background: bool
) -> NDArray[np.uint8]:
    settled, known = label_map.copy(), drawn != IGNORE
    unlabelled = not (found.how or known.any())
    unknown = doubtful(found) | unlabelled if background else np.ones(found.size, dtype=bool)
    settled[unknown & (label_map == 0)] = IGNORE
    settled[known] = drawn[known]
    return settled


class WeakRefiner:
    """SeSAM on a whole split, for as many rounds as the trainer needs (`SamLabels`).

    `seeds` returns the (H, W) seeds of an image id if these are not the drawn labels, but a classifier's. Step 0 uses
    the teacher's predictions with a confidence of at least `threshold`. `on_image` is called with the number of
    finished images and of all images. `segmenter` and `background` are those of `refine_weak`. The same images,
    predictions and round give the same labels.
    """

    def __init__(
        self,
        segmenter: PointSegmenter | None,
        settings: MaskSettings,
        seed: int,
        *,
        threshold: float,
        step0: bool = True,
        seeds: Callable[[str], NDArray[np.uint8]] | None = None,
        background: bool = True,
        on_image: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.how: Counter[str] = Counter()
        """Number of components of the last round by outcome (`Outlined.how`)."""
        model = "no SAM" if segmenter is None else segmenter.name
        self.name = f"{model} {asdict(settings)} {seed} {threshold} {step0} {seeds is not None}"
        self.background = background
        self._segmenter, self._settings, self._seed = segmenter, settings, seed
        self._threshold, self._step0, self._seeds = threshold, step0, seeds
        self._on_image = on_image

    def label_maps(
        self, data: VocFolder, predictions: Iterable[Prediction] | None, round_: int
    ) -> Iterator[NDArray[np.uint8]]:
        """Dense (H, W) uint8 label maps of the split's images, in order."""
        self.how = Counter()
        taught: Iterator[Prediction | None] = repeat(None) if predictions is None else iter(predictions)
        for start in range(0, len(data), BATCH):
            names = data.ids[start : start + BATCH]
            images, drawn = zip(*(data.raw(start + i) for i in range(len(names))), strict=True)
            plans = [
                self._plan(name, weak, next(taught), round_) for name, weak in zip(names, drawn, strict=True)
            ]
            for label_map, how in refine_weak(
                images, drawn, plans, self._segmenter, self._settings, self.background
            ):
                self.how.update(how)
                yield label_map
            self._on_image(start + len(names), len(data))

    def _plan(
        self, name: str, drawn: NDArray[np.uint8], prediction: Prediction | None, round_: int
    ) -> PlannedMask:
        rng = np.random.default_rng(seed_of("refine", self._seed, name, round_))
        weak = drawn if self._seeds is None else self._seeds(name)
        if weak.shape != drawn.shape:
            raise SegsmithError(
                f"The seeds of image {name!r} have another size than the image.",
                "Delete seeds.zip to make them again.",
            )
        if prediction is None:
            return plan_weak(weak, rng, self._settings)
        confident = np.where(prediction.confidence >= self._threshold, prediction.labels, IGNORE).astype(
            np.uint8
        )
        return plan_weak(weak, rng, self._settings, confident if self._step0 else None, prediction.confidence)
