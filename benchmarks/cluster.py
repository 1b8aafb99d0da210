"""How the data plane scales: measured on a Ray of this machine with backends that sleep, and simulated beyond it.

    python -m benchmarks.cluster measure --workers 1 2 4 8 16 --out cluster.json
    python -m benchmarks.cluster export --workers 2 --images 512 --format coco
    python -m benchmarks.cluster simulate --workers 16 100 1000 --images 1000000

`measure` draws with an image model that sleeps, as a GPU would keep a process waiting, so many workers fit on few
cores. Efficiency is the time that all sleeping takes, divided by workers times the time of the round, counted from
when all workers are ready. `simulate` runs the same dispatcher and scheduler on a virtual clock, with workers whose
units take a random time, that stall, and that are lost; each fold takes the driver the time that `measure` found.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from segsmith.engine.dispatch import Finished, Lost, Ready, run_units
from segsmith.engine.scheduler import Limits
from segsmith.engine.units import DrawUnit
from segsmith.memory.ledger import Ledger

UNIT = 32


# -- measured -------------------------------------------------------------------------------------------


def sleeping(inner: Any, seconds: float) -> Any:
    """An image backend that takes `seconds` for each image; a local class, so that it is sent to workers by value."""

    class Sleeping:
        usd_per_image = 0.0

        def __init__(self) -> None:
            self.name = inner.name

        def draw(self, requests: Any, *watching: Any) -> Any:
            time.sleep(seconds * len(requests))
            return inner.draw(requests, *watching)

        def close(self) -> None:
            pass

    return Sleeping()


def new_run(root: Path, images: int, seconds: float) -> tuple[Any, dict[str, Any]]:
    """A run folder with prompts for `images` images, none of them drawn; returns its config and models."""
    from segsmith.graph.context import RunContext
    from segsmith.ids import make_id
    from segsmith.memory.ledger import PromptRow
    from segsmith.memory.run_folder import RunFolder
    from segsmith.testing import instant_config, instant_parts

    config = instant_config(("cat", "dog"), images)
    run = RunFolder(root)
    run.create()
    parts = instant_parts(config, root)
    parts["backend"] = sleeping(parts["backend"], seconds)
    with RunContext(config, run, parts=parts) as context:
        if not context.ledger.has_prompts:
            context.ledger.add_prompts(
                PromptRow(make_id("p", n), "cat", f"a photo of a cat, number {n}", ("cat",), {}, None, 0,
                          "admitted", {})
                for n in range(images // config.images.per_prompt)
            )  # fmt: skip
    return config, parts


def all_ready(pool: Any, workers: int, kind: Any = "draw") -> None:
    """Wait until the workers have loaded what a kind of unit needs."""
    pool.prepare(kind)
    ready = 0
    while ready < workers:
        ready += sum(isinstance(event, Ready) for event in pool.poll(1.0))


def measure(workers: int, units_each: int, seconds: float) -> dict[str, Any]:
    """Draw `units_each` units for each of `workers` workers; a new Ray is started for it."""
    from segsmith.engine.options import EngineOptions
    from segsmith.graph.context import RunContext
    from segsmith.memory.run_folder import RunFolder

    images = workers * units_each * UNIT
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "run"
        config, parts = new_run(root, images, seconds)
        options = EngineOptions("ray", workers=workers)
        with RunContext(config, RunFolder(root), parts=parts, engine=options) as context:
            began = time.monotonic()
            all_ready(context.pool, workers)
            started, busy = time.monotonic(), time.process_time()
            plane = context.data_plane
            assert plane is not None
            plane.draw_round(context.image_agent, context.judge_agent, context.ledger.prompts(), 0)
            wall, busy = time.monotonic() - started, time.process_time() - busy
            drawn = context.ledger.drawn
    assert drawn == images, f"{drawn} of {images} images"
    return {
        "workers": workers,
        "images": images,
        "seconds of a unit, asleep": round(seconds * UNIT, 3),
        "seconds until all workers were ready": round(started - began, 1),
        "seconds of the round": round(wall, 2),
        "efficiency": round(images * seconds / (workers * wall), 3),
        "driver, CPU milliseconds per image": round(1000 * busy / images, 3),
    }


def measure_export(workers: int, images: int, form: str) -> dict[str, Any]:
    """Export a made-up run in this process, then with workers of a new Ray; objects of masks are not known."""
    from contextlib import closing

    from segsmith.datasets.export import export_dataset
    from segsmith.engine.options import EngineOptions
    from segsmith.engine.plane import DataPlane
    from segsmith.engine.ray import RayPool
    from segsmith.engine.work import Setup
    from segsmith.testing import made_up_run

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        run, ledger, config = made_up_run(root / "run", images, size=256)
        ledger.close()
        spent: dict[str, tuple[float, float]] = {}

        def export(name: str, elsewhere: Any = None) -> bytes:
            run.objects.unlink(missing_ok=True)
            started, busy = time.monotonic(), time.process_time()
            with closing(Ledger(run.ledger)) as ledger:
                export_dataset(run, ledger, config, form, root / name, elsewhere)
            spent[name] = time.monotonic() - started, time.process_time() - busy
            return (root / name / "manifest.json").read_bytes()

        alone = export("alone")
        with (
            closing(RayPool(EngineOptions("ray", workers=workers), Setup(config, run.root, {}))) as pool,
            closing(Ledger(run.ledger)) as ledger,
        ):
            all_ready(pool, workers, "export")
            together = export("workers", DataPlane(pool, run, ledger, config).write_records)
    assert together == alone
    (wall, busy), (wall_alone, busy_alone) = spent["workers"], spent["alone"]
    return {
        "format": form,
        "workers": workers,
        "images": images,
        "one process, CPU milliseconds per image": round(1000 * busy_alone / images, 2),
        "driver, CPU milliseconds per image": round(1000 * busy / images, 2),
        "driver's share of the CPU time of one process": round(busy / busy_alone, 3),
        "wall time, relative to one process": round(wall / wall_alone, 2),
    }


# -- simulated ------------------------------------------------------------------------------------------


class VirtualCluster:
    """A pool on a virtual clock."""

    def __init__(
        self,
        workers: int,
        unit_s: float,
        *,
        spread: float = 0.1,
        straggling: float = 0.002,
        lost_per_hour: float = 0.02,
        restart_s: float = 120.0,
        seed: int = 0,
    ) -> None:
        """A unit takes `unit_s` seconds, times a lognormal factor; of `straggling` units, ten times as long."""
        self.now = 0.0
        self.lost = self.repeated = 0
        self._rng = random.Random(seed)
        self._unit_s, self._spread, self._straggling = unit_s, spread, straggling
        self._lost_per_s, self._restart_s = lost_per_hour / 3600, restart_s
        self._events: list[tuple[float, int, Any]] = []
        self._queues: dict[str, deque[tuple[str, str]]] = {}
        self._committed: set[str] = set()
        self._count = 0
        for _ in range(workers):
            self._join(0.0)

    def clock(self) -> float:
        return self.now

    def committed(self) -> set[str]:
        """For `run_units`, in place of a store."""
        return set()

    def prepare(self, kind: str) -> None:
        pass

    @property
    def starting(self) -> int:
        return 1 if self._events else 0

    def submit(self, worker: str, unit: Any, attempt: str) -> None:
        queue = self._queues[worker]
        queue.append((unit.id, attempt))
        if len(queue) == 1:
            self._begin(worker)

    def poll(self, timeout: float) -> list[Any]:
        """Everything up to now; if that is nothing, the clock is turned to the next event, or by `timeout`."""
        if not self._events or self._events[0][0] > self.now:
            self.now = min(self.now + timeout, self._events[0][0] if self._events else self.now + timeout)
        found = []
        while self._events and self._events[0][0] <= self.now:
            _, _, (kind, worker, unit, attempt) = heapq.heappop(self._events)
            if kind == "join":
                self._queues[worker] = deque()
                self._at(self._rng.expovariate(self._lost_per_s), ("die", worker, "", ""))
                found.append(Ready(worker, f"node-of-{worker}"))
            elif worker not in self._queues:
                continue
            elif kind == "die":
                self.lost += 1
                self.end(worker, replace=True)
                found.append(Lost(worker, "its node died"))
            else:
                self._queues[worker].popleft()
                new = unit not in self._committed
                self._committed.add(unit)
                self.repeated += not new
                found.append(Finished(worker, unit, attempt, UNIT if new else 0))
                if self._queues[worker]:
                    self._begin(worker)
        return found

    def end(self, worker: str, *, replace: bool) -> None:
        self._queues.pop(worker, None)
        if replace:
            self._join(self._restart_s)

    def _join(self, after: float) -> None:
        self._count += 1
        self._at(after, ("join", f"w{self._count}", "", ""))

    def _begin(self, worker: str) -> None:
        unit, attempt = self._queues[worker][0]
        takes = self._unit_s * self._rng.lognormvariate(0, self._spread)
        if unit in self._committed:
            takes = 0.0  # a look at the store
        elif self._rng.random() < self._straggling:
            takes *= 10
        self._at(takes, ("done", worker, unit, attempt))

    def _at(self, after: float, event: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + after, self._count, event))


def simulate(workers: int, images: int, seconds: float, fold_ms: float, **faults: Any) -> dict[str, Any]:
    """Draw `images` with `workers` workers that take `seconds` an image; a fold takes `fold_ms` an image."""
    cluster = VirtualCluster(workers, seconds * UNIT, **faults)
    units = [DrawUnit(f"u{n}", (), 1) for n in range(-(-images // UNIT))]
    folding = 0.0

    def fold(unit: Any) -> None:
        nonlocal folding
        cluster.now += fold_ms * UNIT / 1000
        folding += fold_ms * UNIT / 1000

    began = time.monotonic()
    batch = run_units(units, cluster, cluster, fold, limits=Limits(), clock=cluster.clock)  # type: ignore[arg-type]
    scheduling = time.monotonic() - began
    return {
        "workers": workers,
        "images": len(units) * UNIT,
        "hours": round(cluster.now / 3600, 3),
        "efficiency": round(len(units) * UNIT * seconds / (workers * cluster.now), 3),
        "images per second": round(len(units) * UNIT / cluster.now, 1),
        "share of the time that the driver folds": round(folding / cluster.now, 3),
        "scheduling, microseconds per image": round(1e6 * scheduling / (len(units) * UNIT), 1),
        "workers lost": cluster.lost,
        "units done twice": cluster.repeated,
        "units set aside": len(batch.set_aside),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("measure", "export", "simulate"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=0.25, help="of an image (default 0.25)")
    parser.add_argument("--units", type=int, default=6, help="measure: units for each worker (default 6)")
    parser.add_argument(
        "--images", type=int, default=1_000_000, help="export, simulate: images (default a million)"
    )
    parser.add_argument("--format", default="coco", help="export: format (default coco)")
    parser.add_argument("--fold-ms", type=float, default=1.0, help="simulate: driver's time per image")
    parser.add_argument("--no-faults", action="store_true", help="simulate: no stragglers, no lost workers")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    figures = []
    for workers in given.workers:
        if given.what == "measure":
            figures.append(measure(workers, given.units, given.seconds))
        elif given.what == "export":
            figures.append(measure_export(workers, given.images, given.format))
        else:
            faults = {"spread": 0.0, "straggling": 0.0, "lost_per_hour": 1e-9} if given.no_faults else {}
            figures.append(simulate(workers, given.images, given.seconds, given.fold_ms, **faults))
        print(json.dumps(figures[-1]), flush=True)
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    sys.exit(main())
