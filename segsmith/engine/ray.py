"""Workers as actors of a Ray cluster, as many as `placement` says.

Ray places the actors and reports their deaths. Retries, deadlines and results are segsmith's own (`scheduler`,
`store`), so that it does not matter whether an actor, a node or the driver dies.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segsmith.engine.dispatch import RESUME, Failed, Finished, Happening, Lost, Ready, Unusable
from segsmith.engine.options import EngineOptions
from segsmith.engine.placement import Node, Placement, placement
from segsmith.engine.units import Kind, Unit
from segsmith.engine.work import Setup
from segsmith.engine.worker import Worker, about_this_process
from segsmith.errors import SegsmithError
from segsmith.terminal_text import first_line

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 200_000_000
"""Of a Ray that is started here. Units and results are small; images and masks go through the run folder."""
START_S = 300.0
"""Seconds within which the first worker must have started."""
LOAD_S = 1800.0
"""Seconds within which a worker must have loaded its models; one that hangs in an earlier unit has not."""
LOOK_S = 15.0
"""Seconds between two looks at whether the cluster has grown, and at workers that do not answer."""
START_ERRORS = (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError)
"""What `ray.init` raises, besides `Exception` itself."""
SPARE_LOSSES = 3
"""Workers may be lost this often in a row, beside once each, before none is started in their place."""


@dataclass
class _Actor:
    handle: Any
    node: str = ""
    asked: float | None = None
    """When it was asked to get ready; None once it is."""


class RayPool:
    """A pool (`dispatch.Pool`) of Ray actors. `close` it at the end."""

    def __init__(self, options: EngineOptions, setup: Setup) -> None:
        """Connect to a cluster, or start Ray on this machine.

        Raises `SegsmithError` for an address that does not answer, and for a cluster of other versions.
        """
        self._ray = connect(options)
        self._options = options
        # Stored once, not with every actor.
        self._setup = self._ray.put(setup)
        self._config = setup.config
        self._card = 0
        """Memory of the smallest GPU of a worker, in bytes; 0 while none is known."""
        self._placement = Placement(1, 0.0)
        self._actor_class = self._ray.remote(Worker)
        self._actors: dict[str, _Actor] = {}
        self._waiting: dict[Any, tuple[str, str, tuple[str, str]]] = {}
        """Reference to a result -> what was asked: (call, worker, (unit, attempt))."""
        self._kind: Kind = "draw"
        self._named = 0
        self._losses = 0
        self._looked = -LOOK_S
        self._began = time.monotonic()
        self._ever_ready = False

    # -- the protocol -----------------------------------------------------------------------------

    def prepare(self, kind: Kind) -> None:
        self._kind, before = kind, self._placement
        self._placement = self._placed()
        if self._placement.gpus != before.gpus:  # an actor keeps the share of a GPU that it started with
            for name in list(self._actors):
                self.end(name, replace=False)
        for name, actor in self._actors.items():
            if actor.node:
                self._ask("prepare", name, actor.handle.prepare.remote(kind))
        self._grow()

    @property
    def starting(self) -> int:
        return sum(1 for call, _, _ in self._waiting.values() if call != "do")

    def submit(self, worker: str, unit: Unit, attempt: str) -> None:
        reference = self._actors[worker].handle.do.remote(unit, attempt)
        self._ask("do", worker, reference, unit.id, attempt)

    def poll(self, timeout: float) -> Sequence[Happening]:
        self._check_start()
        if time.monotonic() - self._looked >= LOOK_S:
            self._end_silent()
            self._grow()
        if not self._waiting:
            return []
        done, _ = self._ray.wait(list(self._waiting), num_returns=1, timeout=timeout)
        if done:
            done, _ = self._ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=0)
        happened = [found for reference in done if (found := self._take(reference)) is not None]
        return happened

    def end(self, worker: str, *, replace: bool) -> None:
        actor = self._actors.pop(worker, None)
        if actor is None:
            return
        self._forget(worker)
        self._ray.kill(actor.handle, no_restart=True)
        if replace:
            self._replace()

    def close(self) -> None:
        """End all actors, and Ray if it was started here."""
        for name in list(self._actors):
            self.end(name, replace=False)
        if self._options.address is None:
            disconnect(self._ray)

    # -- actors -----------------------------------------------------------------------------------

    def _end_silent(self) -> None:
        """End workers that have had too long to get ready. One that has no place in the cluster yet may wait."""
        for name, actor in list(self._actors.items()):
            if actor.node and actor.asked is not None and time.monotonic() - actor.asked > LOAD_S:
                log.warning("worker %s on %s did not get ready and is ended", name, actor.node)
                self.end(name, replace=True)

    def _grow(self) -> None:
        """Start the actors for which the cluster has room, or will have when it has grown."""
        self._looked = time.monotonic()
        if not self._actors:
            self._placement = self._placed()
        missing = self._placed().count - len(self._actors)
        for _ in range(missing if self._losses <= self._most_losses() else 0):
            self._start()

    def _placed(self) -> Placement:
        return placement(
            self._kind, self._config, nodes_of(self._ray), self._card or None, self._options.workers
        )

    def _start(self) -> None:
        self._named += 1
        name = f"w{self._named}"
        needs = {"num_gpus": self._placement.gpus, "num_cpus": self._placement.cpus}
        handle = self._actor_class.options(
            max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD", **needs
        ).remote()
        self._actors[name] = _Actor(handle)
        self._ask("about", name, handle.about.remote())

    def _replace(self) -> None:
        self._losses += 1
        if self._losses <= self._most_losses():
            self._start()

    def _most_losses(self) -> int:
        return max(1, self._named) + SPARE_LOSSES

    def _check_start(self) -> None:
        if self._ever_ready or time.monotonic() - self._began < START_S:
            return
        raise SegsmithError(
            f"No worker started within {START_S:.0f} s; the cluster has {what_is_there(self._ray)}, "
            "and other programs may hold them.",
            "Free them or add nodes, then run the same command again; it resumes from here.",
        )

    # -- answers ----------------------------------------------------------------------------------

    def _ask(self, call: str, worker: str, reference: Any, unit: str = "", attempt: str = "") -> None:
        self._waiting[reference] = (call, worker, (unit, attempt))
        if call != "do":
            self._actors[worker].asked = time.monotonic()

    def _forget(self, worker: str) -> None:
        for reference in [r for r, (_, asked, _) in self._waiting.items() if asked == worker]:
            del self._waiting[reference]

    def _take(self, reference: Any) -> Happening | None:
        """What an answer means; None where the worker is asked the next thing."""
        if reference not in self._waiting:
            return None  # its worker was lost with an earlier answer of this batch
        call, worker, (unit, attempt) = self._waiting.pop(reference)
        actor = self._actors[worker]
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except errors.RayTaskError as error:
            reason = reason_of(error)
            if call == "do":
                return Failed(worker, unit, attempt, reason)
            self.end(worker, replace=False)
            return Unusable(worker, actor.node or "of the cluster", reason)
        except errors.RayError as error:
            self._actors.pop(worker, None)
            self._forget(worker)
            self._replace()
            log.warning("worker %s on %s was lost: %s", worker, actor.node or "?", first_line(error))
            return Lost(worker, death(error))
        if call == "about":
            self._got_about(worker, actor, answer)
            return None
        if call == "set_up":
            self._card = min(self._card or answer, answer)
            self._ask("prepare", worker, actor.handle.prepare.remote(self._kind))
            return None
        if call == "prepare":
            self._ever_ready = True
            actor.asked = None
            return Ready(worker, actor.node)
        self._losses = 0
        return Finished(worker, unit, attempt, answer)

    def _got_about(self, worker: str, actor: _Actor, answer: tuple[str, str, str, str]) -> None:
        """Check versions. Raises `SegsmithError` where they differ from the driver's."""
        host, _, _, process = answer
        actor.node = f"{host}:{process}"
        check_versions(answer)
        self._ask("set_up", worker, actor.handle.set_up.remote(self._setup))


def nodes_of(ray: Any) -> list[Node]:
    """The machines of the cluster that answer."""
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(found.get("CPU", 0)), int(found.get("GPU", 0))) for found in there]


def what_is_there(ray: Any) -> str:
    """Number of CPUs and GPUs of the cluster, for a message."""
    there = ray.cluster_resources()
    return f"{int(there.get('CPU', 0))} CPUs and {int(there.get('GPU', 0))} GPUs"


def check_versions(answer: tuple[str, str, str, str]) -> None:
    """Raise `SegsmithError` where a worker's answer to `about` names other versions than the driver's."""
    host, python, version, _ = answer
    mine = about_this_process()
    for what, theirs, ours in (("Python", python, mine.python), ("segsmith", version, mine.segsmith)):
        if theirs != ours:
            raise SegsmithError(
                f"Node {host} has {what} {theirs}, and this machine has {what} {ours}.",
                "Install the same version on every node.",
            )


def connect(options: EngineOptions) -> Any:
    """The module ray, connected to the cluster of `options.address`, or to one that is started on this machine.

    A connection that this process has already is used. Raises `SegsmithError`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray would print the errors of attempts that came too late. Those of all others are read.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if options.address is not None:
        # Ray would ask a head that does not answer twenty times, for 30 s each, and print a warning for each.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    import ray

    if ray.is_initialized():
        return ray
    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR, "log_to_driver": False, "ignore_reinit_error": True,
    }  # fmt: skip
    try:
        if options.address is None:
            # A node has as many workers as asked for, even where it has fewer CPUs.
            cpus = max(os.cpu_count() or 1, options.workers or 1)
            # Without "local", Ray joins any cluster that it finds on this machine, such as that of another command.
            ray.init(
                "local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
        else:
            ray.init(address=options.address, **quiet)
    except Exception as error:
        # Ray raises a bare Exception where, for example, its node on this machine does not register within 30 s.
        if type(error) is not Exception and not isinstance(error, START_ERRORS):
            raise
        raise _connection_error(options.address, error) from error
    return ray


def disconnect(ray: Any) -> None:
    """End the Ray that `connect` started."""
    ray.shutdown()


def _connection_error(address: str | None, error: Exception) -> SegsmithError:
    text = str(error)
    versions = re.findall(r"(Ray|Python): *([0-9][\w.+-]*)", text)
    if "ersion mismatch" in text and len(versions) >= 4:
        cluster = ", ".join(f"{name} {version}" for name, version in versions[:2])
        here = ", ".join(f"{name} {version}" for name, version in versions[2:4])
        return SegsmithError(
            f"The cluster at {address} runs {cluster}, and this machine {here}.",
            "Install the same versions on every node.",
        )
    if address is None:
        if "timed out during startup" in text:
            return SegsmithError(
                "Ray could not be started: this machine was too busy, or lacks memory.",
                "Run the same command again when other programs have ended, or without --engine ray.",
            )
        return SegsmithError(f"Ray could not be started: {said(error)}.", RESUME)
    return SegsmithError(
        f"No Ray cluster answers at {address} ({said(error)}).",
        "Start one with `ray start --head`, check --address, or leave it out to start Ray on this machine.",
    )


def said(error: BaseException) -> str:
    """The first line of an error, as a part of a sentence: without the mark at its end."""
    return first_line(error, 200).rstrip(" .:;,") or type(error).__name__


def reason_of(error: Any) -> str:
    """The error that a worker raised, in one line."""
    cause = getattr(error, "cause", None) or error
    text = str(cause) if isinstance(cause, SegsmithError) else f"{type(cause).__name__}: {first_line(cause)}"
    return " ".join(text.split())[:300]


def death(error: Exception) -> str:
    """Why an actor died, in a few words."""
    text = str(error)
    if "its node has died" in text or "node was terminated" in text:
        return "its node died"
    if "connection error code 2" in text:
        return "its process was killed"
    return first_line(error)[:160]
