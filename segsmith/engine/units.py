"""Units of work: a shard of images and what is to be done with it, small enough to be sent anywhere.

A unit holds ids, texts and numbers, never pixels. Its id is a hash of everything that its result depends on, so the
same work has the same id in every session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from segsmith.ids import make_id

Kind = Literal["draw", "regions", "masks"]


@dataclass(frozen=True)
class DrawItem:
    """One image to draw and measure."""

    id: str
    prompt: str
    seed: int
    sha256: str = ""
    """Of the image's file in the run folder, where an earlier session wrote it; "" where it must be drawn."""


@dataclass(frozen=True)
class DrawUnit:
    """Images to draw, to write, and to measure with CLIP as one chunk."""

    id: str
    items: tuple[DrawItem, ...]
    batch_size: int
    """Images drawn at once, at most."""
    kind: Literal["draw"] = "draw"


@dataclass(frozen=True)
class MaskItem:
    """One accepted image."""

    id: str
    sha256: str
    """Of its file."""
    labels: tuple[str, ...]
    """Classes that its mask shows."""
    doubted: tuple[str, ...] = ()
    """Classes that are 255 in its mask, because the sources do not agree whether they are there."""


@dataclass(frozen=True)
class MaskUnit:
    """Accepted images that go through SAM together, to get masks; or to calibrate the region check (`regions`)."""

    id: str
    items: tuple[MaskItem, ...]
    patch_scores: str
    """SHA-256 of ``patch_scores.npz``."""
    centre: tuple[float, ...] = ()
    """Of the region check; () where no region is doubted."""
    kind: Literal["masks", "regions"] = "masks"


Unit = DrawUnit | MaskUnit


def unit_id(kind: Kind, *depends_on: object, images: Sequence[str]) -> str:
    """A short id of a unit; `depends_on` is whatever the result depends on beside the images."""
    return make_id("u", kind, *depends_on, *images)
