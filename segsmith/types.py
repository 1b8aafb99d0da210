"""Data types that several packages share: arrays, requests to image models and their results, counts and scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""(H, W, 3) RGB."""
Mask = NDArray[np.bool_]
"""(H, W)."""
LabelMap = NDArray[np.uint8]
"""(H, W): 0 background, 1.. classes, `IGNORE` unknown."""
Vectors = NDArray[np.float32]
"""(N, D), usually unit vectors."""

IGNORE = 255
"""Value of a pixel in a label map whose class is unknown (PASCAL VOC's convention)."""


MEASURED_TOGETHER = 32
"""Number of images that the judge embeds and measures in one step (ours)."""
SIMULATOR = "segsmith-simulator"
"""Start of the simulator's name in the provenance of its images."""
SEEDS_PER_PROMPT = 1000
"""Number of seeds reserved for each prompt; its first seed is a multiple of this."""


@dataclass(frozen=True)
class ImageRequest:
    """One image to draw. Images of the same prompt differ only in their `seed`.

    Seeds of one prompt are consecutive (`first, first + 1, ...`), `first` a multiple of `SEEDS_PER_PROMPT`.
    """

    prompt: str
    seed: int


NoImage = Literal["filtered", "quota", "refused", "unsafe"]
"""Why a request has no image.

"filtered": its preview was rejected; "quota": the class has enough images; "refused": the provider refused the
prompt; "unsafe": the model's safety checker rejected the image.
"""


@dataclass(frozen=True)
class Drawn:
    """The result of one request of a batch."""

    index: int
    """Index of the request in the batch."""
    image: Image | None
    reason: NoImage | None = None
    """Why there is no image."""
    detail: str = ""
    """The backend's message about the reason."""
    usd: float = 0.0
    """US dollars."""


Gate = Callable[[Sequence[int], Sequence[Image]], Sequence[NoImage | None]]
"""Takes indices of requests and previews of their unfinished images; returns a reason for each image to stop."""


@dataclass(frozen=True)
class MaskCandidates:
    """SAM's candidates for one set of points: (K, H, W) bool masks and (K,) predicted IoUs in [0, 1]."""

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class PatchScores:
    """Scores of a multi-label patch classifier for N images and C classes.

    `maps` is (N, C, h, w) float32 in [0, 1], one score per patch; `probabilities` is (N, C) float32.
    """

    maps: NDArray[np.float32]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class Sighting:
    """An object that a witness located.

    `score` is in [0, 1]; `box_xyxy` is (x0, y0, x1, y1) as fractions of the image's width and height.
    """

    class_name: str
    score: float
    box_xyxy: tuple[float, float, float, float]


@dataclass(frozen=True)
class Testimony:
    """What a witness says about one image. Each field covers the classes that the witness was asked about."""

    scores: Mapping[str, float]
    """Class -> how sure it is that the class is there, in [0, 1]; its own scale."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Class -> number of objects; empty for a witness that does not count."""
    sightings: tuple[Sighting, ...] = ()
    """Empty for a witness that locates nothing."""
    maps: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    """Class -> (h, w) where it sees it, from 0 to 255 at its maximum; only of classes it sees, and of any size."""


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
    """Class, "background" included, -> IoU; None for a class that occurs in neither truth nor prediction."""
    pixel_accuracy: float
    classes: tuple[str, ...]
    """In the order of the rows and columns of `confusion`."""
    examples: tuple[str, ...] = ()
    """Ids of images whose predictions are kept in the run folder."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Pixel counts: rows are true classes, columns predicted ones."""
