"""Drives workers until a batch of units is done, and folds the results into the ledger in the order of the units."""

from __future__ import annotations

import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from segsmith.engine.scheduler import Limits, Scheduler, SetAside
from segsmith.engine.store import UnitStore
from segsmith.engine.units import Kind, Unit
from segsmith.errors import Cancelled, SegsmithError
from segsmith.events import WorkersBusy

TICK_S = 1.0
"""Seconds between two looks at deadlines and at the user's wish to stop."""
RESUME = "Fix that, then run the same command again; it resumes from here."


@dataclass(frozen=True)
class Ready:
    """A worker has loaded its models."""

    worker: str
    node: str


@dataclass(frozen=True)
class Unusable:
    """A worker could not load its models."""

    worker: str
    node: str
    reason: str


@dataclass(frozen=True)
class Finished:
    """An attempt is committed, or another one was before; `images` is what this one made."""

    worker: str
    unit: str
    attempt: str
    images: int


@dataclass(frozen=True)
class Failed:
    """An attempt ended with an error."""

    worker: str
    unit: str
    attempt: str
    reason: str


@dataclass(frozen=True)
class Lost:
    """A worker died."""

    worker: str
    reason: str


Happening = Ready | Unusable | Finished | Failed | Lost


class Pool(Protocol):
    """Workers that do units, wherever they are."""

    def prepare(self, kind: Kind) -> None:
        """Let every worker load what a kind of unit needs; `poll` then reports `Ready` or `Unusable` for each."""
        ...

    @property
    def starting(self) -> int:
        """Number of workers for which neither was reported yet."""
        ...

    def submit(self, worker: str, unit: Unit, attempt: str) -> None:
        """Give a worker a unit, to be done after those it has."""
        ...

    def poll(self, timeout: float) -> Sequence[Happening]:
        """What happened since the last call; waits up to `timeout` seconds for something to happen.

        Raises `SegsmithError` where no worker can be started.
        """
        ...

    def end(self, worker: str, *, replace: bool) -> None:
        """End a worker at once, whatever it is doing, and start another one in its place with `replace`."""
        ...


@dataclass(frozen=True)
class Batch:
    """What became of a batch of units."""

    set_aside: tuple[SetAside, ...]
    left_out: tuple[str, ...]
    """One line for each group of workers that did not take part until the end."""


def run_units(
    units: Sequence[Unit],
    pool: Pool,
    store: UnitStore,
    fold: Callable[[Unit], None],
    *,
    tell: Callable[[WorkersBusy], None] = lambda progress: None,
    warn: Callable[[str], None] = lambda line: None,
    stopped: Callable[[], bool] = lambda: False,
    limits: Limits | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Batch:
    """Do units of one kind; `fold` is called with each committed unit, in the order of the units.

    `tell` is called about once a second, `warn` once for each thing that the user should know. Raises `Cancelled`
    when `stopped` returns True, and `SegsmithError` where no worker is left, or none of the units could be done.
    Whatever ends the batch, what was committed is used by the next session.
    """
    if not units:
        return Batch((), ())
    by_id = {unit.id: unit for unit in units}
    scheduler = Scheduler(
        list(by_id), uuid.uuid4().hex[:8], limits, committed=store.committed() & by_id.keys(), now=clock()
    )
    troubles = _Troubles(warn)
    pool.prepare(units[0].kind)
    told = -TICK_S
    committed = deque[str]()
    while True:
        committed.extend(scheduler.foldable())
        if committed:
            # One at a time: after a slow unit many can be folded, and meanwhile no worker may run out of work.
            fold(by_id[committed.popleft()])
        now = clock()
        is_over = scheduler.is_over and not committed
        if now - told >= TICK_S or is_over:
            told = now
            tell(scheduler.progress(now))
            for worker, reason in scheduler.overdue(now):
                scheduler.lost(worker, reason)
                pool.end(worker, replace=True)
                warn(f"A worker gave {reason}; it was replaced, and another one does its unit.")
        if stopped():
            raise Cancelled
        if is_over:
            break
        for given in scheduler.assign(now):
            pool.submit(given.worker, by_id[given.unit], given.attempt)
        if not (scheduler.workers or pool.starting or scheduler.is_over):
            raise SegsmithError(f"No worker can go on: {troubles.last or 'all have ended'}.", RESUME)
        for happening in pool.poll(0.0 if committed or scheduler.is_over else TICK_S):
            _report(happening, scheduler, troubles, clock())
        while scheduler.retired:
            worker, node, reason = scheduler.retired.pop()
            troubles.add(node, reason)
            pool.end(worker, replace=False)
    if len(scheduler.set_aside) == len(units):
        raise SegsmithError(
            f"None of {len(units)} units of work could be done: {scheduler.set_aside[-1].reason.rstrip('.')}.",
            RESUME,
        )
    return Batch(tuple(scheduler.set_aside), troubles.lines)


def _report(happening: Happening, scheduler: Scheduler, troubles: _Troubles, now: float) -> None:
    match happening:
        case Ready(worker, node):
            scheduler.joined(worker, node, now)
        case Unusable(worker, node, reason):
            scheduler.lost(worker, reason)
            troubles.add(node, reason)
        case Finished(worker, unit, attempt, images):
            scheduler.finished(worker, unit, attempt, images, now)
        case Failed(worker, unit, attempt, reason):
            scheduler.failed(worker, unit, attempt, reason, now)
        case Lost(worker, reason):
            scheduler.lost(worker, reason)


class _Troubles:
    """Workers that were left out; each reason is told once for each node."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._counts: Counter[tuple[str, str]] = Counter()
        self.last = ""

    def add(self, node: str, reason: str) -> None:
        self.last = f"{reason.rstrip('.')} (node {node})"
        if not self._counts[node, reason]:
            self._warn(f"A worker on node {node} is left out: {reason}")
        self._counts[node, reason] += 1

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(f"node {node}: {reason} ({n} times)" for (node, reason), n in self._counts.items())
