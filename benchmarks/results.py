"""Everything that docs/results.md shows, from the code as it is.

    make results                                  # three to five hours on two cores; rerun it to continue
    python -m benchmarks.results --hours 2        # start no further part after two hours
    python -m benchmarks.results --jobs 1         # one part after the other
    python -m benchmarks.results --page           # write the page from the results that are there
    python -m benchmarks.results --continue-from docs/results.json

Each part is a benchmark of its own, keeps its figures under ``runs/``, and measures nothing twice. Two parts run at a
time, each with half of the cores; those that measure seconds run alone, after the others. The page is
`benchmarks/results.md` with the parts' tables filled in; a part that was not measured is named on it. A note in
``runs/results/measured.json`` says at which commits each part was measured, so that the page can say so. Beside the
page lies ``results.json`` with every figure of every seed; ``--continue-from`` takes what such a file of another
machine holds instead of measuring it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import string
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.charts import bars
from segsmith.files import write_atomic

RUNS = Path("runs")
ROOT = RUNS / "results"
TEMPLATE = Path(__file__).with_suffix(".md")


@dataclass(frozen=True)
class Part:
    """One command of the page; `table` prints its figures as Markdown without measuring."""

    name: str
    command: tuple[str, ...]
    table: tuple[str, ...] | None = None
    """None if the command's own output is Markdown."""
    figures: str = ""
    """Pattern of the files below `RUNS` that hold its figures; without one, its log does."""
    phase: int = 0
    """Parts of a phase start when those of all earlier ones have ended."""
    alone: bool = False
    """Nothing may run beside it."""

    @property
    def resumes(self) -> bool:
        """Whether its command measures only what is missing; another one starts over, and is given once."""
        return "*" in self.figures


PARTS = (
    Part("quality", ("sim_quality",), ("sim_quality", "--table"), "quality/voc/seed*/*.json"),
    Part(
        "quality_other",
        ("sim_quality", "--classes", "voc-other", "--only", "full", "exact"),
        ("sim_quality", "--classes", "voc-other", "--table"),
        "quality/voc-other/seed*/*.json",
    ),
    Part(
        "quality_nouns",
        ("sim_quality", "--classes", "nouns", "--only", "full", "exact"),
        ("sim_quality", "--classes", "nouns", "--table"),
        "quality/nouns/seed*/*.json",
    ),
    Part("augment", ("iaa", "--seeds", "3", "4", "5"), ("iaa", "--table"), "iaa/seed*/*.json"),
    Part(
        "weak_labels",
        ("sesam", "--seeds", "3", "4", "5", "--only", "main"),
        ("sesam", "--table"),
        "sesam/seed*/results/*.json",
    ),
    # Trains on the runs of the first part.
    Part(
        "ratio",
        ("segmenter_ratio",),
        ("segmenter_ratio", "--table"),
        "ratio/gouache/run/*/seed*.json",
        phase=1,
    ),
    Part(
        "kills",
        ("kill_anywhere", "--kills", "10", "--scenario", "all", "--out", "runs/results/kills.json"),
        ("kill_anywhere", "--out", "runs/results/kills.json", "--table"),
        "results/kills.json",
        phase=1,
    ),
    Part("online_filter", ("online_filter",), phase=2, alone=True),
    Part("peers", ("peers",), ("peers", "--table"), "peers/peers.json", phase=2, alone=True),
)
_note_lock = threading.Lock()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=4.0, help="start no further part after so many hours")
    parser.add_argument("--jobs", type=int, default=2, help="parts that run at a time (default 2)")
    parser.add_argument("--only", nargs="+", choices=[p.name for p in PARTS], help="parts to measure")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--continue-from", type=Path, metavar="FILE", help="results.json of another machine")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"), help="the page to write")
    given = parser.parse_args()
    if given.continue_from:
        take_over(given.continue_from)
    if not given.page:
        if given.jobs < 1:
            parser.error("--jobs must be at least 1")
        end = time.monotonic() + 3600 * given.hours
        parts = [part for part in PARTS if not given.only or part.name in given.only]
        for _, phase in groupby(parts, key=lambda part: (part.phase, part.alone)):
            together = list(phase)
            jobs = 1 if together[0].alone else given.jobs
            with ThreadPoolExecutor(jobs) as pool:
                list(pool.map(partial(measure, jobs=jobs, end=end), together))
    given.out.write_text(page(given.out.parent / "images"), "utf-8")
    write_atomic(given.out.with_suffix(".json"), json.dumps(figures(), indent=1).encode())
    print(given.out)


def files_of(part: Part) -> list[Path]:
    """The files that hold a part's figures."""
    found = RUNS.glob(part.figures) if part.figures else [ROOT / f"{part.name}.log"]
    return sorted(path for path in found if path.exists())


def figures() -> dict[str, Any]:
    """The notes, and each file of figures by its path below `RUNS`; a log is a list of lines."""
    found: dict[str, Any] = {"measured": notes(), "files": {}}
    for part in PARTS:
        for path in files_of(part) if part.name in notes() else ():
            text = path.read_text("utf-8")
            values = json.loads(text) if path.suffix == ".json" else text.splitlines()
            found["files"][path.relative_to(RUNS).as_posix()] = values
    return found


def take_over(file: Path) -> None:
    """Put the figures of another machine where they would have been measured; those that are there stay."""
    given = json.loads(file.read_text("utf-8"))
    for name, values in given["files"].items():
        path = RUNS / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(values, indent=1) if path.suffix == ".json" else "\n".join(values)
            write_atomic(path, text.encode())
    ROOT.mkdir(parents=True, exist_ok=True)
    write_atomic(ROOT / "measured.json", json.dumps({**given["measured"], **notes()}, indent=1).encode())


def measure(part: Part, jobs: int, end: float) -> None:
    """Run a part to its end; its output goes to a log, and to the page if it has no table of its own.

    It is not started after `end`, in seconds of `time.monotonic`. What an interrupted part has measured is noted.
    """
    if part.name in notes() and not part.resumes:
        return
    if time.monotonic() > end:
        print(f"{part.name}: not started, the time is over; rerun to continue", flush=True)
        return
    ROOT.mkdir(parents=True, exist_ok=True)
    log = ROOT / f"{part.name}.log"
    print(f"{part.name}: python -m benchmarks.{' '.join(part.command)} (log: {log})", flush=True)
    started, before = time.monotonic(), files_of(part)
    with log.open("w") as lines:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{part.command[0]}", *part.command[1:]],
            stdout=lines, stderr=subprocess.STDOUT, check=False,
            env={**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))},
        )  # fmt: skip
    if done.returncode:
        print(f"{part.name}: failed with exit code {done.returncode}; see {log}", flush=True)
    if files_of(part) != before if part.resumes else not done.returncode:
        note_measured(part, (time.monotonic() - started) / 3600)


def note_measured(part: Part, hours: float) -> None:
    with _note_lock:
        note = notes()
        earlier = note.get(part.name, {"commits": [], "hours": 0.0})
        note[part.name] = {
            "commits": list(dict.fromkeys([*earlier["commits"], commit()])),
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "hours": round(earlier["hours"] + hours, 2),
        }
        write_atomic(ROOT / "measured.json", json.dumps(note, indent=1).encode())


def notes() -> dict[str, dict[str, Any]]:
    """Part -> commits, last date and hours of the calls that measured it."""
    path = ROOT / "measured.json"
    return json.loads(path.read_text()) if path.exists() else {}


def commit() -> str:
    """Short hash of the checkout, with a + if files that are tracked have changed."""
    run = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout  # noqa: E731
    changed = "+" if run("status", "--porcelain", "--untracked-files=no").strip() else ""
    return run("rev-parse", "--short", "HEAD").strip() + changed


def page(images: Path) -> str:
    """The template with every part's table, command and origin; `$name` and `$name_how` stand for them.

    The chart is written into the folder `images`.
    """
    measured, values = notes(), {}
    for part in PARTS:
        how = f"`python -m benchmarks.{' '.join(part.command)}`"
        if part.name not in measured:
            values[part.name], values[f"{part.name}_how"] = "*Not measured.*", how
            continue
        origin = measured[part.name]
        values[part.name] = shown(part)
        values[f"{part.name}_how"] = (
            f"{how}; commit {', '.join(origin['commits'])}, {origin['date']}, {origin['hours']} hours"
        )
    chart = quality_chart(images)
    values["chart"] = (
        f"![test-set mIoU of the pipeline and its ablations](images/{chart.name})" if chart else ""
    )
    values["hours"] = f"{sum(origin['hours'] for origin in measured.values()):.1f}"
    values["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    return string.Template(TEMPLATE.read_text("utf-8")).substitute(values)


def shown(part: Part) -> str:
    """A part's figures as Markdown."""
    if part.table is None:
        return (ROOT / f"{part.name}.log").read_text("utf-8").strip()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{part.table[0]}", *part.table[1:]],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def quality_chart(images: Path) -> Path | None:
    """Test-set mIoU of the full pipeline, of its ablations and of exact masks, with the spread over the seeds."""
    from benchmarks.sim_quality import ROOT as QUALITY

    names = {
        "full": "full pipeline", "exact": "exact masks", "judge_off": "judge off", "relabel_off": "relabelling off",
        "refiner_off": "mask refiner off", "sam_off": "SAM off", "check_off": "region check off",
    }  # fmt: skip
    rows = []
    for name, label in names.items():
        found = [
            json.loads(p.read_text())["real_miou"]
            for p in sorted((QUALITY / "voc").glob(f"seed*/{name}.json"))
        ]
        if found:
            rows.append((label, found))
    if not rows:
        return None
    images.mkdir(parents=True, exist_ok=True)
    path = images / "results-miou.svg"
    write_atomic(path, bars("mIoU on the test set", rows).encode())
    return path


if __name__ == "__main__":
    main()
