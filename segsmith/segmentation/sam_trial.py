"""Whether SAM helps with a dataset, measured on drawn labels that it is not shown; no truth is needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.objects import Piece, components
from segsmith.datasets.voc_folder import VocFolder
from segsmith.ids import seed_of
from segsmith.protocols import PointSegmenter
from segsmith.segmentation.masks import MaskSettings, outline
from segsmith.segmentation.weak_refiner import plan_weak
from segsmith.types import IGNORE, Image

IMAGES = 48
"""Images on which SAM is tried, spread over the training split (ours)."""
HELD_OUT = 1 / 3
"""Share of the drawn components that SAM is not shown at all (ours)."""
SPLIT_PX = 8
"""Of other components with at least this many pixels SAM is shown one half (ours)."""
PER_IMAGE = 8
"""Components of an image for which SAM is asked; more of the same image would tell little more (ours)."""
ENOUGH = 12
"""Masks that must be selected before SAM is judged at all (ours)."""
CERTAIN = 3.0
"""Standard errors between the agreement and the level asked for at which the trial ends early (ours)."""


@dataclass(frozen=True)
class SamTrial:
    """The masks that were selected for some images, compared with everything that is drawn on these images."""

    masks: int
    crossing: int
    """Masks that cover at least half of a drawn component of another class."""
    partial: int
    """Other masks that cover less than half of the part of their own component that was held out."""

    @property
    def agreement(self) -> float | None:
        """Share of the masks that are neither, in [0, 1]; None if there are too few masks to tell."""
        return 1 - (self.crossing + self.partial) / self.masks if self.masks >= ENOUGH else None

    def helps(self, level: float) -> bool:
        """Whether the agreement reaches `level`; True where there are too few masks to tell."""
        return self.agreement is None or self.agreement >= level

    def certain(self, level: float) -> bool:
        """Whether more masks would hardly change what `helps` says (Wilson's score interval)."""
        if self.agreement is None:
            return False
        return abs(self.agreement - level) > CERTAIN * sqrt(level * (1 - level) / self.masks)


def try_sam(
    data: VocFolder, segmenter: PointSegmenter, settings: MaskSettings, level: float, seed: int
) -> SamTrial:
    """Hold out drawn components, and halves of others, on some images of a split; compare SAM's masks with all.

    It ends when more images would hardly change whether the agreement reaches `level`, in [0, 1].
    """
    trial = SamTrial(0, 0, 0)
    indices = range(0, len(data), max(1, len(data) // IMAGES))
    for index in np.random.default_rng(seed_of("sam trial", seed)).permutation(indices).tolist():
        if trial.certain(level):
            break
        image, drawn = data.raw(index)
        rng = np.random.default_rng(seed_of("sam trial", seed, data.ids[index]))
        on_image = _try_image(image, drawn, segmenter, settings, rng)
        trial = SamTrial(
            trial.masks + on_image.masks, trial.crossing + on_image.crossing, trial.partial + on_image.partial
        )
    return trial


def _try_image(
    image: Image,
    drawn: NDArray[np.uint8],
    segmenter: PointSegmenter,
    settings: MaskSettings,
    rng: np.random.Generator,
) -> SamTrial:
    pieces = _drawn_pieces(drawn)
    shown = drawn.copy()
    halves = []
    for value, piece in pieces:
        crop = piece.crop()
        if rng.random() < HELD_OUT:
            shown[piece.window][crop] = IGNORE
        elif piece.area >= SPLIT_PX:
            hidden = _half(crop)
            shown[piece.window][hidden] = IGNORE
            halves.append((value, piece, crop & ~hidden, hidden))
    plan = plan_weak(shown, rng, settings)
    asked = sorted(rng.permutation(len(plan.parts))[:PER_IMAGE])
    (found,) = outline([image], [replace(plan, parts=[plan.parts[i] for i in asked])], segmenter, settings)
    crossing = partial = 0
    for region in found.regions:
        mask, value = region.full(found.size), region.class_index + 1
        if any(v != value and _covers(mask, piece, piece.crop()) for v, piece in pieces):
            crossing += 1
        elif any(
            v == value and _covers(mask, piece, seen) and not _covers(mask, piece, hidden)
            for v, piece, seen, hidden in halves
        ):
            partial += 1
    return SamTrial(len(found.regions), crossing, partial)


def _drawn_pieces(drawn: NDArray[np.uint8]) -> list[tuple[int, Piece]]:
    """(value, component) of everything that is drawn, background included."""
    values = np.unique(drawn[drawn != IGNORE]).tolist()
    return [(value, piece) for value in values for piece in components(drawn == value)]


def _half(crop: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The half of an (h, w) component's pixels that lies towards the end of its longer side."""
    at = np.indices(crop.shape)[int(crop.shape[1] > crop.shape[0])]
    return crop & (at > np.median(at[crop]))


def _covers(mask: NDArray[np.bool_], piece: Piece, part: NDArray[np.bool_]) -> bool:
    """Whether the (H, W) mask covers at least half of a `part` of the box of `piece`."""
    return bool(2 * mask[piece.window][part].sum() >= part.sum())
