"""Which worker does which unit: assignment, deadlines, retries, lost and unusable workers. Pure: no clock, no Ray.

The caller reports what happened, with the time in seconds, and does what `assign` and `overdue` say. A unit may be
attempted twice at a time; that is harmless, because only the first result is committed (`store.UnitStore`).
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from segsmith.events import WorkersBusy


@dataclass(frozen=True)
class Limits:
    """When to give up waiting, and on what."""

    per_worker: int = 2
    """Units that a worker has at a time: the one it works on, and those that wait so that it never idles."""
    unit_failures: int = 3
    """A unit that failed this often is set aside."""
    worker_failures: int = 3
    """A worker that failed with this many different units in a row is retired."""
    timeout_s: float | None = None
    """Time that a unit may take; None: `patience` times the median, within the bounds below."""
    patience: float = 8
    least_timeout_s: float = 120
    first_timeout_s: float = 1800
    """Time that a worker's first unit may take, which may load models, and any unit while few were timed."""
    slow: float = 2
    """An idle worker repeats a unit that has taken this many times the median, when no other unit is left."""


TIMED = 5
"""Units that must have been timed before the median counts."""
RECENT = 101
"""Units whose durations are remembered."""
ATTEMPTS_AT_ONCE = 2


@dataclass(frozen=True)
class Assignment:
    """A unit that a worker is to do now or next."""

    unit: str
    attempt: str
    worker: str


@dataclass(frozen=True)
class SetAside:
    """A unit that failed too often. It is tried again on the next run."""

    unit: str
    reason: str


@dataclass
class _Worker:
    node: str
    joined: float
    queue: deque[Assignment] = field(default_factory=deque)
    """The first one is being worked on."""
    head_since: float = 0.0
    failed: list[str] = field(default_factory=list)
    """Different units that failed here since the last success."""
    images: int = 0
    finished: int = 0


@dataclass
class _Unit:
    reasons: list[str] = field(default_factory=list)
    failed_on: set[str] = field(default_factory=set)
    failed_nodes: set[str] = field(default_factory=set)
    attempts: set[str] = field(default_factory=set)
    """Those under way."""
    is_done: bool = False
    is_set_aside: bool = False

    @property
    def is_over(self) -> bool:
        return self.is_done or self.is_set_aside


class Scheduler:
    """Assigns one batch of units, in their order as far as possible, to workers that come and go."""

    def __init__(
        self,
        units: Sequence[str],
        session: str,
        limits: Limits | None = None,
        *,
        committed: Container[str] = (),
        now: float = 0.0,
    ) -> None:
        """`session` makes the names of attempts unique; units in `committed` are done already."""
        self.limits = limits or Limits()
        self._order = list(units)
        self._units = {name: _Unit(is_done=name in committed) for name in self._order}
        self._place = {name: place for place, name in enumerate(self._order)}
        self._pending = [place for place, name in enumerate(self._order) if not self._units[name].is_done]
        self._session = session
        self._attempts = 0
        self._workers: dict[str, _Worker] = {}
        self._free: dict[str, None] = {}
        """Workers that could take another unit, in the order in which they became free."""
        self._nodes: Counter[str] = Counter()
        self._durations: deque[float] = deque(maxlen=RECENT)
        self._folded = 0
        self._over = sum(unit.is_done for unit in self._units.values())
        self._started = now
        self._images = 0
        self.set_aside: list[SetAside] = []
        self.retired: list[tuple[str, str, str]] = []
        """(Worker, node, reason) of workers that failed too often. The caller ends them."""

    # -- what the caller does ---------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether each unit is done or set aside."""
        return self._over == len(self._order)

    @property
    def workers(self) -> int:
        """Number of usable workers."""
        return len(self._workers)

    def assign(self, now: float) -> list[Assignment]:
        """What idle workers are to do; each of them gets a unit before any gets a second one."""
        given = list[Assignment]()
        for depth in range(self.limits.per_worker):
            if not self._free:
                break
            for name in [w for w in self._free if len(self._workers[w].queue) == depth]:
                unit = self._next_for(name)
                if unit is not None:
                    given.append(self._give(unit, name, now))
        idle = [] if self._pending else [w for w in self._free if not self._workers[w].queue]
        if idle:
            repeats = self._repeats(now)
            for name in idle:
                unit = next((u for u in repeats if self._may_repeat(name, u)), None)
                if unit is None:
                    break
                repeats.remove(unit)
                given.append(self._give(unit, name, now))
        return given

    def overdue(self, now: float) -> list[tuple[str, str]]:
        """(Worker, reason) of workers that take too long for a unit. The caller ends them and reports `lost`."""
        late, usual = [], self._usual()
        for name, worker in self._workers.items():
            limit = self._timeout(worker, usual)
            if worker.queue and now - worker.head_since > limit:
                late.append((name, f"no result within {limit:.0f} s"))
        return late

    def foldable(self) -> Iterator[str]:
        """Units that are done and all of whose predecessors are done or set aside, in order, each one once."""
        while self._folded < len(self._order) and self._units[self._order[self._folded]].is_over:
            name = self._order[self._folded]
            self._folded += 1
            if self._units[name].is_done:
                yield name

    def progress(self, now: float) -> WorkersBusy:
        """Counts and speeds."""

        def rate(images: int, since: float) -> float:
            return images / (now - since) if now > since else 0.0

        return WorkersBusy(
            done=self._over - len(self.set_aside),
            total=len(self._order),
            set_aside=len(self.set_aside),
            workers=len(self._workers),
            in_flight=sum(len(worker.queue) for worker in self._workers.values()),
            images_per_second=rate(self._images, self._started),
            per_worker={name: rate(w.images, w.joined) for name, w in self._workers.items()},
        )

    # -- what happened ----------------------------------------------------------------------------

    def joined(self, worker: str, node: str, now: float) -> None:
        """A worker is ready."""
        if worker not in self._workers:
            self._workers[worker] = _Worker(node, now)
            self._free[worker] = None
            self._nodes[node] += 1

    def finished(self, worker: str, unit: str, attempt: str, images: int, now: float) -> None:
        """An attempt of a unit is committed, or found that another one was; `images` is what it made."""
        taken = self._ended(worker, attempt, now)
        if taken is None:
            return
        doer = self._workers[worker]
        doer.failed.clear()
        doer.finished += 1
        if images:
            doer.images += images
            self._durations.append(taken)
        item = self._units[unit]
        item.attempts.discard(attempt)
        if item.is_over:
            return
        item.is_done = True
        self._over += 1
        self._images += images

    def failed(self, worker: str, unit: str, attempt: str, reason: str, now: float) -> None:
        """An attempt ended without a result; the worker lives."""
        if self._ended(worker, attempt, now) is None:
            return
        item, doer = self._units[unit], self._workers[worker]
        item.attempts.discard(attempt)
        if item.is_over:
            return  # another attempt succeeded meanwhile, which may be why this one failed
        if unit not in doer.failed:
            doer.failed.append(unit)
        item.failed_on.add(worker)
        item.failed_nodes.add(doer.node)
        self._charge(unit, reason)
        if len(doer.failed) >= self.limits.worker_failures:
            self.retired.append((worker, doer.node, reason))
            self._remove(worker)

    def lost(self, worker: str, reason: str) -> None:
        """A worker died, or was ended by the caller. The unit that it worked on is charged with that."""
        doer = self._workers.get(worker)
        if doer is None:
            return
        if doer.queue:
            head = doer.queue.popleft()
            item = self._units[head.unit]
            item.attempts.discard(head.attempt)
            item.failed_on.add(worker)
            if not item.is_over:
                self._charge(head.unit, f"its worker on {doer.node} was lost: {reason}")
        self._remove(worker)

    # -- inside -----------------------------------------------------------------------------------

    def _give(self, unit: str, worker: str, now: float) -> Assignment:
        self._attempts += 1
        assignment = Assignment(unit, f"{self._session}-{self._attempts}", worker)
        self._units[unit].attempts.add(assignment.attempt)
        queue = self._workers[worker].queue
        if not queue:
            self._workers[worker].head_since = now
        queue.append(assignment)
        if len(queue) >= self.limits.per_worker:
            self._free.pop(worker, None)
        return assignment

    def _next_for(self, worker: str) -> str | None:
        """The first unit that waits and may go to this worker."""
        passed, found = list[int](), None
        while self._pending and found is None:
            place = heapq.heappop(self._pending)
            name = self._order[place]
            if self._units[name].is_over:
                continue
            if self._may(worker, self._units[name]):
                found = name
            else:
                passed.append(place)
        for place in passed:
            heapq.heappush(self._pending, place)
        return found

    def _may(self, worker: str, unit: _Unit) -> bool:
        """Not where it failed before, if there is another node, or at least another worker."""
        if not unit.failed_on:
            return True
        if any(node not in unit.failed_nodes for node, count in self._nodes.items() if count):
            return self._workers[worker].node not in unit.failed_nodes
        return worker not in unit.failed_on or unit.failed_on >= self._workers.keys()

    def _repeats(self, now: float) -> list[str]:
        """Units that a worker has not begun, or is slow with, and that an idle worker may do as well.

        First the one whose worker will come to it last: many are before it, or it was begun long ago.
        """
        usual = self._usual()
        found = list[tuple[float, str]]()
        for worker in self._workers.values():
            for position, assignment in enumerate(worker.queue):
                unit = self._units[assignment.unit]
                if unit.is_over or len(unit.attempts) >= ATTEMPTS_AT_ONCE:
                    continue
                since = now - worker.head_since
                if position == 0 and (usual is None or since <= self.limits.slow * usual):
                    continue
                found.append((since if position == 0 else position * (usual or 1.0), assignment.unit))
        return [unit for _, unit in sorted(found, key=lambda item: -item[0])]

    def _may_repeat(self, worker: str, unit: str) -> bool:
        return self._may(worker, self._units[unit])

    def _usual(self) -> float | None:
        """Median of what units have taken; None while few were timed."""
        return median(self._durations) if len(self._durations) >= TIMED else None

    def _timeout(self, worker: _Worker, usual: float | None) -> float:
        limits = self.limits
        if limits.timeout_s is not None:
            return limits.timeout_s
        if not worker.finished or usual is None:
            return limits.first_timeout_s
        return max(limits.least_timeout_s, limits.patience * usual)

    def _ended(self, worker: str, attempt: str, now: float) -> float | None:
        """Take an attempt off a worker's queue; returns the time it took, or None for one that is not known."""
        doer = self._workers.get(worker)
        if doer is None:
            return None
        for position, assignment in enumerate(doer.queue):
            if assignment.attempt == attempt:
                del doer.queue[position]
                taken = now - doer.head_since
                if position == 0:
                    doer.head_since = now
                self._free[worker] = None
                return taken
        return None

    def _charge(self, unit: str, reason: str) -> None:
        item = self._units[unit]
        item.reasons.append(reason)
        if len(item.reasons) >= self.limits.unit_failures:
            item.is_set_aside = True
            self._over += 1
            self.set_aside.append(SetAside(unit, reason))
        elif not item.attempts:
            heapq.heappush(self._pending, self._place[unit])

    def _remove(self, worker: str) -> None:
        """Forget a worker; what it had not begun goes back."""
        doer = self._workers.pop(worker)
        self._free.pop(worker, None)
        self._nodes[doer.node] -= 1
        for assignment in doer.queue:
            item = self._units[assignment.unit]
            item.attempts.discard(assignment.attempt)
            if not item.is_over and not item.attempts:
                heapq.heappush(self._pending, self._place[assignment.unit])
