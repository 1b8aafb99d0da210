"""Work on many items over all cores, in order and with few of them in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4
"""Items in progress or finished but not yet taken, for each core."""


def in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results of `work` in the order of the items, computed by threads a little ahead of the consumer.

    Threads suffice because reading, writing, hashing and the codecs of images release Python's lock. The first
    error ends the iteration.
    """
    cores = os.cpu_count() or 1
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(cores) as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= AHEAD * cores:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
