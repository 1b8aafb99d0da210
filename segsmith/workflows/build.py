"""Build a dataset and a segmenter from a class list: from the settings to the finished run folder."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from segsmith.config import Config, merged_config
from segsmith.engine.options import EngineOptions, engine_options
from segsmith.engine.plane import adopt
from segsmith.errors import SegsmithError
from segsmith.events import Event, Notice, ReviewNeeded, RoundPlanned, SessionEnded, SessionStarted, Status
from segsmith.graph.context import RunContext
from segsmith.memory.ledger import RunSummary
from segsmith.memory.remote_run import working_folder
from segsmith.memory.run_config import RunRecord, added_classes, installed_versions, read_record, write_record
from segsmith.memory.run_folder import RunFolder
from segsmith.workflows.environment_errors import translate
from segsmith.workflows.interrupt import stop_on_interrupt
from segsmith.workflows.model_provenance import model_rows
from segsmith.workflows.models import fetch_missing
from segsmith.workflows.preflight import (
    check_classes,
    check_cluster,
    check_engine,
    check_machine,
    check_models,
    check_tracing,
)
from segsmith.workflows.progress import Callback, Display, Screen, open_display
from segsmith.workflows.rejudge import settled
from segsmith.workflows.resume import (
    finished_as,
    record_for,
    reentry,
    settings_of_run,
    starts_over,
    state_of_ledger,
    waiting,
)
from segsmith.workflows.reviewing import Reviewer, ask, terminal_reviewer
from segsmith.workflows.run import Run
from segsmith.workflows.settings import Settings, check_reach, check_used, check_used_with, overrides, resolve

LOCAL = EngineOptions()
THREAD = "build"
RECURSION_LIMIT = 10_000
"""Steps of one invocation; the director's budget ends a run long before."""
LEDGER_BEHIND = (
    "ledger.db is older than graph.db: its latest changes are lost. The run continues from what it holds, and "
    "makes again what is missing."
)
GRAPH_LOST = "graph.db holds no progress of this run, but the ledger does. The run continues from the ledger."
SAVE_EVERY_S = 1.0
"""Seconds between two updates of the time and memory that a run has taken."""
_FINISHED = object()

Parts = Mapping[str, Any]
"""What replaces the parts that the config would open, by the names of the properties of `RunContext`."""


def build(
    classes: str | Sequence[str] = (),
    out: str | Path = "runs/run",
    *,
    per_class: int | None = None,
    preset: str | None = None,
    config: str | Path | Config | None = None,
    settings: Settings | None = None,
    from_run: str | Path | None = None,
    trust: bool = False,
    seed: int | None = None,
    memory: str | Path | None = None,
    max_images: int | None = None,
    max_hours: float | None = None,
    max_usd: float | None = None,
    offline: bool = False,
    step: bool = False,
    reviewer: Reviewer | None = None,
    engine: str | EngineOptions = "local",
    address: str | None = None,
    workers: int | None = None,
    unit_timeout_s: float | None = None,
    on_event: Callback | None = None,
    progress: bool = True,
    screen: Screen | None = None,
    parts: Parts | None = None,
    command: str = "",
) -> Run:
    """Write prompts, draw, judge, relabel, segment, export, train and evaluate.

    The same call on the same `out` resumes a run that was stopped or killed; no work is repeated. On a finished run
    it does nothing but make again what is missing or out of date. A run grows when more images are wanted, a cap is
    raised, or classes are added at the end of the list: it keeps what it has, and makes dataset and segmenter again.

    Args:
        classes: class names, e.g. ``["cat", "dog"]``, in the order of the masks' indices from 1. A run in `out`
            keeps its classes where none are named.
        out: run folder, or a URL such as ``s3://bucket/run`` (docs/scale.md).
        per_class: accepted images wanted of each class.
        preset: ``sim``, ``cpu``, ``gpu`` or ``hosted``; None keeps the settings of a run in `out`, and picks the best
            preset for this machine for a new run.
        config: TOML file of settings, or a `Config` made by `load_config`, which needs no preset.
        settings: any setting, e.g. ``{"judge.top_k": 3}``; wins over `config`.
        from_run: ``run.toml`` of another run, whose settings are used in place of a preset.
        trust: take from it also the settings that reach outside of the run (`REACHING_OUTSIDE`).
        seed: another seed gives other prompts and images.
        memory: folder of a prompt memory that several runs share; None keeps one in the run folder.
        max_images: images drawn at most.
        max_hours: hours of writing and drawing at most, over all sessions.
        max_usd: US dollars spent on hosted models at most.
        offline: fetch nothing; a missing model is an error.
        step: pause at prompts, verdicts, labels and masks for a reviewer.
        reviewer: called at each pause with a `Pause`; returning False stops the build. Without one, `step` asks in
            the terminal. A reviewer implies `step`.
        engine: ``local`` does all work in this process; with ``ray``, all GPUs of this machine or a cluster draw,
            relabel and mask images and ask witnesses. The result is the same; a run may resume with another engine.
        address: ray: ``auto``, ``host:port`` or ``ray://host:port`` of a running cluster; None starts Ray here.
        workers: ray: number of workers at most; None: one for each GPU, or else for each CPU but one.
        unit_timeout_s: ray: seconds that a worker may take for a unit of images before it is replaced and another one
            does the unit; None: a multiple of what units have taken.
        on_event: called with every `Event`, in place of the progress display.
        progress: show a progress display in a terminal or notebook.
        screen: consoles for the progress display.
        parts: replaces models or agents, e.g. ``{"chat": my_chat_model}``.
        command: what the report names as the command of this run.

    Returns the run. Raises `SegsmithError`, whose message names the fix, for everything that a user can fix.
    """
    check_used("build", settings)
    out = working_folder(out, new=True)
    where = engine_options(engine, address, workers, unit_timeout_s)
    changes = overrides(
        settings,
        classes=classes,
        per_class=per_class,
        seed=seed,
        memory=memory,
        offline=offline,
        max_images=max_images,
        max_hours=max_hours,
        max_usd=max_usd,
    )
    if (
        from_run is None
        and not (preset or config or "classes" in changes)
        and RunFolder(Path(out)).config.exists()
    ):
        from_run = RunFolder(Path(out)).config
    with open_display(on_event, progress, screen) as display:
        if from_run is not None:
            if preset or config:
                raise SegsmithError("--from brings all settings.", "Leave --preset and --config out.")
            settled = _settings_of(Path(from_run), changes, display)
            if not trust and not _same_file(Path(from_run), RunFolder(Path(out)).config):
                check_reach(settled, changes, Path(from_run))
        elif not (preset or config) and (own := settings_of_run(RunFolder(Path(out)), changes)):
            settled = own
        else:
            settled, choice = resolve(preset=preset, config=config, changes=changes, run=Path(out))
            if choice.why:
                display.show(Notice(f"preset {choice.preset}: {choice.why}"))
        check_used_with(settled, settings, parts or ())
        return run_with_display(
            settled,
            Path(out),
            display,
            reviewer=reviewer or (terminal_reviewer((screen or Screen()).out) if step else None),
            parts=parts,
            command=command,
            engine=where,
        )


def run_with_display(
    config: Config,
    out: Path,
    display: Display,
    *,
    reviewer: Reviewer | None,
    parts: Parts | None,
    command: str,
    engine: EngineOptions = LOCAL,
    prepare: Callable[[], object] = lambda: None,
) -> Run:
    """Check, fetch models and build, with every event on `display`; the figures are kept for `plan`."""
    for warning in (*check_classes(config), *check_tracing(config)):
        display.show(Notice(warning, warning=True))
    check_engine(config, engine)
    if engine.address is not None and not finished_as(config, RunFolder(out)):
        check_cluster(engine)
    check_machine(config, tuple(parts or ()), ask_llm=not RunFolder(out).config.exists())
    fetch_missing(config, display.show)

    def in_the_foreground(pause: Any) -> bool | None:
        assert reviewer is not None
        with display.hidden():
            return reviewer(pause)

    ended = None
    for event in build_run(
        config,
        out,
        command,
        reviewer=in_the_foreground if reviewer else None,
        prepare=prepare,
        parts=parts,
        engine=engine,
    ):
        display.show(event)
        if isinstance(event, SessionEnded):
            ended = event
    run = Run(out, ended)
    if ended and ended.status == Status.FINISHED:
        run.remember_figures()
    return run


def build_run(
    config: Config,
    out: Path,
    command: str = "",
    *,
    reviewer: Reviewer | None = None,
    prepare: Callable[[], object] = lambda: None,
    parts: Parts | None = None,
    engine: EngineOptions = LOCAL,
) -> Generator[Event]:
    """Run the graph in `out` and yield its events, `SessionEnded` last; resumes, and closing it early loses nothing.

    With a `reviewer` the graph pauses wherever something has not been looked at. `prepare` is called when this
    process holds the folder, before anything else is written there; a later session may call it again. `parts`
    replaces what the config would open (see `RunContext`). Raises `SegsmithError` for everything that a user can fix.
    """
    from langgraph.types import Command

    from segsmith.graph.checkpoints import open_checkpoints
    from segsmith.graph.graph import build_graph

    run = RunFolder(out)
    with ExitStack() as stack:
        stack.enter_context(translate(run.root))
        anew = starts_over(run, config)
        record = RunRecord(config, installed_versions()) if anew else settled(run, record_for(run, config))
        config = record.config
        first = not run.config.exists()
        if first:
            check_models(config, replaced=tuple(parts or ()))
        run.create()
        stack.enter_context(run.held())
        prepare()
        if not run.config.exists():
            write_record(run.config, record)
        context = RunContext(
            config, run, step=reviewer is not None, parts=parts or {}, growing=True, engine=engine
        )
        stack.callback(context.close)
        if run.remote is not None:
            run.remote.recover_images(context.ledger.drawn_among, context.ledger.add_pending_images)
        if context.is_alone:
            adopt(run, context.ledger)
        stack.enter_context(stop_on_interrupt(context.stopping))
        saver = stack.enter_context(open_checkpoints(run.graph, lambda: context.ledger.sequence))
        if anew:
            saver.delete_thread(THREAD)
        elif saver.follow(context.ledger.sequence):
            yield Notice(LEDGER_BEHIND, warning=True)
        graph = build_graph(saver)
        options: Any = {
            "configurable": {"thread_id": THREAD},
            "recursion_limit": RECURSION_LIMIT,
            "max_concurrency": max(2, config.llm.concurrency),
        }
        snapshot = graph.get_state(options)
        added = added_classes(context.ledger, config)
        if not snapshot.values and (state := state_of_ledger(context.ledger)):
            graph.update_state(options, state, as_node="draw")
            snapshot = graph.get_state(options)
            if not context.ledger.events("merged"):
                yield Notice(GRAPH_LOST, warning=True)
        change = reentry(context, snapshot, added) if snapshot.values else None
        finished = bool(snapshot.values) and not waiting(snapshot) and change is None
        if not (
            first or finished
        ):  # opening the models takes longer than finding that there is nothing to do
            check_models(config, ask_llm=False, replaced=tuple(parts or ()))
        context.measure_added_classes()
        # After the ledger, whose columns a reader expects to fit the classes.
        write_record(run.config, record)
        if finished:
            # An earlier version stored no measurements, which `rejudge` needs.
            if context.ledger.unmeasured():
                context.judge_agent.measure()
            if not run.report.exists():  # an earlier session was killed between its last node and the report
                _write_report(context)
            yield _ended(Status.ALREADY_FINISHED, snapshot.values)
            return
        if change is not None:
            context.ledger.finished_at = None
            graph.update_state(options, dict(change.state), as_node=change.node)
            snapshot = graph.get_state(options)
        if context.ledger.set_aside:
            context.ledger.set_aside = {}
        yield SessionStarted(bool(snapshot.values), dict(config.wanted), context.ledger.tallies())
        context.ledger.versions = installed_versions()
        context.ledger.add_models(model_rows(config))
        clock = _Clock(context, command)
        given: Any = None if snapshot.values else {"round": 0}
        while given is not _FINISHED:
            stream = graph.stream(
                given,
                options,
                context=context,
                stream_mode=["custom", "updates"],
                durability="sync",
            )
            given = _FINISHED
            # Closed here, so that no node or checkpoint is still being written when the files below are closed.
            with closing(stream), _ends_nodes(context):
                for mode, item in stream:
                    clock.save_now_and_then()
                    if run.remote is not None:
                        run.remote.save_now_and_then()
                    while not context.told.empty():
                        yield Notice(context.told.get(), warning=True)
                    if mode == "custom":
                        yield item
                    elif "direct" in item:
                        yield RoundPlanned(item["direct"]["reason"])
                    elif "__interrupt__" in item:
                        asked = item["__interrupt__"][0].value
                        given = Command(resume=True)
            if given is not _FINISHED:
                assert reviewer is not None
                with clock.stopped():
                    yield ReviewNeeded(asked["kind"], tuple(asked["subjects"]))
                    clock.save()
                    if ask(reviewer, context, asked["kind"], asked["subjects"]) == "stop":
                        yield _ended(Status.STOPPED, graph.get_state(options).values)
                        return
        clock.save()
        _write_report(context)
        yield _ended(Status.FINISHED, graph.get_state(options).values)


@contextmanager
def _ends_nodes(context: RunContext) -> Iterator[None]:
    """Let running nodes end early when the caller stops asking for events."""
    try:
        yield
    except GeneratorExit:
        context.stopping.set()
        raise


def _settings_of(path: Path, changes: Settings, display: Display) -> Config:
    """The settings in the ``run.toml`` of another run, with a notice where package versions differ."""
    record = read_record(path)
    installed = installed_versions()
    other = [name for name, version in record.versions.items() if installed.get(name, version) != version]
    if other:
        display.show(
            Notice(f"other package versions than in that run, so images may differ: {', '.join(other)}", True)
        )
    return merged_config(record.config, changes, str(path))


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _ended(status: Status, state: Mapping[str, Any]) -> SessionEnded:
    return SessionEnded(status, state.get("reason", ""), dict(state.get("missing", {})), state.get("cap", ""))


class _Clock:
    """Wall time over all sessions of a run, and this process's peak memory, kept in the ledger."""

    def __init__(self, context: RunContext, command: str) -> None:
        self._ledger = context.ledger
        self._before = context.ledger.summary
        self._started = time.monotonic()
        self._saved = 0.0
        self._command = command

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Do not count the time that a reviewer takes to decide."""
        since = time.monotonic()
        yield
        self._started += time.monotonic() - since

    def save_now_and_then(self) -> None:
        """`save`, if that was not done within `SAVE_EVERY_S`: events come faster than a disk can sync."""
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        self._saved = time.monotonic()
        elapsed = self._saved - self._started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory = peak / 1024 if os.uname().sysname != "Darwin" else peak / 1024**2
        drawing = [detail for _, _, detail in self._ledger.events("drawn")]
        images, seconds = (sum(d[key] for d in drawing) for key in ("images", "seconds"))
        self._ledger.summary = RunSummary(
            wall_seconds=self._before.wall_seconds + elapsed,
            peak_memory_mb=max(memory, self._before.peak_memory_mb),
            images_per_second=images / seconds if seconds else 0.0,
            command=self._command or self._before.command,
        )


def _write_report(context: RunContext) -> None:
    from segsmith.report.report import build_report

    build_report(context.run, context.ledger, context.config)
