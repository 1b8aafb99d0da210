"""What all `PointSegmenter`s share: batches of images and of point sets, halved where memory is too small."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from segsmith.device_memory import Batches
from segsmith.types import Image, MaskCandidates

MAX_PIXELS = 1 << 26
"""Maximum number of mask pixels decoded in one call (256 MB of float32)."""
MAX_POINT_SETS = 64


Found = TypeVar("Found")
PointSet = NDArray[np.float32]
"""(N, 2) foreground points as (x, y) pixels."""


@dataclass(frozen=True)
class MaskLogits:
    """What a decoder says about one point set: (M, H, W) logits, above 0 inside the mask, and (M,) predicted IoUs."""

    logits: torch.Tensor
    scores: torch.Tensor


class LogitsSource(Protocol):
    """A `PointSegmenter` that also gives the logits of its masks."""

    @property
    def name(self) -> str: ...

    def logits_many(
        self, images: Sequence[Image], point_sets: Sequence[Sequence[NDArray[np.float32]]]
    ) -> list[list[MaskLogits]]:
        """`PointSegmenter.segment_many` before the threshold; the tensors are in main memory."""
        ...


class PointBatches(ABC):
    """A `PointSegmenter` whose subclass embeds a batch of images and decodes point sets of equal length."""

    def __init__(self, name: str, side: int, candidates: int) -> None:
        """`side` is that of the model's square input in pixels; it gives `candidates` masks per point set."""
        self.name = name
        self.side = side
        self._candidates = candidates
        self._embedding = Batches(max(1, min(16, (1024 // side) ** 2)), f"one image in SAM {name}", _SMALLER)
        self._decoding = Batches(MAX_POINT_SETS, f"one point set in SAM {name}", _SMALLER)

    @abstractmethod
    def _embed(self, images: Sequence[Image]) -> list[Any]:
        """What `_decode_equal` needs of each image."""

    @abstractmethod
    def _decode_equal(
        self, embedded: Any, points: NDArray[np.float32], size: tuple[int, int]
    ) -> list[MaskLogits]:
        """Decode (S, N, 2) points, as (x, y) pixels of an image of `size` (H, W), in one call."""

    def segment(self, image: Image, point_sets: Sequence[NDArray[np.float32]]) -> list[MaskCandidates]:
        """Candidates per point set, at the size of `image`; an empty list without point sets.

        Each set is (N, 2) foreground points as (x, y) pixels of `image`, N >= 1; sets may differ in N.
        """
        return self.segment_many([image], [point_sets])[0]

    def segment_many(
        self,
        images: Sequence[Image],
        point_sets: Sequence[Sequence[NDArray[np.float32]]],
        images_per_batch: int | None = None,
    ) -> list[list[MaskCandidates]]:
        """`segment` for several images of any sizes, embedded `images_per_batch` at a time.

        By default, as many as fit into the area of one 1024 x 1024 input, at most 16: one for an official model.
        A batch that does not fit is halved. Raises `SegsmithError` if memory is too small for one image.
        """
        return self._predict(images, point_sets, candidates_of, images_per_batch)

    def logits_many(
        self, images: Sequence[Image], point_sets: Sequence[Sequence[NDArray[np.float32]]]
    ) -> list[list[MaskLogits]]:
        """See `LogitsSource.logits_many`."""
        return self._predict(images, point_sets, _in_main_memory)

    @torch.inference_mode()
    def _predict(
        self,
        images: Sequence[Image],
        point_sets: Sequence[Sequence[NDArray[np.float32]]],
        finish: Callable[[MaskLogits], Found],
        images_per_batch: int | None = None,
    ) -> list[list[Found]]:
        """What `finish` makes of the logits of each point set."""
        embedding = self._embedding
        if images_per_batch:
            embedding = replace(embedding, size=images_per_batch)
        results: list[list[Found]] = [[] for _ in images]
        wanted = [i for i, sets in enumerate(point_sets) if len(sets)]

        def embed(start: int, stop: int) -> list[tuple[int, Any]]:
            batch = wanted[start:stop]
            return list(zip(batch, self._embed([images[i] for i in batch]), strict=True))

        for batch in embedding.run(len(wanted), embed):
            for i, embedded in batch:
                size = (images[i].shape[0], images[i].shape[1])
                results[i] = self._decode(embedded, point_sets[i], size, finish)
        return results

    def _decode(
        self,
        embedded: Any,
        point_sets: Sequence[NDArray[np.float32]],
        size: tuple[int, int],
        finish: Callable[[MaskLogits], Found],
    ) -> list[Found]:
        """Decode the sets of one image.

        Sets of equal length share a call. Padding shorter sets with "not a point" tokens would save calls, but
        these tokens take part in attention, so a mask would depend on the other sets.
        """
        by_length: dict[int, list[int]] = {}
        for index, points in enumerate(point_sets):
            by_length.setdefault(len(points), []).append(index)
        fits = max(1, MAX_PIXELS // (self._candidates * size[0] * size[1]))
        decoding = replace(self._decoding, size=min(self._decoding.size, fits))
        found: dict[int, Found] = {}
        for indices in by_length.values():

            def decode(start: int, stop: int, indices: list[int] = indices) -> dict[int, Found]:
                part = indices[start:stop]
                sets = np.stack([point_sets[i] for i in part])
                decoded = self._decode_equal(embedded, sets, size)
                return dict(zip(part, map(finish, decoded), strict=True))

            before = decoding.size
            for masks in decoding.run(len(indices), decode):
                found.update(masks)
            if decoding.size < before:
                self._decoding.size = decoding.size
        return [found[i] for i in range(len(point_sets))]


class LogitsChanger(ABC):
    """A `LogitsSource` that changes what another one finds, image by image.

    Of a large image, few sets of points are decoded together, so memory does not grow with their number.
    """

    def __init__(self, sam: LogitsSource) -> None:
        self.name = sam.name
        self._sam = sam

    def segment(self, image: Image, point_sets: Sequence[PointSet]) -> list[MaskCandidates]:
        """See `PointSegmenter.segment`."""
        return self.segment_many([image], [point_sets])[0]

    def segment_many(
        self, images: Sequence[Image], point_sets: Sequence[Sequence[PointSet]]
    ) -> list[list[MaskCandidates]]:
        """See `PointSegmenter.segment_many`; images may differ in size."""
        return [
            list(map(candidates_of, self._logits(image, sets)))
            for image, sets in zip(images, point_sets, strict=True)
        ]

    def logits_many(
        self, images: Sequence[Image], point_sets: Sequence[Sequence[PointSet]]
    ) -> list[list[MaskLogits]]:
        """See `LogitsSource.logits_many`."""
        return [list(self._logits(image, sets)) for image, sets in zip(images, point_sets, strict=True)]

    def _logits(self, image: Image, point_sets: Sequence[PointSet]) -> Iterator[MaskLogits]:
        for part in _chunks_of(image, point_sets):
            yield from self._changed(image, part)

    @abstractmethod
    def _changed(self, image: Image, point_sets: Sequence[PointSet]) -> Iterator[MaskLogits]:
        """The logits of each set; there are few of them."""


def _chunks_of(image: Image, point_sets: Sequence[PointSet]) -> Iterator[Sequence[PointSet]]:
    """The sets in parts of so many that their logits, of four candidates each, have at most `MAX_PIXELS`."""
    fits = max(1, MAX_PIXELS // (4 * image.shape[0] * image.shape[1]))
    for start in range(0, len(point_sets), fits):
        yield point_sets[start : start + fits]


def logits_of(logits: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[MaskLogits]:
    """The results of S point sets, from (S, M, H, W) logits with any threshold, and (S, M) predicted IoUs."""
    pairs = zip(logits - threshold, scores.clamp(0, 1).float(), strict=True)
    return [MaskLogits(mask, iou) for mask, iou in pairs]


def candidates_of(found: MaskLogits) -> MaskCandidates:
    """The masks: where the logits are above 0."""
    return MaskCandidates((found.logits > 0).cpu().numpy(), found.scores.cpu().numpy())


def _in_main_memory(found: MaskLogits) -> MaskLogits:
    return MaskLogits(found.logits.float().cpu(), found.scores.cpu())


_SMALLER = "Stop other programs on the GPU, or set labeler.sam to a smaller model, e.g. sam_vit_b."
