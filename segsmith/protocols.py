"""The small protocols behind which every outside model stands.

Agents import this file and never a model library, so a simulator, a mini checkpoint and the big model
are interchangeable. Arrays are numpy; images are (H, W, 3) uint8 RGB unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from segsmith.types import Drawn, Gate, Image, ImageRequest, MaskCandidates, PatchScores, Vectors

Reply = TypeVar("Reply", bound=BaseModel)


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
