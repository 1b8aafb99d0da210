"""Protocols for all external models.

Agents import this file and never a model library, so the simulator, the mini checkpoints and full-size models
are interchangeable. Arrays are numpy; images are (H, W, 3) uint8 RGB unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from segsmith.types import Drawn, Gate, Image, ImageRequest, MaskCandidates, PatchScores, Testimony, Vectors

Reply = TypeVar("Reply", bound=BaseModel)
OnMaps = Callable[[NDArray[np.int64], NDArray[np.float32]], None]
"""Takes indices of B images and their (B, C, h, w) maps."""


def unwatched(share: float) -> None:
    """Default of `on_step`; does nothing."""


@runtime_checkable
class ImageBackend(Protocol):
    """Draws images from text."""

    name: str
    """Model id, revision and settings, recorded with every image."""

    @property
    def usd_per_image(self) -> float:
        """Price of one image in US dollars; 0 for a local model."""

    def draw(
        self,
        requests: Sequence[ImageRequest],
        gate: Gate | None = None,
        on_step: Callable[[float], None] = unwatched,
    ) -> Iterator[Drawn]:
        """Yield one result per request, in any order, as soon as it is known.

        A local backend draws the same image for the same request, whatever else is in the batch. If the backend
        can show previews, `gate` may stop images before they are finished. `on_step` is called with the share
        of the batch completed, in (0, 1], and may raise `Cancelled`, which propagates after all paid images have
        been yielded. Raises `OutOfMemory`, but only before the first result, or `SegsmithError`.
        """
        ...

    def close(self) -> None:
        """Free the device; the next `draw` reopens the model."""
        ...


@runtime_checkable
class ImageMixtureBackend(ImageBackend, Protocol):
    """An image backend of several models. It draws fastest when requests of the same model follow each other."""

    def model_of(self, request: ImageRequest) -> str:
        """The name recorded with the image of `request`; it depends on the prompt and the seed only."""
        ...


@runtime_checkable
class ImageTextEncoder(Protocol):
    """A CLIP-like pair of image and text encoders."""

    name: str
    logit_scale: float
    """Factor that multiplies cosines before a softmax."""

    def embed_images(self, images: Sequence[Image]) -> Vectors:
        """(N, D) float32, unit length."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """(N, D) float32, unit length."""
        ...

    def fits(self, text: str) -> bool:
        """Whether the text fits the encoder's token limit without truncation."""
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
        self,
        images: Sequence[Image],
        labels: NDArray[np.float32],
        groups: Sequence[str],
        on_maps: OnMaps | None = None,
    ) -> PatchScores:
        """Predict each image with a model trained on folds that contain no image of its group.

        `labels` is (N, C) float32 in [0, 1]; images of the same group (a prompt) share a fold. `images` may read an
        image whenever it is indexed; only a batch of them is kept. With `on_maps`, maps are passed to it in batches,
        and those of the result are empty.
        """
        ...

    def features(self, batches: Iterable[Sequence[Image]], count: int) -> Any:
        """What `teach` needs to know of `count` images, in batches; it may be large, and is only passed to `teach`.

        `features`, `teach` and `scorer` are the steps of `out_of_fold`. With the batches of `plan_folds` they give
        the same scores, wherever each of them runs.
        """
        ...

    def teach(self, features: Any, labels: NDArray[np.float32], kept: NDArray[np.int64], fold: int) -> bytes:
        """The weights of a new model, trained on the rows `kept` of the features and of (N, C) labels in [0, 1]."""
        ...

    def scorer(self, weights: bytes) -> Callable[[Sequence[Image]], PatchScores]:
        """The model with weights of `teach`; the returned function scores a batch of images."""
        ...

    def taught(
        self, images: Sequence[Image], labels: NDArray[np.float32]
    ) -> Callable[[Sequence[Image]], NDArray[np.float32]]:
        """Train one model on all images; the returned function gives (M, C) probabilities for M other images."""
        ...


@runtime_checkable
class Witness(Protocol):
    """A model that says which classes of the list an image shows, independently of the prompt and of CLIP."""

    name: str
    """Model and settings, recorded with what it says."""

    def testify(self, images: Sequence[Image], ids: Sequence[str]) -> list[Testimony | None]:
        """What it says about each image, in order; None where it gave no usable answer.

        `ids` are the images' ids in the ledger. Only the simulator's stand-ins use them.
        """
        ...


@runtime_checkable
class Releasable(Protocol):
    """A model that can leave the GPU and comes back when it is used again."""

    def release(self) -> None:
        """Free the GPU's memory."""
        ...


@runtime_checkable
class LocalService(Releasable, Protocol):
    """A model behind a server that segsmith starts."""

    def start(self) -> None:
        """Start the server now."""
        ...


@runtime_checkable
class ChatModel(Protocol):
    """A language model whose replies follow a schema."""

    name: str

    def ask(
        self, system: str, user: str, schema: type[Reply], *, seed: int, images: Sequence[Image] = ()
    ) -> Reply:
        """A reply that validates against `schema`; `images` follow the text of the user's message.

        Raises `BadReply` if all retries fail, and `SegsmithError` if the server does not answer.
        """
        ...
