"""Work on many items over all cores, in order and with few of them in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 8
"""Items in progress or finished but not yet taken, for each core."""
TOGETHER = 4
"""Items that a thread takes at a time: handing over one takes as long as writing a small file."""


def in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results of `work` in the order of the items, computed by threads a little ahead of the consumer.

    Threads suffice because reading, writing, hashing and the codecs of images release Python's lock. The first
    error ends the iteration.
    """
    cores = os.cpu_count() or 1
    pending: deque[Future[list[R]]] = deque()
    left = iter(items)
    with ThreadPoolExecutor(cores) as pool:
        try:
            while part := list(islice(left, TOGETHER)):
                pending.append(pool.submit(_each, work, part))
                if len(pending) * TOGETHER >= AHEAD * cores:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _each(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    return [work(item) for item in items]
