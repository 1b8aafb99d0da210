"""Kill a command at random moments over its whole length, give the same command again, and compare the results.

    python -m benchmarks.kill_anywhere --kills 60 --seed 0 --out kills.json     # build
    python -m benchmarks.kill_anywhere --scenario all --kills 10                # and train, refine, augment, ...
    python -m benchmarks.kill_anywhere --images 2000 --kills 5                  # a large build
    python -m benchmarks.kill_anywhere --out kills.json --table                 # print its figures again

The exit code is 1 if a killed run differs from an untouched one. Processes are forked from a server that has imported
the heavy libraries, so a killed build costs seconds. The language model is scripted (its answer follows from its
question) unless ``--llama`` asks for the real server; its answers vary from run to run, so then only what the ledger
had promised before the kill is compared. ``--images`` builds a run of that size with instant stand-ins for all models
(`segsmith.testing`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from segsmith.events import EpochFinished, Event, ImagesDrawn, RoundPlanned, Stage, StageStarted
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import (
    InstantChat,
    ScriptedChat,
    fingerprint,
    instant_config,
    instant_parts,
    leftovers,
    small_config,
)

FORK = multiprocessing.get_context("forkserver")
"""Forks of a clean process, because forks of a process with threads, such as a test run, may hang."""
PRELOAD = (
    "segsmith.datasets.export", "segsmith.graph.graph", "segsmith.workflows.build",
    "segsmith.report.report", "segsmith.segmentation.trainer", "segsmith.tools.vision.clip",
    "segsmith.tools.llm.chat", "segsmith.tools.vision.sam", "segsmith.tools.images.simulator",
    "segsmith.tools.vision.vit",
)  # fmt: skip
Models = Literal["scripted", "llama", "instant"]
"""What writes the prompts: a script, the real server, or stand-ins for all models."""
CLASSES = ("cat", "dog", "bus", "car", "horse", "sheep", "cow", "elephant", "bear", "zebra")
"""Of a build with instant models."""
STAGES = ("starting", "writing prompts", "drawing", "judging", "relabelling", "segmenting", "exporting",
          "training", "evaluating and report")  # fmt: skip


class CountingChat(InstantChat):
    """Writes down what was asked."""

    def __init__(self, tell: Any) -> None:
        super().__init__()
        self._tell = tell

    def ask(self, system: str, user: str, schema: Any, *, seed: int) -> Any:
        self._tell("ask", _sha(f"{user}{seed}".encode())[:12])
        return super().ask(system, user, schema, seed=seed)


class CountingBackend:
    """Passes everything on to the simulator and writes down what was drawn."""

    def __init__(self, inner: Any, tell: Any) -> None:
        self._inner = inner
        self._tell = tell
        self.name = inner.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def draw(self, requests: Any, *watching: Any) -> Any:
        for drawn in self._inner.draw(requests, *watching):
            self._tell("draw", f"{requests[drawn.index].seed}")
            yield drawn


def build_once(config: Any, out: Path, journal: Path, models: Models) -> None:
    """One session of a build; what it does goes to `journal`, one line each."""
    from segsmith.engine.models import open_image_backend
    from segsmith.workflows.build import build_run

    handle = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(kind: str, what: str) -> None:
        os.write(handle, f"{kind} {what}\n".encode())

    parts: dict[str, Any] = instant_parts(config, out) if models == "instant" else {}
    parts["backend"] = CountingBackend(parts.get("backend") or open_image_backend(config), tell)
    if models == "instant":
        parts["chat"] = CountingChat(tell)
    elif models == "scripted":
        parts["chat"] = ScriptedChat(
            on_ask=lambda user, seed: tell("ask", _sha(f"{user}{seed}".encode())[:12])
        )
    tell("start", str(os.getpid()))
    tell("stage", STAGES[0])
    for event in build_run(config, out, "kill_anywhere", parts=parts):
        if stage := _begun(event):
            tell("stage", stage)
        if isinstance(event, EpochFinished):
            tell("epoch", str(event.epoch))
    tell("end", "")


def _begun(event: Event) -> str:
    """The stage that begins with an event of the build, "" for none."""
    if isinstance(event, RoundPlanned):
        return {"need_prompts": STAGES[1], "draw": STAGES[2]}.get(event.reason, "")
    if isinstance(event, ImagesDrawn) and event.done == event.total:
        return STAGES[3]
    if isinstance(event, StageStarted):
        return STAGES[-1] if event.stage is Stage.EVALUATING else event.stage.value
    return ""


def _child(config: Any, out: Path, journal: Path, models: Models) -> None:
    import torch

    torch.set_num_threads(1)
    quiet = os.open(journal.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    # SIGKILL loses no page that was written, only a power cut does; and this waits for all disks of the machine.
    os.sync = lambda: None
    build_once(config, out, journal, models)


def came_to_its_end(process: Any, kill_after: float | None) -> bool:
    """Run a process; False if it had to be killed because it was still running after `kill_after` seconds."""
    process.start()
    process.join(kill_after)
    if not process.is_alive():
        return True
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return False


def session(
    config: Any,
    out: Path,
    journal: Path,
    *,
    kill_after: float | None = None,
    models: Models = "scripted",
) -> bool:
    """Run a session and kill it after `kill_after` seconds; whether it came to its end."""
    process = FORK.Process(target=_child, args=(config, out, journal, models))
    if not came_to_its_end(process, kill_after) or process.exitcode == -signal.SIGKILL:
        return False
    if process.exitcode:
        raise RuntimeError(f"the build failed: {journal.with_suffix('.err').read_text()[-2000:]}")
    return True


def memory_matches(out: Path) -> bool:
    """Does the prompt memory hold exactly the admitted prompts?"""
    code = FORK.Process(target=_memory_child, args=(out,))
    code.start()
    code.join()
    return code.exitcode == 0


def _memory_child(out: Path) -> None:
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(str(out / "memory"), Settings(anonymized_telemetry=False))
    held = sorted(i for c in client.list_collections() for i in c.get(include=[])["ids"])
    db = sqlite3.connect(out / "ledger.db")
    admitted = sorted(i for (i,) in db.execute("SELECT id FROM prompts WHERE status='admitted'"))
    sys.exit(held != admitted)


def promised(out: Path) -> dict[str, str]:
    """Image id -> SHA-256 of the images in the ledger right after a kill; each file must be whole."""
    if not (out / "ledger.db").exists():
        return {}
    db = sqlite3.connect(out / "ledger.db")
    try:
        rows = db.execute("SELECT id, sha256 FROM images").fetchall()
    except sqlite3.OperationalError:  # killed before the tables were there
        rows = []
    db.close()
    whole = {i: sha for i, sha in rows if _sha(RunFolder(out).image(i).read_bytes()) == sha}
    assert len(whole) == len(rows), "the ledger names an image whose file is not whole"
    return whole


def journal_of(path: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in path.read_text().splitlines())


def stage_of(path: Path) -> str:
    """The stage that a session was in when it was killed."""
    begun = [
        line.removeprefix("stage ") for line in path.read_text().splitlines() if line.startswith("stage ")
    ]
    return begun[-1] if begun else STAGES[0]


def repeats(path: Path) -> dict[str, int]:
    """Kind of work -> how often something that had been done was done again."""
    counts = Counter(path.read_text().splitlines())
    again: Counter[str] = Counter()
    for line, n in counts.items():
        again[line.split()[0]] += n - 1
    return {kind: again[kind] for kind in ("ask", "draw", "epoch")}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def preload() -> None:
    """Start the server that sessions are forked from; it has imported what they need."""
    FORK.set_forkserver_preload(list(PRELOAD))
    process = FORK.Process(target=os.getpid)
    process.start()
    process.join()


def kill_anywhere(
    folder: Path,
    kills: int,
    seed: int,
    *,
    models: Models = "scripted",
    images: int = 0,
    say: Any = lambda line: None,
) -> dict[str, Any]:
    """Build once without a stop, then `kills` times with one; returns the figures.

    `images` accepted images are built with instant models; 0 builds the small run of the other models.
    """
    preload()
    os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
    config = instant_config(CLASSES, images // len(CLASSES)) if models == "instant" else small_config()
    began = time.monotonic()
    session(config, folder / "whole", folder / "whole.txt", models=models)
    length = time.monotonic() - began
    want = fingerprint(folder / "whole")
    assert not leftovers(folder / "whole"), leftovers(folder / "whole")
    rng = random.Random(seed)
    moments = [length * (i + rng.random()) / kills for i in range(kills)]
    figures: dict[str, Any] = {
        "kills": kills, "seconds of the uninterrupted build": round(length, 1),
        "too late, tried earlier": 0, "kills by stage": dict.fromkeys(STAGES, 0), "identical": 0,
        "half-written or unknown files": 0, "memory consistent": 0, "lost images": 0,
        "again": Counter(), "most again": Counter(),
        "work of the whole build": dict(journal_of(folder / "whole.txt")),
        "different": [],
    }  # fmt: skip
    for number, moment in enumerate(moments):
        out, journal = folder / f"run{number}", folder / f"run{number}.txt"
        while session(config, out, journal, kill_after=moment, models=models):
            # The machine was quicker than at the first build: this one was over before its moment.
            figures["too late, tried earlier"] += 1
            shutil.rmtree(out)
            journal.unlink()
            moment *= rng.random()
        stage = stage_of(journal)
        figures["kills by stage"][stage] += 1
        before = promised(out)
        session(config, out, journal, models=models)
        got = fingerprint(out)
        different = sorted(k for k in {*want, *got} if want.get(k) != got.get(k))
        figures["identical"] += not different
        if different and models != "llama":
            figures["different"].append({"moment": round(moment, 2), "stage": stage, "what": different[:6]})
        figures["half-written or unknown files"] += len(leftovers(out))
        figures["memory consistent"] += memory_matches(out)
        figures["lost images"] += sum(
            got.get(RunFolder(out).image(i).relative_to(out).as_posix()) != sha for i, sha in before.items()
        )
        again = repeats(journal)
        figures["again"].update(again)
        for kind, n in again.items():
            figures["most again"][kind] = max(figures["most again"][kind], n)
        say(
            f"{number + 1}/{kills} at {moment:.2f} s, {stage}: "
            f"{'identical' if not different else different[:4]}, again {again}"
        )
        shutil.rmtree(out)
    return figures


def main() -> None:
    from benchmarks.kill_commands import SCENARIOS, kill_commands

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--scenario", choices=("build", *SCENARIOS, "all"), default="build", help="what is killed"
    )
    parser.add_argument("--kills", type=int, default=60, help="per scenario (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--llama", action="store_true", help="build: the real llama.cpp server writes the prompts"
    )
    parser.add_argument("--images", type=int, default=0, help="build: size of a run with instant models")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--table", action="store_true", help="only print the figures of --out")
    given = parser.parse_args()
    if given.table:
        if not given.out:
            parser.error("--table needs --out, the file of the figures")
        return print(table(json.loads(given.out.read_text())))
    names = ("build", *SCENARIOS) if given.scenario == "all" else (given.scenario,)
    figures = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            if name == "build":
                models: Models = "instant" if given.images else "llama" if given.llama else "scripted"
                figures[name] = kill_anywhere(
                    Path(folder), given.kills, given.seed, models=models, images=given.images, say=_say
                )
            else:
                figures[name] = kill_commands(name, Path(folder), given.kills, given.seed, say=_say)
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1))
    print(table(figures))
    sys.exit(any(found["different"] or found["half-written or unknown files"] for found in figures.values()))


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown of what was killed and what came of it."""
    lines = [
        "| command | kills | same bytes afterwards | half-written or unknown files | lost images "
        "| images drawn again | epochs trained again |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in figures.items():
        again = found.get("again", {})
        lines.append(
            f"| `{name}` | {found['kills']} | {found['identical']} | {found['half-written or unknown files']} "
            f"| {found.get('lost images', '')} | {again.get('draw', '')} | {again.get('epoch', '')} |"
        )
    return "\n".join(lines)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
