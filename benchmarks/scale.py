"""How the cost of a run grows with its size: builds with instant stand-ins for all models.

    python -m benchmarks.scale --quick                          # 1,000 and 4,000 images, and the ratio of their costs
    python -m benchmarks.scale --sizes 1000 4000 16000 --svg docs/images/scale.svg
    python -m benchmarks.scale --sizes 200 20000 --pixels 1024  # for the peak memory
    python -m benchmarks.scale --out scale.json --continue      # after it was stopped: the sizes that are missing
    python -m benchmarks.scale --novelty 1000000                # only the search in a large prompt memory

Every size is built in a process of its own, then opened twice, as a resumed session would, which is timed with the
start of its process. The first session may look at files that the build left unchecked. Processor time is counted,
since other work on the machine changes it little, without that inside of the stand-ins: what remains is segsmith's
own work. Seconds on the clock are given beside it; they include waiting for the disk. The figures of a size are
printed, and written to --out, as soon as they are there.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import multiprocessing
import os
import pstats
import resource
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsmith.events import (
    Event,
    ImagesDrawn,
    RoundJudged,
    RoundPlanned,
    SessionEnded,
    Stage,
    StageStarted,
    Status,
)
from segsmith.testing import instant_config, instant_parts

CLASSES = (
    "cat", "dog", "bus", "car", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "airplane",
    "boat", "bicycle", "train", "truck", "chair", "clock", "apple", "banana",
)  # fmt: skip
QUICK = (1_000, 4_000)
SIZES = (1_000, 4_000, 16_000, 64_000)
STAND_INS = {
    "chat": ("ask",),
    "backend": ("draw",),
    "encoder": ("embed_images", "embed_texts"),
    "classifier": ("out_of_fold",),
    "segmenter": ("segment", "segment_many"),
}
WARM_UP = 40
PER_IMAGE_MS = 10.0
NOVELTY_MS = 5.0
ADDED_TOGETHER = 500
"""Chroma indexes prompts a thousand at a time, and goes through those that wait one by one: as many as this here."""
ASKED_TOGETHER = 10
"""Prompts of a class that are checked at once."""
TURNS = 20
RATIO = 1.3


class Timed:
    """Passes everything on to a stand-in, and adds up the processor time that it takes."""

    def __init__(self, inner: Any, methods: tuple[str, ...], clock: dict[str, float]) -> None:
        self._inner = inner
        self._methods = methods
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if name not in self._methods:
            return value

        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.thread_time()
            result = value(*arguments, **named)
            self._clock["models"] += time.thread_time() - began
            return self._each(result) if isinstance(result, Iterator) else result

        return timed

    def _each(self, results: Iterator[Any]) -> Iterator[Any]:
        while True:
            began = time.thread_time()
            result = next(results, None)
            self._clock["models"] += time.thread_time() - began
            if result is None:
                return
            yield result


def build(folder: Path, images: int, pixels: int, profile: Path | None = None) -> dict[str, Any]:
    """Build a run of `images` accepted images in this process; returns its figures."""
    from segsmith.workflows.build import build_run

    os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
    config = instant_config(CLASSES, images // len(CLASSES), pixels, budget={"max_rounds": 1_000_000})
    clock = defaultdict[str, float](float)
    parts = instant_parts(config, folder)
    parts |= {name: Timed(parts[name], methods, clock) for name, methods in STAND_INS.items()}
    stages = defaultdict[str, float](float)
    rounds, stage = 0, "prompts"
    began, since = time.monotonic(), time.process_time()
    first = since
    models = 0.0
    ended = None
    profiled = AllThreads() if profile is not None else None
    for event in build_run(config, folder, "scale", parts=parts):
        rounds += isinstance(event, RoundJudged)
        if (begun := begun_stage(event)) and begun != stage:
            now = time.process_time()
            stages[stage] += now - since - (clock["models"] - models)
            since, models, stage = now, clock["models"], begun
        if isinstance(event, SessionEnded):
            ended = event
    wall = time.monotonic() - began
    stages[stage] += time.process_time() - since - (clock["models"] - models)
    if profiled is not None and profile is not None:
        profiled.write(profile)
    assert ended is not None
    missing = sum(ended.missing.values())
    accepted = images - missing
    own = time.process_time() - first - clock["models"]
    return {
        "images": images,
        "pixels": pixels,
        "accepted": accepted,
        "ended": ended.reason,
        "rounds": rounds,
        "seconds": round(wall, 1),
        "own seconds": round(own, 1),
        "own ms per image": round(1000 * own / accepted, 2),
        "ms per image by stage": {name: round(1000 * s / accepted, 2) for name, s in stages.items()},
        "peak memory, MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "ledger, MB": megabytes(folder / "ledger.db"),
        "graph, MB": megabytes(folder / "graph.db"),
        "report, MB": megabytes(folder / "report.html"),
    }


class AllThreads:
    """cProfile by processor time, of this thread and of all that are started from now on."""

    def __init__(self) -> None:
        self._found: list[cProfile.Profile] = []
        threading.setprofile(lambda *_: self._start())
        self._start()

    def _start(self) -> None:
        """In place of the hook, for the thread that calls this."""
        profiler = cProfile.Profile(time.thread_time)
        self._found.append(profiler)
        profiler.enable()

    def write(self, path: Path) -> None:
        threading.setprofile(None)
        self._found[0].disable()
        stats = pstats.Stats(self._found[0])
        for profiler in self._found[1:]:
            profiler.create_stats()
            if profiler.stats:
                stats.add(profiler)
        stats.dump_stats(path)


def begun_stage(event: Event) -> str:
    """The stage that begins with an event of the build, "" for none."""
    if isinstance(event, RoundPlanned):
        return {"need_prompts": "prompts", "draw": "draw"}.get(event.reason, "end")
    if isinstance(event, ImagesDrawn) and event.done == event.total:
        return "judge"
    if isinstance(event, RoundJudged):
        return "direct"
    if isinstance(event, StageStarted):
        return "report" if event.stage is Stage.EVALUATING else event.stage.value
    return ""


def resume(folder: Path) -> None:
    """A session that finds the run finished."""
    from segsmith.memory.run_config import read_record
    from segsmith.workflows.build import build_run

    config = read_record(folder / "run.toml").config
    *_, ended = build_run(config, folder, "scale", parts=instant_parts(config, folder))
    assert isinstance(ended, SessionEnded)
    assert ended.status is Status.ALREADY_FINISHED


def megabytes(path: Path) -> float:
    return round(path.stat().st_size / 1e6, 1) if path.exists() else 0.0


def _child(pipe: Any, folder: Path, images: int, pixels: int, profile: Path | None) -> None:
    build(folder.with_name("warm-up"), WARM_UP, 64)  # what is imported on first use is no cost of an image
    pipe.send(build(folder, images, pixels, profile))


def _resume_child(pipe: Any, folder: Path) -> None:
    resume(folder)
    pipe.send(time.process_time())


def in_a_process(work: Any, *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        raise SystemExit("the build failed; its message is above") from None
    finally:
        process.join()
    return found


def measure(images: int, pixels: int, profile: Path | None, where: Path | None) -> dict[str, Any]:
    """The figures of a run of one size, built in a temporary folder in `where`."""
    with tempfile.TemporaryDirectory(dir=where) as scratch:
        folder = Path(scratch) / "run"
        figures = in_a_process(_child, folder, images, pixels, profile)
        for name in ("first resume", "resume"):
            began = time.monotonic()
            work = in_a_process(_resume_child, folder)
            figures[f"{name}, s"] = round(time.monotonic() - began, 2)
            figures[f"{name}, s of processor time"] = round(work, 2)
    return figures


class RandomTexts:
    """An encoder that gives every text a random direction."""

    name = "random"
    logit_scale = 20.0

    def __init__(self, dimensions: int) -> None:
        self._dimensions = dimensions
        self._rng = np.random.default_rng(0)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = self._rng.normal(size=(len(texts), self._dimensions)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def embed_images(self, images: Sequence[object]) -> NDArray[np.float32]:
        raise NotImplementedError

    def fits(self, text: str) -> bool:
        return True


def novelty(remembered: int, dimensions: int, where: Path | None) -> dict[str, Any]:
    """What it costs to find the prompt most similar to a new one, as the prompt agent does, by number of prompts.

    The memory grows by a factor of ten each time, up to `remembered` prompts of `CLASSES` from other runs.
    """
    from segsmith.memory.prompt_memory import PromptMemory, Remembered, Seen

    seen = Seen(CLASSES[0], "this", 0)
    figures: dict[str, Any] = {"dimensions": dimensions, "ms per prompt": {}}
    with tempfile.TemporaryDirectory(dir=where) as scratch:
        memory = PromptMemory(Path(scratch), RandomTexts(dimensions))
        stored, size = 0, min(remembered, 1_000)
        while True:
            since = time.process_time()
            before = stored
            while stored < size + ADDED_TOGETHER:
                part = range(stored, min(stored + ADDED_TOGETHER, size + ADDED_TOGETHER))
                memory.add([Remembered(f"p-{i}", f"a {i}", CLASSES[i % 20], {}, "other") for i in part])
                stored = part.stop
            added = time.process_time() - since
            memory.nearest([f"warm-up {i}" for i in range(ASKED_TOGETHER)], seen=seen)
            began, since = time.monotonic(), time.process_time()
            for turn in range(TURNS):
                memory.nearest([f"new {turn} {i}" for i in range(ASKED_TOGETHER)], seen=seen)
            asked = TURNS * ASKED_TOGETHER
            figures["ms per prompt"][size] = {
                "search, on the clock": round(1000 * (time.monotonic() - began) / asked, 2),
                "search, of processor time": round(1000 * (time.process_time() - since) / asked, 2),
                "adding, of processor time": round(1000 * added / (stored - before), 2),
            }
            print(json.dumps({size: figures["ms per prompt"][size]}), flush=True)
            if size == remembered:
                break
            size = min(10 * size, remembered)
        memory.close()
    return figures


def growth(found: list[dict[str, Any]]) -> str:
    """The cost per image of the largest size against the smallest."""
    small, large = min(found, key=lambda f: f["images"]), max(found, key=lambda f: f["images"])
    ratio = large["own ms per image"] / small["own ms per image"]
    return (
        f"own work per image, {large['images']:,} against {small['images']:,} images: {ratio:.2f} "
        f"(at most {RATIO} wanted); {large['own ms per image']:.1f} ms (at most {PER_IMAGE_MS:.0f} wanted)"
    )


def chart(found: list[dict[str, Any]], before: list[dict[str, Any]]) -> str:
    """Own work per accepted image over the size of the run, as SVG; both axes are logarithmic."""
    from math import floor, log10

    width, height, left, bottom, top, right = 640, 360, 64, 48, 28, 150
    every = [*found, *before]
    low, high = (floor(log10(min(f["own ms per image"] for f in every))),
                 floor(log10(max(f["own ms per image"] for f in every))) + 1)  # fmt: skip
    first, last = log10(min(f["images"] for f in every)), log10(max(f["images"] for f in every))

    def at(images: float, ms: float) -> tuple[float, float]:
        x = left + (log10(images) - first) / max(last - first, 1e-9) * (width - left - right)
        y = height - bottom - (log10(ms) - low) / (high - low) * (height - bottom - top)
        return round(x, 1), round(y, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Own work per accepted image over the number of images">',
        "<style>text{font:13px sans-serif;fill:#24292f}.axis{stroke:#8c959f;stroke-width:1}"
        ".now{stroke:#0969da;fill:#0969da}.before{stroke:#bc4c00;fill:#bc4c00}"
        "polyline{fill:none!important;stroke-width:2}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.axis{stroke:#6e7681}"
        ".now{stroke:#58a6ff;fill:#58a6ff}.before{stroke:#f0883e;fill:#f0883e}}</style>",
        '<text x="8" y="16">own work per accepted image, ms</text>',
    ]
    for power in range(low, high + 1):
        _, y = at(10**first, 10**power)
        parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}" opacity=".4"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{10**power:g}</text>')
    for images in sorted({f["images"] for f in every}):
        x, _ = at(images, 10**low)
        parts.append(f'<text x="{x}" y="{height - bottom + 20}" text-anchor="middle">{images:,}</text>')
    parts.append(
        f'<text x="{(width - right + left) / 2}" y="{height - 8}" text-anchor="middle">images</text>'
    )
    for name, label, rows in (("now", "now", found), ("before", "before", before)):
        points = [at(f["images"], f["own ms per image"]) for f in sorted(rows, key=lambda f: f["images"])]
        if not points:
            continue
        parts.append(f'<polyline class="{name}" points="{" ".join(f"{x},{y}" for x, y in points)}"/>')
        parts += [f'<circle class="{name}" cx="{x}" cy="{y}" r="4"/>' for x, y in points]
        parts.append(f'<text x="{points[-1][0] + 10}" y="{points[-1][1] + 4}">{label}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _kept(out: Path, sizes: Sequence[int], pixels: int) -> list[dict[str, Any]]:
    """The figures in the file `out` of images of these sizes, as far as they are there."""
    found = json.loads(out.read_text()) if out.exists() else []
    return [figures for figures in found if figures["images"] in sizes and figures["pixels"] == pixels]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of accepted images")
    parser.add_argument("--quick", action="store_true", help="1,000 and 4,000 images")
    parser.add_argument("--pixels", type=int, default=64, help="side of the images (default 64)")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--svg", type=Path, help="write a chart of the growth here")
    parser.add_argument("--before", type=Path, help="figures of an earlier version, for the chart")
    parser.add_argument("--where", type=Path, help="folder for the runs, e.g. /dev/shm to leave the disk out")
    parser.add_argument("--profile", type=Path, help="write a cProfile of the last size here")
    parser.add_argument("--continue", dest="continued", action="store_true", help="keep the sizes in --out")
    parser.add_argument("--novelty", type=int, metavar="N", help="only time the search among N prompts")
    parser.add_argument(
        "--dimensions", type=int, default=512, help="of the vectors of --novelty (default 512)"
    )
    given = parser.parse_args()
    if given.continued and not given.out:
        parser.error("--continue needs --out, the figures measured so far")
    if given.novelty:
        if given.novelty < 1:
            parser.error("--novelty must be at least 1")
        timed = novelty(given.novelty, given.dimensions, given.where)
        slow = timed["ms per prompt"][given.novelty]["search, on the clock"]
        print(f"novelty against {given.novelty:,} prompts: {slow} ms (at most {NOVELTY_MS:.0f} wanted)")
        return
    sizes = QUICK if given.quick else tuple(given.sizes)
    found = _kept(given.out, sizes, given.pixels) if given.continued else []
    for images in sizes:
        if any(figures["images"] == images for figures in found):
            continue
        figures = measure(images, given.pixels, given.profile if images == sizes[-1] else None, given.where)
        print(json.dumps(figures, indent=1), flush=True)
        found.append(figures)
        if given.out:
            given.out.write_text(json.dumps(found, indent=1) + "\n")
    if len(found) > 1:
        print(growth(found))
    if given.svg:
        before = json.loads(given.before.read_text()) if given.before else []
        given.svg.write_text(chart(found, before))


if __name__ == "__main__":
    main()
