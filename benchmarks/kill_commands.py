"""Scenarios of `benchmarks.kill_anywhere` beside `build`: commands that are killed and given again.

Each scenario is a list of command lines. An untouched process runs them first; then further processes run the same
lines, are killed at a random moment, and run them again. What they leave behind is compared byte by byte.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kill_anywhere import FORK, came_to_its_end, preload
from segsmith.datasets.detect import EXPORTS
from segsmith.datasets.export import export_dataset
from segsmith.datasets.voc_layout import write_voc
from segsmith.files import PART, sha256_of
from segsmith.testing import ScriptedChat, fingerprint, leftovers, made_up_run, small_config

CLASSES = ("cat", "bus")
SHORT_TRAINING = ("--set", "trainer.epochs=3", "--set", "trainer.batch_size=4")
CHANGING = (".lock", "segsmith.log", "llm-server.log", "report.html", "ledger.db", "ledger.db-wal", "ledger.db-shm",
            "graph.db", "graph.db-wal", "graph.db-shm", "objects.db")  # fmt: skip
"""Files that may differ between equal runs: times, process ids, database pages. Databases are compared by rows,
except objects.db, a cache whose entries are checked when they are read."""
CHANGING_FOLDERS = ("memory",)
Line = Sequence[object]


@dataclass(frozen=True)
class Scenario:
    """`prepare(inputs)` makes what the commands read; `start(inputs, out)` makes what they change, if anything."""

    prepare: Callable[[Path], None]
    lines: Callable[[Path, Path], Sequence[Line]]
    """(inputs, out) -> command lines."""
    contents: Callable[[Path], dict[str, str]]
    """What the commands leave behind in `out`: name -> hash."""
    start: Callable[[Path, Path], object] = lambda inputs, out: None


# -- inputs -----------------------------------------------------------------------------------------


def _made_up_voc(inputs: Path) -> None:
    """``voc``: 24 made-up images with masks, in VOC's layout."""
    run, ledger, config = made_up_run(inputs / "run", 24, size=64)
    folder = export_dataset(run, ledger, config, "voc").folder
    ledger.close()
    shutil.copytree(folder, inputs / "voc")


def _points(inputs: Path) -> None:
    _made_up_voc(inputs)
    command("weaken", "--dataset", inputs / "voc", "--kind", "points", "--out", inputs / "points")


def _real_images(inputs: Path) -> None:
    """``real``: ten scenes to train on and two to validate with, as a user's dataset."""
    from segsmith.tools.images.simulator import unseen_scenes

    scenes = enumerate(unseen_scenes(CLASSES, 12, 3, 64))
    pairs = [(f"{number:02d}", scene.image, scene.class_mask(CLASSES)) for number, scene in scenes]
    write_voc(inputs / "real", CLASSES, {"train": pairs[:10], "val": pairs[10:]})


def _finished_run(inputs: Path) -> None:
    from segsmith.workflows.build import build_run

    for _ in build_run(
        small_config(evaluation={"images": 0}), inputs / "run", parts={"chat": ScriptedChat()}
    ):
        pass


def _made_up(inputs: Path) -> None:
    made_up_run(inputs / "run", 120, size=128)[1].close()


def _copy_run(inputs: Path, out: Path) -> None:
    shutil.copytree(inputs / "run", out)


# -- contents ---------------------------------------------------------------------------------------


def files_of(out: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of each file, without those that may differ."""
    files = [p for p in sorted(out.rglob("*")) if p.is_file() and p.name not in CHANGING]
    relative = {p.relative_to(out): p for p in files}
    return {str(r): sha256_of(p) for r, p in relative.items() if r.parts[0] not in CHANGING_FOLDERS}


def run_contents(out: Path) -> dict[str, str]:
    """The files of a run folder, and the rows of its ledger."""
    return fingerprint(out) | files_of(out)


def half_written(out: Path) -> list[str]:
    """Leftovers of a killed process: part files everywhere, and in a run folder files without a row."""
    if (out / "ledger.db").exists():
        return leftovers(out)
    return [
        str(p.relative_to(out)) for p in out.rglob("*") if p.name.startswith(PART) or p.name.endswith(".old")
    ]


SCENARIOS = {
    "train": Scenario(
        _made_up_voc,
        lambda inputs, out: [("train", "--dataset", inputs / "voc", "--out", out, *SHORT_TRAINING)],
        files_of,
    ),
    "refine": Scenario(
        _points,
        lambda inputs, out: [
            ("refine", "--dataset", inputs / "points", "--weak", "points", "--out", out, *SHORT_TRAINING)
        ],
        files_of,
    ),
    "augment": Scenario(
        _real_images,
        lambda inputs, out: [
            ("augment", "--dataset", inputs / "real", "--add-per-class", 2, "--out", out, "--preset", "sim",
             "--allow-simulator", *SHORT_TRAINING, "--set", "images.size=64", "--set", "images.batch_size=4",
             "--set", "labeler.epochs=1", "--set", "labeler.folds=2", "--set", "evaluation.images=0",
             "--set", "llm.concurrency=1")
        ],
        run_contents,
    ),
    "rejudge": Scenario(
        _finished_run,
        lambda inputs, out: [
            ("rejudge", out, "--threshold", "cat=1.0"),
            # The cap keeps the build from drawing more cats; it makes the dataset of the new verdicts.
            ("build", "--from", out / "run.toml", "--out", out, "--set", "budget.max_images=1"),
        ],
        run_contents,
        _copy_run,
    ),
    "export": Scenario(
        _made_up,
        lambda inputs, out: [("export", out, "--format", form) for form in EXPORTS],
        run_contents,
        _copy_run,
    ),
}  # fmt: skip


# -- running and killing ----------------------------------------------------------------------------


def command(*line: object) -> None:
    """Run one command line of segsmith in this process; raises `RuntimeError` unless it succeeds."""
    from segsmith import cli

    sys.argv = ["segsmith", *map(str, line)]
    try:
        cli.main({"chat": ScriptedChat()})
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{' '.join(sys.argv)} ended with {stop.code}") from None


def _child(lines: Sequence[Line], log: Path) -> None:
    import torch

    torch.set_num_threads(1)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.sync = lambda: None  # SIGKILL loses no written page, and syncing waits for every disk of the machine
    for line in lines:
        command(*line)


def run_lines(lines: Sequence[Line], log: Path, kill_after: float | None = None) -> bool:
    """Run command lines in a process and kill it after `kill_after` seconds; whether it came to its end."""
    process = FORK.Process(target=_child, args=(lines, log))
    if not came_to_its_end(process, kill_after):
        return False
    if process.exitcode:
        raise RuntimeError(f"a command failed:\n{log.read_text()[-3000:]}")
    return True


def kill_commands(
    name: str, folder: Path, kills: int, seed: int, say: Callable[[str], object] = lambda line: None
) -> dict[str, Any]:
    """Run a scenario once untouched, then `kills` times with a kill in each; returns the figures."""
    preload()
    scenario = SCENARIOS[name]
    inputs, log = folder / "inputs", folder / "log.txt"
    inputs.mkdir(parents=True)
    preparation = FORK.Process(target=scenario.prepare, args=(inputs,))
    preparation.start()
    preparation.join()
    if preparation.exitcode:
        raise RuntimeError(f"the inputs of scenario {name} could not be made")

    # Commands write the path of their output into some files, so every attempt is made in the same place.
    out = folder / "out"
    scenario.start(inputs, out)
    began = time.monotonic()
    run_lines(scenario.lines(inputs, out), log)
    length = time.monotonic() - began
    want = scenario.contents(out)
    assert not half_written(out), half_written(out)

    rng = random.Random(seed)
    figures: dict[str, Any] = {
        "kills": kills, "seconds of the untouched commands": round(length, 1), "too late, tried earlier": 0,
        "identical": 0, "half-written or unknown files": 0, "different": [],
    }  # fmt: skip
    for number in range(kills):
        moment = length * (number + rng.random()) / kills
        while True:
            shutil.rmtree(out, ignore_errors=True)
            scenario.start(inputs, out)
            if not run_lines(scenario.lines(inputs, out), log, kill_after=moment):
                break
            figures["too late, tried earlier"] += 1  # the machine was faster than the first time
            moment *= rng.random()
        run_lines(scenario.lines(inputs, out), log)
        got = scenario.contents(out)
        different = sorted(k for k in {*want, *got} if want.get(k) != got.get(k))
        left = half_written(out)
        figures["identical"] += not different
        figures["half-written or unknown files"] += len(left)
        if different or left:
            figures["different"].append({"moment": round(moment, 2), "what": [*different, *left][:8]})
        say(f"{name} {number + 1}/{kills} at {moment:.2f} s: {[*different, *left][:4] or 'identical'}")
    return figures
