"""Whole builds with workers: what is made again after `rejudge`, and which models a stage ends them for."""

import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

import segsmith
from segsmith.engine.options import EngineOptions
from segsmith.engine.work import Setup
from segsmith.errors import SegsmithError
from segsmith.events import ImagesDrawn, RoundPlanned
from segsmith.graph.context import REMOTE_PARTS, RunContext
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import InstantChat, fingerprint, instant_config, instant_parts, leftovers
from segsmith.tools.gpu_plan import GpuPlan, GpuStage, Part, StagePlan
from segsmith.tools.llm.vllm import vllm_server
from tests.engine.inline_pool import InlinePool
from tests.tools.llm import test_starting_vllm

CONFIG = instant_config(("cat", "dog"), 20)
fake_vllm = test_starting_vllm.vllm
"""A fixture: makes settings of a stand-in program."""


def build(out: Path, *, remote: bool):
    """Build or continue the run; returns the kinds of units that workers did."""
    parts, kinds = instant_parts(CONFIG, out), set()

    def seen(unit, worker):
        kinds.add(unit.kind)
        return ""

    if remote:
        setup = Setup(CONFIG, out, {name: part for name, part in parts.items() if name in REMOTE_PARTS})
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
    assert made == {"local": set(), "workers": {"draw", "teach", "relabel", "masks"}}


class ServedChat(InstantChat):
    """Needs a server for each reply. It kills it once, and revives it as `OpenAIChat` does.

    Which question that is does not depend on whether writing or drawing is faster: the first one of a round that is
    drawn, once images of it are there.
    """

    def __init__(self, server):
        super().__init__()
        self.server, self.killed = server, False
        self.alive = threading.Semaphore()
        self.round_begun, self.drawn = threading.Event(), threading.Event()

    def on_event(self, event):
        if isinstance(event, RoundPlanned) and event.reason == "draw":
            self.round_begun.set()
        if isinstance(event, ImagesDrawn):
            self.drawn.set()

    def ask(self, *asked, **options):
        endpoint = self.server.endpoint()
        if self.round_begun.is_set() and self.alive.acquire(blocking=False):
            assert self.drawn.wait(60)
            self.killed = True
            os.kill(self.server.pid, signal.SIGKILL)
            self.server._process.wait()
            assert self.server.revive(endpoint)
        return super().ask(*asked, **options)


@pytest.mark.parametrize("memory", ["enough", "too little"])
def test_a_vllm_that_dies_while_workers_draw_is_restarted_or_ends_the_build_with_one_line(
    tmp_path, fake_vllm, memory
):
    local, out = tmp_path / "local", tmp_path / "run"
    build(local, remote=False)
    failures = [""] + [test_starting_vllm.NO_CACHE] * 3 * (memory == "too little")
    with vllm_server(fake_vllm(*failures)) as server:
        chat = ServedChat(server)

        def build_with_server():
            parts = {**instant_parts(CONFIG, out), "chat": chat}
            setup = Setup(CONFIG, out, {name: part for name, part in parts.items() if name in REMOTE_PARTS})
            parts["pool"] = InlinePool(setup, workers=2)
            segsmith.build(out=out, config=CONFIG, parts=parts, on_event=chat.on_event)

        if memory == "too little":
            with pytest.raises(SegsmithError, match="No available memory for the cache blocks") as caught:
                build_with_server()
            assert "\n" not in str(caught.value)
        build_with_server()
        assert chat.killed
        assert server.restarts == 1
    assert fingerprint(out) == fingerprint(local)
    assert leftovers(out) == []


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


def test_workers_relabel_and_make_masks_one_after_the_other(tmp_path):
    with with_workers(tmp_path, GpuPlan()) as (context, pool):
        for stage in (GpuStage.DRAW, GpuStage.LABEL, GpuStage.SEGMENT):
            context.enter(stage)
        assert not pool.closed


def test_prompts_are_written_beside_workers_where_both_fit(tmp_path):
    with with_workers(tmp_path, GpuPlan()) as (context, pool):
        context.enter(GpuStage.DRAW)
        context.enter(GpuStage.WRITE)
        assert not pool.closed
