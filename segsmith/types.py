"""Data types that several packages share: arrays with their shapes and ranges, and what image models exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


Mask = NDArray[np.bool_]


LabelMap = NDArray[np.uint8]


Vectors = NDArray[np.float32]


IGNORE = 255
"""Value of a pixel in a label map whose class is unknown (PASCAL VOC's convention)."""


SEEDS_PER_PROMPT = 1000
"""Room for the seeds of one prompt; each prompt's first seed is a multiple of it."""


@dataclass(frozen=True)
class ImageRequest:
    """One picture to draw. `seed` alone decides between pictures of the same prompt.

    Seeds of one prompt are consecutive (`first, first + 1, ...`), `first` a multiple of `SEEDS_PER_PROMPT`.
    """

    prompt: str
    seed: int


NoImage = Literal["filtered", "quota", "refused", "unsafe"]
"""Why a request has no image: a hopeless preview, a class that has enough, a provider's or the model's own veto."""


@dataclass(frozen=True)
class Drawn:
    """What became of one request of a batch."""

    index: int
    """Place of the request in the batch."""
    image: Image | None
    reason: NoImage | None = None
    """Set where there is no image."""
    detail: str = ""
    """The backend's own words about the reason."""
    usd: float = 0.0
    """What it cost."""


Gate = Callable[[Sequence[int], Sequence[Image]], Sequence[NoImage | None]]
"""Looks at previews of unfinished pictures, given with the places of their requests; a reason drops one."""


@dataclass(frozen=True)
class MaskCandidates:
    """What SAM offers for one set of points: (K, H, W) bool masks and (K,) predicted IoUs in [0, 1]."""

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class PatchScores:
    """A multi-label patch classifier's view of N images and C classes.

    `maps` is (N, C, h, w) float32 in [0, 1], one score per patch; `probabilities` is (N, C) float32.
    """

    maps: NDArray[np.float32]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class ClassTally:
    """Counts of one class in one run. An image counts for the class that its prompt was written for."""

    admitted: int = 0
    """Prompts."""
    drawn: int = 0
    judged: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Evaluation:
    """A segmenter's score on one set of images; IoUs and accuracy are in [0, 1]."""

    miou: float
    iou: Mapping[str, float | None]
    """Class, "background" included, -> IoU; None for a class that neither truth nor prediction shows."""
    pixel_accuracy: float
    classes: tuple[str, ...]
    """In the order of the rows and columns of `confusion`."""
    examples: tuple[str, ...] = ()
    """Ids of images whose predictions are kept in the run folder."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Pixels: rows are true classes, columns predicted ones."""
