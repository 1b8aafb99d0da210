"""One run from start to end, or from where it stopped: the run folder, its lock, the checkpointer, the stream."""

from __future__ import annotations

import os
import resource
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from segsmith.agents.director import cap_reached, spent
from segsmith.config import Config
from segsmith.errors import SegsmithError
from segsmith.files import PART
from segsmith.graph.context import RunContext
from segsmith.memory.ledger import Ledger, RunSummary
from segsmith.memory.run_config import RunRecord, installed_versions, read_record, resumed, write_record
from segsmith.memory.run_folder import RunFolder
from segsmith.review.decisions import REENTER, stale
from segsmith.workflows.environment_errors import one_line
from segsmith.workflows.interrupt import stop_on_interrupt
from segsmith.workflows.model_provenance import model_rows
from segsmith.workflows.preflight import check_models

THREAD = "build"
RECURSION_LIMIT = 10_000
"""Steps of one invocation; the director's own budget ends a run long before."""
Event = dict[str, Any]
_NOTHING = object()


def build_run(
    config: Config,
    out: Path,
    command: str = "",
    *,
    step: bool = False,
    prepare: Callable[[], object] = lambda: None,
    parts: Mapping[str, Any] | None = None,
) -> Generator[Event]:
    """Run the graph in `out`, yielding progress events; resumes or says ``{"kind": "already_done"}``.

    With `step` it yields ``pause`` (review: kind of decision, subjects, deps) at each review node with something
    to look at, and goes on when the next event is asked for. A finished run whose decisions have changed since
    is taken up again where they count. `prepare` is called once the folder is this process's own, before
    anything else is written there; it may be called again by a later session. `parts` replaces what the config
    would open (see `RunContext`).

    Events: ``start`` (resumed: bool), those the nodes stream (``draw``, ``judge``, ``stage``, ``segment``,
    ``epoch``), ``route`` (reason) and ``end``. Raises `SegsmithError` for what a user can mend.
    """
    from langgraph.checkpoint.sqlite import SqliteSaver
    from langgraph.types import Command

    from segsmith.graph.graph import build_graph

    run = RunFolder(out)
    with ExitStack() as stack:
        stack.enter_context(one_line(run.root))
        anew = _starts_over(run, config)
        record = RunRecord(config, installed_versions()) if anew else _record_of(run, config)
        config = record.config
        check_models(config, ask_llm=not run.config.exists())
        run.create()
        stack.enter_context(run.held())
        prepare()
        write_record(run.config, record)
        deps = RunContext(config, run, step=step, parts=parts or {})
        stack.callback(deps.close)
        stack.enter_context(stop_on_interrupt(deps.stopping))
        checkpoints = sqlite3.connect(run.graph, check_same_thread=False)
        stack.callback(checkpoints.close)
        saver = SqliteSaver(checkpoints)
        if anew:
            saver.delete_thread(THREAD)
        graph = build_graph(saver)
        options: Any = {
            "configurable": {"thread_id": THREAD},
            "recursion_limit": RECURSION_LIMIT,
            "max_concurrency": max(2, config.llm.concurrency),
        }
        snapshot = graph.get_state(options)
        if snapshot.values and (node := _taken_up_at(deps, snapshot)):
            graph.update_state(options, {}, as_node=node)
            deps.ledger.finished_at = None
            snapshot = graph.get_state(options)
        if snapshot.values and not _waiting(snapshot):
            if (
                deps.ledger.unmeasured()
            ):  # an earlier version stored no measurements, and `rejudge` needs them
                deps.judge_agent.measure()
            if not run.report.exists():  # it was killed between its last node and its report
                _write_report(deps)
            yield {"kind": "already_done", **_ending(deps, snapshot.values)}
            return
        yield {"kind": "start", "resumed": bool(snapshot.values), "tallies": deps.ledger.tallies()}
        deps.ledger.versions = installed_versions()
        deps.ledger.add_models(model_rows(config))
        clock = _Clock(deps, command)
        given: Any = None if snapshot.values else {"round": 0}
        while given is not _NOTHING:
            stream = graph.stream(
                given,
                options,
                context=deps,
                stream_mode=["custom", "updates"],
                durability="sync",
            )
            given = _NOTHING
            for mode, item in stream:
                clock.save()
                if mode == "custom":
                    yield item
                elif "direct" in item:
                    yield {"kind": "route", "reason": item["direct"]["reason"]}
                elif "__interrupt__" in item:
                    asked = item["__interrupt__"][0].value
                    given = Command(resume=True)
            if given is not _NOTHING:
                with clock.stopped():
                    yield {
                        "kind": "pause",
                        "review": asked["kind"],
                        "subjects": asked["subjects"],
                        "deps": deps,
                    }
        clock.save()
        _write_report(deps)
        yield {"kind": "end", **_ending(deps, graph.get_state(options).values)}


def _starts_over(run: RunFolder, config: Config) -> bool:
    """Did a sitting with another config end here before its first prompt?

    Say because its language model could not start. Then the run may begin again with what is typed now.
    """
    if not run.config.exists() or not run.ledger.exists() or read_record(run.config).asked == config:
        return False
    with closing(Ledger(run.ledger)) as ledger:
        return not (ledger.prompts() or ledger.guidance(active_only=False))


def _record_of(run: RunFolder, config: Config) -> RunRecord:
    """What ``run.toml`` is to hold; refuses a folder that holds something else, before anything is written."""
    if run.root.exists() and not run.root.is_dir():
        raise SegsmithError(f"{run.root} is a file.", "Name a folder with --out.")
    try:
        entries = list(run.root.iterdir()) if run.root.exists() else []
    except OSError as error:
        raise SegsmithError(f"Cannot read {run.root}: {error.strerror}.", "Name another --out.") from None
    if not run.config.exists():
        ours = {"images", "masks", "checkpoints", "real", ".writable", ".lock"}
        strange = [p.name for p in entries if p.name not in ours and not p.name.startswith(PART)]
        if strange:
            raise SegsmithError(
                f"{run.root} is not empty and not a run folder (it holds {sorted(strange)[0]!r}).",
                "Name a new folder with --out.",
            )
        return RunRecord(config, installed_versions())
    return resumed(read_record(run.config), config, run.root)


def _taken_up_at(deps: RunContext, snapshot: Any) -> str:
    """The node behind which a run goes on because what it was built from has changed; "" where nothing has.

    By `segsmith rejudge`, by a person's decisions, or by a raised cap.
    """
    if not _waiting(snapshot) and (changed := stale(deps.ledger)):
        return REENTER[changed]
    drawing_ended = snapshot.values.get("reason") in ("budget_spent", "nothing_accepted")
    if not drawing_ended or "direct" in _waiting(snapshot):
        return ""
    images, rounds = len(deps.ledger.images()), snapshot.values.get("round", 0)
    cap = cap_reached(deps.config.budget, images, rounds, spent(deps.ledger))
    return "judge" if cap != snapshot.values.get("cap", "") else ""


def _waiting(snapshot: Any) -> tuple[str, ...]:
    """Nodes the run goes on with; none when it is done.

    Not ``snapshot.next``: that leaves out a node that ended just before the process did, though all that
    comes after it is still to be done.
    """
    return tuple(task.name for task in snapshot.tasks)


class _Clock:
    """Wall time over all sittings of a run, and this process's peak memory, kept in the ledger."""

    def __init__(self, deps: RunContext, command: str) -> None:
        self._deps = deps
        self._before = deps.ledger.summary
        self._started = time.monotonic()
        self._command = command

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """A person's time to think is not the run's."""
        since = time.monotonic()
        yield
        self._started += time.monotonic() - since

    def save(self) -> None:
        elapsed = time.monotonic() - self._started
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            1 if os.uname().sysname == "Darwin" else 1024
        )
        drawing = [detail for _, _, detail in self._deps.ledger.events("drawn")]
        images, seconds = (sum(d[key] for d in drawing) for key in ("images", "seconds"))
        self._deps.ledger.summary = RunSummary(
            wall_seconds=self._before.wall_seconds + elapsed,
            peak_memory_mb=max(memory, self._before.peak_memory_mb),
            images_per_second=images / seconds if seconds else 0.0,
            command=self._command or self._before.command,
        )


def _write_report(deps: RunContext) -> None:
    from segsmith.report.report import build_report

    build_report(deps.run, deps.ledger, deps.config)


def _ending(deps: RunContext, state: Mapping[str, Any]) -> Event:
    """What the closing summary needs."""
    verdicts = deps.ledger.verdicts().values()
    masks = deps.ledger.masks().values()
    return {
        "reason": state.get("reason", ""),
        "missing": state.get("missing", {}),
        "cap": state.get("cap", ""),
        "tallies": deps.ledger.tallies(),
        "drawn": len(deps.ledger.images()),
        "accepted": sum(v.accepted for v in verdicts),
        "ignore_share": sum(m.ignore_share for m in masks) / max(len(masks), 1),
        "evaluation": deps.ledger.evaluation,
        "summary": deps.ledger.summary,
        "run": deps.run,
    }
