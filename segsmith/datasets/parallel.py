"""Work on many items over all cores, in order and with few of them in memory."""

from __future__ import annotations

import os
import statistics
import time
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


WORK_S, WAIT_S = 0.002, 0.01
"""Seconds of processor time, or on the clock, that an item must take. Copies of files on a local disk take less, and
are slower in threads, which wait for Python's lock."""
TRIED = 9
"""Items that are timed first."""


def in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results of `work` in the order of the items, computed by threads a little ahead of the consumer.

    Threads suffice because reading, writing, hashing and the codecs of images release Python's lock. The first
    `TRIED` items are done by the caller, and all others, too, if most of them were quick. The first error ends the
    iteration.
    """
    cores = os.cpu_count() or 1
    pending: deque[Future[list[R]]] = deque()
    left = iter(items)
    worked, took = [0.0], [0.0]
    for item in islice(left, TRIED):
        since, start = time.thread_time(), time.perf_counter()
        result = work(item)
        worked.append(time.thread_time() - since)
        took.append(time.perf_counter() - start)
        yield result
    if statistics.median(worked) < WORK_S and statistics.median(took) < WAIT_S:
        yield from map(work, left)
        return
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
