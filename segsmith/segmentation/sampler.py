"""The order in which a training sees its images."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from segsmith.ids import seed_of

RATE_EPOCHS = 4
"""Epochs over which `EpochSampler.rates` averages."""


class EpochSampler(Sampler[int]):
    """Indices of one epoch, shuffled by (seed, epoch) and repeated from the start until every batch is full.

    Full batches also spare batch normalisation a batch of one image, which it cannot normalise. With both real
    and generated images, at least `real_share` of an epoch is real, and each kind is drawn as evenly as possible.
    Where real images are repeated, `labels` (the class indices of every image) decide which: each repetition
    goes to the class seen least so far, because generated images are added to even out the classes.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        real: Sequence[bool] = (),
        real_share: float = 0.5,
        labels: Sequence[Collection[int]] = (),
    ) -> None:
        self.epoch = 0
        self._seed = seed
        self._labels = labels
        self._length = length
        self._total = math.ceil(length / batch_size) * batch_size
        kinds = [[i for i in range(length) if real[i] is kind] for kind in (True, False)] if real else []
        self._parts: list[tuple[Sequence[int], int]] = [(range(length), self._total)]
        if all(kinds) and kinds:
            wanted = round(max(real_share, len(kinds[0]) / length) * self._total)
            self._parts = list(zip(kinds, (wanted, self._total - wanted), strict=True))

    def __len__(self) -> int:
        return self._total

    @property
    def rates(self) -> list[float]:
        """How often each image is drawn per epoch, averaged over `RATE_EPOCHS` epochs."""
        epochs = [Counter(self._drawn(epoch)[0]) for epoch in range(RATE_EPOCHS)]
        return [sum(counts[i] for counts in epochs) / RATE_EPOCHS for i in range(self._length)]

    def __iter__(self) -> Iterator[int]:
        drawn, generator = self._drawn(self.epoch)
        order = (
            range(self._total) if len(self._parts) == 1 else torch.randperm(self._total, generator=generator)
        )
        return iter([drawn[i] for i in order])

    def _drawn(self, epoch: int) -> tuple[list[int], torch.Generator]:
        """The indices of an epoch, kind by kind, and the random generator after drawing them."""
        generator = torch.Generator().manual_seed(seed_of("order", self._seed, epoch))
        return [i for part, count in self._parts for i in self._spread(part, count, generator)], generator

    def _spread(self, part: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
        order = [part[i] for i in torch.randperm(len(part), generator=generator).tolist()]
        known = [i for i in order if self._labels and self._labels[i]]
        if len(self._parts) == 1 or count <= len(order) or not known:
            return [order[i % len(order)] for i in range(count)]
        return order + self._evened(known, count - len(order))

    def _evened(self, images: Sequence[int], count: int) -> list[int]:
        """`count` repetitions of `images`, each an image of the class seen least so far, in turns."""
        queues: dict[int, deque[int]] = {}
        for image in images:
            for name in self._labels[image]:
                queues.setdefault(name, deque()).append(image)
        seen = Counter({name: len(queue) for name, queue in queues.items()})
        drawn = []
        for _ in range(count):
            poorest = min(queues, key=lambda name: (seen[name], name))
            queues[poorest].rotate(-1)
            drawn.append(queues[poorest][-1])
            seen.update(self._labels[drawn[-1]])
        return drawn
