"""Whole builds with workers: what is made again after `rejudge`, and which models a stage ends them for."""

from pathlib import Path

import pytest

import segsmith
from segsmith.engine.options import EngineOptions
from segsmith.engine.work import Setup
from segsmith.graph.context import REMOTE_PARTS, RunContext
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import fingerprint, instant_config, instant_parts, leftovers
from segsmith.tools.gpu_plan import GpuStage
from tests.engine.inline_pool import InlinePool

CONFIG = instant_config(("cat", "dog"), 20)


def build(out: Path, *, remote: bool):
    """Build or continue the run; returns the kinds of units that workers did."""
    parts, kinds = instant_parts(CONFIG, out), set()

    def seen(unit, worker):
        kinds.add(unit.kind)
        return ""

    if remote:
        setup = Setup(CONFIG, out, {name: parts[name] for name in REMOTE_PARTS})
        parts["pool"] = InlinePool(setup, workers=2, faults=seen)
    config = CONFIG if not (out / "run.toml").exists() else None
    segsmith.build(out=out, config=config, parts=parts, progress=False)
    return kinds


def test_after_rejudge_the_workers_make_what_is_missing(tmp_path):
    made = {}
    for name, remote in (("local", False), ("workers", True)):
        out = tmp_path / name
        build(out, remote=False)
        segsmith.rejudge(out, thresholds=0.99)
        made[name] = build(out, remote=remote)
        assert leftovers(out) == []
    assert fingerprint(tmp_path / "workers") == fingerprint(tmp_path / "local")
    assert made == {"local": set(), "workers": {"draw", "masks"}}


@pytest.mark.parametrize("stage", [GpuStage.HEAR, GpuStage.LABEL, GpuStage.TRAIN])
def test_workers_end_before_this_process_loads_its_own_models(tmp_path, stage):
    closed = []

    class Pool(InlinePool):
        def close(self):
            closed.append(self)

    run = RunFolder(tmp_path / "run")
    run.create()
    parts = instant_parts(CONFIG, run.root)
    with RunContext(CONFIG, run, parts=parts, engine=EngineOptions("ray")) as context:
        pool = Pool(Setup(CONFIG, run.root, parts))
        assert context.use(pool=pool).data_plane is not None
        context.enter(GpuStage.DRAW)
        assert closed == []
        context.enter(stage)
        assert closed == [pool]
