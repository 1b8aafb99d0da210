"""Whole builds with workers: what is made again after `rejudge`, and which models a stage ends them for."""

from contextlib import contextmanager
from pathlib import Path

import pytest

import segsmith
from segsmith.engine.options import EngineOptions
from segsmith.engine.work import Setup
from segsmith.graph.context import REMOTE_PARTS, RunContext
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import fingerprint, instant_config, instant_parts, leftovers
from segsmith.tools.gpu_plan import GpuPlan, GpuStage, Part, StagePlan
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


TURNS = GpuPlan(
    (StagePlan(GpuStage.WRITE, ((Part.LLM, 9),)), StagePlan(GpuStage.DRAW, ((Part.IMAGES, 9),), batch=1))
)
"""Of a GPU where vLLM and the image model do not fit together."""


class Pool(InlinePool):
    closed = False

    def close(self):
        self.closed = True


@contextmanager
def with_workers(folder, plan):
    """The context of a run whose workers have been started, and these."""
    run = RunFolder(folder / "run")
    run.create()
    parts = instant_parts(CONFIG, run.root)
    with RunContext(CONFIG, run, parts=parts, engine=EngineOptions("ray")) as context:
        pool = Pool(Setup(CONFIG, run.root, parts))
        assert context.use(pool=pool, gpu_plan=plan).data_plane is not None
        yield context, pool


@pytest.mark.parametrize(
    ("stage", "plan"),
    [
        (GpuStage.HEAR, GpuPlan()),
        (GpuStage.LABEL, GpuPlan()),
        (GpuStage.TRAIN, GpuPlan()),
        (GpuStage.WRITE, TURNS),
    ],
)
def test_workers_end_before_this_process_needs_the_gpu(tmp_path, stage, plan):
    with with_workers(tmp_path, plan) as (context, pool):
        context.enter(GpuStage.DRAW)
        context.enter(GpuStage.JUDGE)
        assert not pool.closed
        context.enter(stage)
        assert pool.closed


def test_prompts_are_written_beside_workers_where_both_fit(tmp_path):
    with with_workers(tmp_path, GpuPlan()) as (context, pool):
        context.enter(GpuStage.DRAW)
        context.enter(GpuStage.WRITE)
        assert not pool.closed
