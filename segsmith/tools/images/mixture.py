"""A mixture of image models: each image is drawn by one of them, chosen by its prompt and seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from segsmith.config import ImagesConfig
from segsmith.errors import OutOfMemory, SegsmithError
from segsmith.protocols import ImageBackend, unwatched
from segsmith.types import SEEDS_PER_PROMPT, Drawn, Gate, Image, ImageRequest, NoImage


class ImageMixture:
    """An `ImageMixtureBackend`: several models, of which at most one is loaded."""

    usd_per_image = 0.0

    def __init__(self, config: ImagesConfig, open_backend: Callable[[ImagesConfig], ImageBackend]) -> None:
        """`open_backend` gives the backend of one model; it loads nothing before it draws."""
        self._parts = [open_backend(part) for part in config.parts]
        self._bounds = list(accumulate(entry.share for entry in config.models))
        self._loaded: int | None = None
        described = ",".join(
            f"{entry.share:g}*{part.name}" for entry, part in zip(config.models, self._parts, strict=True)
        )
        self.name = f"mixture/{hashlib.sha256(described.encode()).hexdigest()[:8]}"

    def model_of(self, request: ImageRequest) -> str:
        """Name of the backend that draws `request`."""
        return self._parts[self._part_of(request)].name

    def draw(
        self,
        requests: Sequence[ImageRequest],
        gate: Gate | None = None,
        on_step: Callable[[float], None] = unwatched,
    ) -> Iterator[Drawn]:
        """See `ImageBackend.draw`. The requests are drawn model by model, first those of the loaded model."""
        groups: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(self._part_of(request), []).append(index)
        done = 0
        for part in sorted(groups, key=lambda part: (part != self._loaded, part)):
            self._load_only(part)
            yield from self._draw_with(part, groups[part], requests, gate, on_step, done)
            done += len(groups[part])

    def close(self) -> None:
        """Free the device."""
        for part in self._parts:
            part.close()
        self._loaded = None

    def _draw_with(
        self,
        part: int,
        indices: Sequence[int],
        requests: Sequence[ImageRequest],
        gate: Gate | None,
        on_step: Callable[[float], None],
        done: int,
    ) -> Iterator[Drawn]:
        """Draw the requests at `indices`; `done` of the requests were drawn before by other models."""

        def own_gate(positions: Sequence[int], previews: Sequence[Image]) -> Sequence[NoImage | None]:
            assert gate is not None
            return gate([indices[position] for position in positions], previews)

        def own_step(share: float) -> None:
            on_step((done + share * len(indices)) / len(requests))

        own = [requests[index] for index in indices]
        try:
            for drawn in self._parts[part].draw(own, own_gate if gate else None, own_step):
                yield Drawn(indices[drawn.index], drawn.image, drawn.reason, drawn.detail, drawn.usd)
            return
        except OutOfMemory:
            if done == 0:
                raise
        if (
            len(indices) == 1
        ):  # results of other models were yielded, so `OutOfMemory` may no longer be raised
            raise SegsmithError(
                f"The device has too little memory for one image of {self._parts[part].name}.",
                "Set images.offload = 'sequential', a smaller images.size, or leave this model out of images.models.",
            )
        half = len(indices) // 2
        yield from self._draw_with(part, indices[:half], requests, gate, on_step, done)
        yield from self._draw_with(part, indices[half:], requests, gate, on_step, done + half)

    def _load_only(self, part: int) -> None:
        if self._loaded not in (None, part):
            assert self._loaded is not None
            self._parts[self._loaded].close()
        self._loaded = part

    def _part_of(self, request: ImageRequest) -> int:
        """The model of a request. A prompt starts at a random point; its seeds spread evenly from there.

        So every model's number of images is close to its share, and the images of one prompt come from
        several models.
        """
        first, number = divmod(request.seed, SEEDS_PER_PROMPT)
        digest = hashlib.sha256(f"{request.prompt}\x1f{first}".encode()).digest()
        start = int.from_bytes(digest[:8], "big") / 2**64
        point = (start + _radical_inverse(number)) % 1.0
        return next((i for i, bound in enumerate(self._bounds) if point < bound), len(self._bounds) - 1)


def _radical_inverse(number: int) -> float:
    """The binary digits of `number` mirrored at the point: 0, 1/2, 1/4, 3/4, ... (van der Corput's sequence)."""
    value, weight = 0.0, 0.5
    while number:
        value += weight * (number & 1)
        number >>= 1
        weight /= 2
    return value
