"""The small protocols behind which every outside model stands.

Agents import this file and never a model library, so a simulator, a mini checkpoint and the big model
are interchangeable. Arrays are numpy; images are (H, W, 3) uint8 RGB unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
LabelMap = NDArray[np.uint8]
Vectors = NDArray[np.float32]
Reply = TypeVar("Reply", bound=BaseModel)

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


def unwatched(share: float) -> None:
    """Default of `on_step`: nobody listens."""


@runtime_checkable
class ImageBackend(Protocol):
    """Draws pictures from text."""

    name: str
    """Model id, revision and settings, kept with every image."""
    usd_per_image: float
    """Price of a picture; 0 on one's own machine."""

    def draw(
        self,
        requests: Sequence[ImageRequest],
        gate: Gate | None = None,
        on_step: Callable[[float], None] = unwatched,
    ) -> Iterator[Drawn]:
        """What became of each request, each once, as soon as it is known.

        A local backend gives the same image for the same request, whatever else is in the batch. `gate` may
        drop pictures part-way, where the backend can show a preview. `on_step` hears the share of the batch
        that is done, in (0, 1], and may raise `Cancelled`; what is paid for is handed over before that leaves.
        Raises `OutOfMemory` before anything was handed over, or `SegsmithError`.
        """
        ...

    def close(self) -> None:
        """Free the device; the next `draw` opens the model again."""
        ...


@runtime_checkable
class ImageTextEncoder(Protocol):
    """A CLIP-like pair of towers."""

    name: str
    logit_scale: float
    """Multiplies cosines before a softmax."""

    def embed_images(self, images: Sequence[Image]) -> Vectors:
        """(N, D) float32, unit length."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """(N, D) float32, unit length."""
        ...

    def fits(self, text: str) -> bool:
        """Does the text fit the encoder's token limit without being cut?"""
        ...


@dataclass(frozen=True)
class MaskCandidates:
    """What SAM offers for one set of points: (K, H, W) bool masks and (K,) predicted IoUs in [0, 1]."""

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]


@runtime_checkable
class PointSegmenter(Protocol):
    """A SAM-like promptable segmenter."""

    name: str

    def segment(self, image: Image, point_sets: Sequence[NDArray[np.float32]]) -> list[MaskCandidates]:
        """Candidates per point set; each set is (N, 2) foreground points as (x, y) pixels of `image`.

        The image is embedded once, and all point sets are decoded in batches.
        """
        ...

    def segment_many(
        self, images: Sequence[Image], point_sets: Sequence[Sequence[NDArray[np.float32]]]
    ) -> list[list[MaskCandidates]]:
        """`segment` for several images of one size, embedded in batches."""
        ...


@dataclass(frozen=True)
class PatchScores:
    """A multi-label patch classifier's view of N images and C classes.

    `maps` is (N, C, h, w) float32 in [0, 1], one score per patch; `probabilities` is (N, C) float32.
    """

    maps: NDArray[np.float32]
    probabilities: NDArray[np.float32]


@runtime_checkable
class PatchClassifier(Protocol):
    """A ViT whose patches are scored per class (SynthSeg-Agents Fig. 4; top-k pooling after TKP-PCL)."""

    name: str

    def out_of_fold(
        self, images: Sequence[Image], labels: NDArray[np.float32], groups: Sequence[str]
    ) -> PatchScores:
        """Train on folds and predict each image by a model that saw no image of its group.

        `labels` is (N, C) float32 in [0, 1]; images with one group (a prompt) share a fold.
        """
        ...

    def taught(
        self, images: Sequence[Image], labels: NDArray[np.float32]
    ) -> Callable[[Sequence[Image]], NDArray[np.float32]]:
        """Train one model on all of these; what it returns gives (M, C) probabilities of other images."""
        ...


@runtime_checkable
class ChatModel(Protocol):
    """A language model that answers in a schema."""

    name: str

    def ask(self, system: str, user: str, schema: type[Reply], *, seed: int) -> Reply:
        """A reply that validates against `schema`.

        Raises `BadReply` when every bounded retry failed, `SegsmithError` when the server is gone.
        """
        ...


class OutOfMemory(Exception):
    """A backend's device ran out of memory; the same work in smaller batches may fit."""


class Cancelled(Exception):
    """The person in front of the run stopped it; the run folder is whole."""


class BadReply(Exception):
    """The model answered, but never in the schema; counted by the caller, never shown as data."""

    reason = "bad_reply"
    """Under which the caller counts it."""
