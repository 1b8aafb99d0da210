"""Whether SAM helps with a dataset, measured on drawn labels that it is not shown; no truth is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.objects import Piece, components
from segsmith.datasets.voc_folder import VocFolder
from segsmith.ids import seed_of
from segsmith.protocols import PointSegmenter
from segsmith.segmentation.masks import MaskSettings, outline
from segsmith.segmentation.weak_refiner import plan_weak
from segsmith.types import IGNORE

IMAGES = 48
"""Images on which SAM is tried, spread over the training split (ours)."""
HELD_OUT = 1 / 3
"""Share of the drawn components that SAM is not shown at all (ours)."""
SPLIT_PX = 8
"""Of other components with at least this many pixels SAM is shown one half (ours)."""
ENOUGH = 12
"""Masks that must be selected before SAM is judged at all (ours)."""


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


def try_sam(data: VocFolder, segmenter: PointSegmenter, settings: MaskSettings, seed: int) -> SamTrial:
    """Hold out drawn components, and halves of others, on some images of a split; compare SAM's masks with all."""
    masks = crossing = partial = 0
    for index in range(0, len(data), max(1, len(data) // IMAGES)):
        image, drawn = data.raw(index)
        rng = np.random.default_rng(seed_of("sam trial", seed, data.ids[index]))
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
        (found,) = outline([image], [plan_weak(shown, rng, settings)], segmenter, settings)
        masks += len(found.regions)
        for region in found.regions:
            mask, value = region.full(found.size), region.class_index + 1
            if any(v != value and _covers(mask, piece, piece.crop()) for v, piece in pieces):
                crossing += 1
            elif any(
                v == value and _covers(mask, piece, seen) and not _covers(mask, piece, hidden)
                for v, piece, seen, hidden in halves
            ):
                partial += 1
    return SamTrial(masks, crossing, partial)


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
