"""Processes that train together, as actors of a Ray cluster: what ``accelerate launch`` starts, on any of its nodes.

Ray Train is not used. It would start the same actors, but needs pandas, pyarrow and tensorboardX, and has checkpoints
of its own kind, while a training resumes from its output folder anyway.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from segsmith.engine.dispatch import RESUME
from segsmith.engine.options import EngineOptions
from segsmith.engine.ray import (
    check_versions,
    connect,
    death,
    disconnect,
    nodes_of,
    reason_of,
    what_is_there,
)
from segsmith.engine.worker import about_this_process
from segsmith.errors import SegsmithError
from segsmith.events import EpochFinished, Event

log = logging.getLogger(__name__)

Result = TypeVar("Result", covariant=True)

PLACE_S = 300.0
"""Seconds within which the cluster must have room for all processes at once."""
LAST_WORDS_S = 20.0
"""Seconds that the other processes have to report, when one has failed: its failure may follow from theirs."""
LOSSES = 3
"""The processes are started again until they were lost this often without a new epoch in between."""


class Work(Protocol[Result]):
    """What every process does. It can be pickled; `show` has no effect outside the first process."""

    def __call__(self, *, show: Callable[[Event], None]) -> Result: ...


class Lost(Exception):
    """A process died."""


@dataclass(frozen=True)
class _Done:
    result: Any


class Member:
    """One process of a group."""

    def about(self) -> tuple[str, str, str, str]:
        """(Host, Python, segsmith, process id)."""
        mine = about_this_process()
        return mine.host, mine.python, mine.segsmith, str(os.getpid())

    def address(self) -> tuple[str, int]:
        """Where the processes can meet: this machine's address, and a port that is free now."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def run(self, environment: dict[str, str], work: Work[Any]) -> Iterator[Event | _Done]:
        """Do the work; yields its events, and its result at the end."""
        os.environ.update(environment)
        said: queue.SimpleQueue[Event | Future[Any]] = queue.SimpleQueue()
        with ThreadPoolExecutor(1, "segsmith-train") as thread:
            thread.submit(work, show=said.put).add_done_callback(said.put)
            while not isinstance(found := said.get(), Future):
                yield found
        yield _Done(found.result())

    def follow(self, environment: dict[str, str], work: Work[Any]) -> None:
        """Do the work without reporting it."""
        os.environ.update(environment)
        work(show=lambda event: None)


def run_group(
    options: EngineOptions, work: Work[Result], batch_size: int, show: Callable[[Event], None]
) -> Result:
    """Let several processes do `work` together, and return the result of the first one.

    There are `options.workers` of them; by default, as many as the cluster has GPUs (or CPUs but one) and as divide
    `batch_size`. If one dies, all are started again, so `work` must resume by itself. Raises `SegsmithError`.
    """
    ray = connect(options)
    try:
        nodes = nodes_of(ray)
        there = sum(node.gpus for node in nodes) or max(1, sum(node.cpus for node in nodes) - 1)
        count = group_size(options.workers, there, batch_size)
        losses = 0

        def heard(event: Event) -> None:
            nonlocal losses
            losses = 0 if isinstance(event, EpochFinished) else losses
            show(event)

        while True:
            try:
                return _run_once(ray, count, work, heard)
            except Lost as lost:
                losses += 1
                log.warning("the training processes are started again: %s", lost)
                if losses >= LOSSES:
                    raise SegsmithError(
                        f"The training lost its processes {losses} times without progress: {lost}.", RESUME
                    ) from None
    finally:
        if options.address is None:
            disconnect(ray)


def group_size(asked: int | None, there: int, batch_size: int) -> int:
    """Number of processes, which must divide the batch. Raises `SegsmithError` where `asked` does not."""
    if asked is None:
        return max(n for n in range(1, min(there, batch_size) + 1) if batch_size % n == 0)
    if batch_size % asked:
        raise SegsmithError(
            f"A batch of {batch_size} images cannot be split evenly between {asked} workers.",
            f"Type --set trainer.batch_size={-(-batch_size // asked) * asked}, or another number of --workers.",
        )
    return asked


def _run_once(ray: Any, count: int, work: Work[Any], show: Callable[[Event], None]) -> Any:
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    on_gpu = any(node.gpus for node in nodes_of(ray))
    needs = {"GPU": 1} if on_gpu else {"CPU": 1}
    group = placement_group([needs] * count, strategy="PACK")
    members = []
    try:
        if not group.wait(PLACE_S):
            raise SegsmithError(
                f"The cluster has no room for {count} training processes at once: {what_is_there(ray)}, "
                "and other programs may hold them.",
                "Free them, or name fewer --workers.",
            )
        for place in range(count):
            strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=place)
            resources = {"num_gpus": 1, "num_cpus": 0} if on_gpu else {"num_cpus": 1}
            actor = ray.remote(Member).options(max_restarts=0, scheduling_strategy=strategy, **resources)
            members.append(actor.remote())
        try:
            for member in members:
                check_versions(ray.get(member.about.remote()))
            host, port = ray.get(members[0].address.remote())
        except ray.exceptions.RayActorError as error:
            raise Lost(death(error)) from None
        return _follow(ray, members, _environments(count, host, port, on_gpu), work, show)
    finally:
        for member in members:
            ray.kill(member, no_restart=True)
        remove_placement_group(group)


def _environments(count: int, host: str, port: int, on_gpu: bool) -> list[dict[str, str]]:
    """What torchrun tells its processes. Each sees one GPU, which is its first."""
    shared = {
        "WORLD_SIZE": str(count), "LOCAL_RANK": "0", "MASTER_ADDR": host, "MASTER_PORT": str(port),
        **({} if on_gpu else {"ACCELERATE_USE_CPU": "true"}),
    }  # fmt: skip
    return [{**shared, "RANK": str(rank)} for rank in range(count)] if count > 1 else [{}]


def _follow(
    ray: Any,
    members: Sequence[Any],
    environments: Sequence[dict[str, str]],
    work: Work[Any],
    show: Callable[[Event], None],
) -> Any:
    """Start the work, pass on the events of the first process, and return its result."""
    stream = members[0].run.options(num_returns="streaming").remote(environments[0], work)
    others = [
        member.follow.remote(environment, work)
        for member, environment in zip(members[1:], environments[1:], strict=True)
    ]
    while True:
        ready, _ = ray.wait([stream, *others], num_returns=1, timeout=None)
        if stream not in ready:
            try:
                ray.get(ready)  # of a process that has finished, or failed
            except ray.exceptions.RayError as error:
                raise _why(ray, error, [r for r in others if r not in ready]) from None
            others = [r for r in others if r not in ready]
            continue
        try:
            found = ray.get(next(stream))
        except (ray.exceptions.RayError, StopIteration) as error:
            raise _why(ray, error, others) from None
        if isinstance(found, _Done):
            return found.result
        show(found)


def _why(ray: Any, error: Exception, others: Sequence[Any]) -> Exception:
    """What to raise for a process that failed with `error`: if another one has died, that is the cause."""
    done, _ = ray.wait(list(others), num_returns=len(others), timeout=LAST_WORDS_S) if others else ([], [])
    failures = [error]
    for reference in done:
        try:
            ray.get(reference)
        except ray.exceptions.RayError as other:
            failures.append(other)
    for failure in failures:
        if isinstance(failure, ray.exceptions.RayActorError):
            return Lost(death(failure))
    causes = [getattr(failure, "cause", None) for failure in failures]
    own = next((cause for cause in causes if isinstance(cause, SegsmithError)), None)
    return own or SegsmithError(f"The training failed: {reason_of(error).rstrip('.')}.", RESUME)
