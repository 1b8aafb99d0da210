"""The order in which a training sees its images."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from segsmith.ids import seed_of

RATE_EPOCHS = 4
"""Epochs over which `EpochSampler.rates` averages."""


class EpochSampler(Sampler[int]):
    """Indices of one epoch, shuffled by (seed, epoch): `batches[epoch]` full batches.

    An epoch that shows more images than there are shows each of them once before it repeats any, in a new order.
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
        batches: Sequence[int],
        real: Sequence[bool] = (),
        real_share: float = 0.5,
        labels: Sequence[Collection[int]] = (),
    ) -> None:
        self.epoch = 0
        self.batch_size = batch_size
        self._seed = seed
        self._labels = labels
        self._length = length
        self._counts = [n * batch_size for n in batches]
        kinds = [[i for i in range(length) if real[i] is kind] for kind in (True, False)] if real else []
        self._kinds: list[Sequence[int]] = [range(length)]
        if all(kinds) and kinds:
            self._kinds = list(kinds)
            self._share = max(real_share, len(kinds[0]) / length)

    def __len__(self) -> int:
        return self._counts[self.epoch]

    @property
    def rates(self) -> list[float]:
        """How often each image is drawn per epoch, averaged over the first `RATE_EPOCHS` epochs."""
        if len(self._kinds) == 1 and self._counts[0] <= self._length:  # all are equally likely
            return [self._counts[0] / self._length] * self._length
        epochs = [Counter(self._drawn(epoch)[0]) for epoch in range(min(RATE_EPOCHS, len(self._counts)))]
        return [sum(counts[i] for counts in epochs) / len(epochs) for i in range(self._length)]

    def __iter__(self) -> Iterator[int]:
        drawn, generator = self._drawn(self.epoch)
        order = range(len(self)) if len(self._kinds) == 1 else torch.randperm(len(self), generator=generator)
        return iter([drawn[i] for i in order])

    def _drawn(self, epoch: int) -> tuple[list[int], torch.Generator]:
        """The indices of an epoch, kind by kind, and the random generator after drawing them."""
        generator = torch.Generator().manual_seed(seed_of("order", self._seed, epoch))
        total = self._counts[epoch]
        counts = [total]
        if len(self._kinds) > 1:
            counts = [wanted := round(self._share * total), total - wanted]
        kinds = zip(self._kinds, counts, strict=True)
        return [i for kind, count in kinds for i in self._spread(kind, count, generator)], generator

    def _spread(self, kind: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
        order = [kind[i] for i in torch.randperm(len(kind), generator=generator).tolist()]
        known = [i for i in order if self._labels and self._labels[i]]
        if len(self._kinds) > 1 and count > len(order) and known:
            return order + self._evened(known, count - len(order))
        while len(order) < count:
            order += [kind[i] for i in torch.randperm(len(kind), generator=generator).tolist()]
        return order[:count]

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
