"""Which images the page shows, chosen while all images of the run pass by once."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

from segsmith.report.drawn import DrawnImage

STRIP, ACCEPTED, REJECTED = 12, 12, 12
"""The largest number of images in each place of the page; the sheets hold those and others."""
CAP = 4_000
"""The largest number of images on the sheets; of more, a selection spread over classes and reasons."""

Item = TypeVar("Item")


class RoundRobin(Generic[Item]):
    """At most `limit` items of a stream: one of each key in turn, the items of a key in their order.

    Holds at most twice as many. An item is chosen if fewer than `limit` have an earlier turn, or the same turn and a
    key that came earlier. Later items only add to that number, so one that is beyond the limit stays there.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._groups: dict[str, list[Item]] = {}
        self._turns: float = float("inf")
        self._held = 0

    def add(self, key: str, item: Item) -> None:
        """Take the next item of the stream."""
        if key not in self._groups and len(self._groups) >= self._limit:
            return
        group = self._groups.setdefault(key, [])
        if len(group) >= self._turns:
            return
        group.append(item)
        self._held += 1
        if self._held > 2 * self._limit:
            self._trim()

    def chosen(self) -> list[Item]:
        """The items in the order of their turns."""
        return [item for item, _ in zip(self._in_turn(), range(self._limit), strict=False)]

    def _in_turn(self) -> Iterator[Item]:
        longest = max((len(group) for group in self._groups.values()), default=0)
        return (group[k] for k in range(longest) for group in self._groups.values() if k < len(group))

    def _trim(self) -> None:
        """Drop whole turns beyond the limit."""
        turns, held = 0, 0
        while held < self._limit:
            turns += 1
            held = sum(min(len(group), turns) for group in self._groups.values())
        for group in self._groups.values():
            del group[turns:]
        self._turns, self._held = turns, held


class Best(Generic[Item]):
    """Of each key of a stream the `limit` items with the highest scores, of equal ones the first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heaps: dict[str, list[tuple[float, int, Item]]] = {}
        self._order = count()

    def admits(self, key: str, score: float) -> bool:
        """Whether `add` would keep an item now."""
        heap = self._heaps.get(key, [])
        return len(heap) < self._limit or score > heap[0][0]

    def add(self, key: str, score: float, item: Item) -> None:
        """Take the next item of the stream."""
        if self.admits(key, score):
            heap = self._heaps.setdefault(key, [])
            heapq.heappush(heap, (score, -next(self._order), item))
            if len(heap) > self._limit:
                heapq.heappop(heap)

    def of(self, key: str) -> list[Item]:
        """The items of a key, the best first."""
        return [item for *_, item in sorted(self._heaps.get(key, ()), key=lambda e: e[:2], reverse=True)]

    def in_turn(self) -> list[Item]:
        """At most `limit` items over all keys: one of each in turn, the key of the best item first."""
        together = RoundRobin[Item](self._limit)
        held = ((key, entry) for key, heap in self._heaps.items() for entry in heap)
        for key, entry in sorted(held, key=lambda pair: pair[1][:2], reverse=True):
            together.add(key, entry[2])
        return together.chosen()


@dataclass(frozen=True)
class Chosen:
    """The judged images in each place of the page; those on the sheets include the others."""

    strip: Sequence[DrawnImage] = ()
    """Of each class in turn, those of which the judge is most certain; with masks where there are masks."""
    accepted: Sequence[DrawnImage] = ()
    rejected: Sequence[DrawnImage] = ()
    on_sheets: Sequence[DrawnImage] = ()


class Choice:
    """Chooses images, spread over classes and reasons; holds a number of them that does not grow with the run."""

    def __init__(self) -> None:
        self._cap = CAP
        self._masked, self._best = Best[DrawnImage](STRIP), Best[DrawnImage](STRIP)
        self._accepted, self._rejected = RoundRobin[DrawnImage](ACCEPTED), RoundRobin[DrawnImage](REJECTED)
        self._judged = RoundRobin[DrawnImage](CAP)

    def add(self, image: DrawnImage) -> None:
        """Take the next image of the run."""
        if image.verdict is None:
            return
        self._judged.add(f"{image.is_accepted}/{image.target}/{image.verdict.reason}", image)
        if not image.is_accepted:
            self._rejected.add(image.verdict.reason, image)
            return
        self._accepted.add(image.target, image)
        self._best.add(image.target, image.certainty, image)
        if image.mask is not None:
            self._masked.add(image.target, image.certainty, image)

    def chosen(self) -> Chosen:
        strip = self._masked.in_turn() or self._best.in_turn()
        accepted, rejected = self._accepted.chosen(), self._rejected.chosen()
        named = {image.id: image for image in (*strip, *accepted, *rejected)}
        others = [image for image in self._judged.chosen() if image.id not in named]
        sheets = [*named.values(), *others[: max(self._cap - len(named), 0)]]
        return Chosen(strip, accepted, rejected, sheets)
