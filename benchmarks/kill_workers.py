"""Kill an actor, a node or the driver of a Ray cluster at moments over the whole of a run, and compare the results.

    unshare -n bash -c "ip link set lo up; python -m benchmarks.kill_workers --kills 20 --out kills.json"

The cluster has a head and two nodes, all on this machine; in a network namespace of its own it needs no network. A
run draws, measures, judges, relabels and masks; a killed driver is followed by a second session. The exit code is 1
if a run differs from the one that a single process made, or leaves anything behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.cluster import UNIT, all_ready, new_run

WORKERS = 2
UNITS = 8
SECONDS = 0.02
"""That drawing an image takes."""


def stages(root: Path, address: str | None, on_ready: Callable[[Any], None] = lambda pool: None) -> None:
    """A run from drawing to masks: with the workers of a cluster, or in this process without an address."""
    from segsmith.agents.judge.ahead import MeasuringAhead
    from segsmith.engine.options import EngineOptions
    from segsmith.graph.context import RunContext
    from segsmith.memory.run_folder import RunFolder

    config, parts = new_run(root, UNITS * UNIT, SECONDS)
    if address is None:
        with RunContext(config, RunFolder(root), parts=parts) as context:
            with MeasuringAhead(context.judge_agent, context.ledger, context.run) as ahead:
                context.image_agent.draw(context.ledger.prompts(), 0, on_images=ahead.add)
            context.judge_agent.judge()
            context.labeler_agent.relabel()
            context.labeler_agent.segment()
        return
    options = EngineOptions("ray", address, WORKERS)
    with RunContext(config, RunFolder(root), parts=parts, engine=options) as context:
        all_ready(context.pool, WORKERS)
        plane = context.data_plane
        assert plane is not None
        on_ready(context.pool)
        plane.draw_round(context.image_agent, context.judge_agent, context.ledger.prompts(), 0)
        context.judge_agent.judge()
        context.labeler_agent.relabel()
        plane.make_masks(context.labeler_agent)


class Machines:
    """A head without work for actors, and two nodes with one CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 100_000_000}
        self._small = small
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small}
        )
        self.nodes = [self.cluster.add_node(num_cpus=1, **small) for _ in range(2)]
        self.address = self.cluster.address

    def kill_node(self) -> None:
        """Remove a node as if its power was cut."""
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)

    def restore(self) -> None:
        """Add a node in place of the one that was removed. Ray does that in the main thread only."""
        if len(self.nodes) < WORKERS:
            self.nodes.append(self.cluster.add_node(num_cpus=1, **self._small))


def with_kill(what: str, machines: Machines, root: Path, moment: float) -> None:
    """A run with a kill `moment` seconds after it began; a killed driver is followed by a second session."""
    if what == "driver":
        child = [sys.executable, "-m", "benchmarks.kill_workers", "--session", str(root)]
        environment = {**os.environ, "SEGSMITH_BENCHMARK_CLUSTER": machines.address}
        first = subprocess.Popen(child, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert first.stdout is not None
        while first.poll() is None and first.stdout.readline() != b"ready\n":
            pass
        with suppress(subprocess.TimeoutExpired):
            first.wait(moment)
        first.kill()
        first.wait()
        subprocess.run(
            child, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return

    def kill(pool: Any) -> None:
        def now() -> None:
            if what == "node":
                machines.kill_node()
                return
            processes = [actor.node.rpartition(":")[2] for actor in list(pool._actors.values())]
            with suppress(ProcessLookupError, ValueError, IndexError):
                os.kill(int(processes[0]), signal.SIGKILL)

        timers.append(threading.Timer(moment, now))
        timers[-1].start()

    timers: list[threading.Timer] = []
    stages(root, machines.address, kill)
    for timer in timers:
        timer.join()


def kill_workers(kinds: list[str], kills: int, seed: int) -> dict[str, Any]:
    """Each kind of kill at `kills` moments; returns the figures."""
    from segsmith.engine.options import EngineOptions
    from segsmith.engine.ray import connect, disconnect
    from segsmith.testing import fingerprint, leftovers

    rng = random.Random(seed)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        stages(folder / "local", None)
        want = fingerprint(folder / "local")
        machines = Machines()
        ray = connect(EngineOptions("ray", machines.address))
        began = [0.0]
        stages(folder / "whole", machines.address, lambda pool: began.__setitem__(0, time.monotonic()))
        length = time.monotonic() - began[0]
        figures["seconds of a run without a kill"] = round(length, 1)
        figures["without a kill: identical"] = fingerprint(folder / "whole") == want
        for what in kinds:
            found = {"kills": kills, "identical": 0, "with leftovers": 0, "ended with an error": []}
            for number in range(kills):
                moment = length * (number + rng.random()) / kills
                root = folder / f"{what}{number}"
                try:
                    with_kill(what, machines, root, moment)
                    found["identical"] += fingerprint(root) == want
                    found["with leftovers"] += bool(leftovers(root)) or (root / "units").exists()
                except Exception as error:  # noqa: BLE001  whatever it is, it is a figure
                    found["ended with an error"].append(f"{moment:.1f} s: {error}"[:200])
                machines.restore()
                print(what, number + 1, f"{moment:.1f} s", found, flush=True)
            figures[what] = found
        disconnect(ray)
        machines.cluster.shutdown()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=["actor", "node", "driver"], help="what is killed")
    parser.add_argument("--kills", type=int, default=20, help="of each kind (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--session", type=Path, help="used by the benchmark itself: one session of a run")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    if given.session:
        stages(
            given.session, os.environ["SEGSMITH_BENCHMARK_CLUSTER"], lambda pool: print("ready", flush=True)
        )
        return
    figures = kill_workers(given.kinds, given.kills, given.seed)
    print(json.dumps(figures, indent=1))
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1))
    good = all(figures[kind]["identical"] == given.kills for kind in given.kinds)
    sys.exit(not good or any(figures[kind]["with leftovers"] for kind in given.kinds))


if __name__ == "__main__":
    main()
