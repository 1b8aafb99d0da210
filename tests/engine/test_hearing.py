"""Witnesses that workers ask say what they say in one process, in the same order, whatever happens to the workers."""

import hashlib
import shutil
import sqlite3
from contextlib import closing

import pytest

import segsmith
from segsmith.agents.witnesses.agent import CHUNK
from segsmith.engine.models import is_stand_in, witness_name
from segsmith.engine.options import EngineOptions
from segsmith.engine.placement import Node, Placement, placement
from segsmith.engine.plane import adopt
from segsmith.engine.work import Setup
from segsmith.errors import SegsmithError
from segsmith.events import Notice, WorkersBusy
from segsmith.graph.context import REMOTE_PARTS, RunContext
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import InstantChat, fingerprint, instant_config, instant_parts
from segsmith.tools.gpu_plan import GpuPlan, GpuStage
from segsmith.types import Sighting, Testimony
from tests.engine.inline_pool import InlinePool
from tests.engine.test_data_plane import prompts
from tests.engine.test_whole_builds import Pool

CLASSES = ("cat", "dog", "bus")
CONFIG = instant_config(
    CLASSES, 1000, witnesses={"detector": "simulated", "vlm": "simulated", "attention": "simulated"}
)


class Looks:
    """A detector whose boxes follow from the pixels. It says nothing about every eighth image, the first time."""

    name = "looks/1"

    def __init__(self, *, talks=False):
        self.talks, self.largest = talks, 0

    def testify(self, images, ids):
        self.largest = max(self.largest, len(images))
        return [self._testimony(image, i) for image, i in zip(images, ids, strict=True)]

    def _testimony(self, image, image_id):
        seen = hashlib.sha256(image.tobytes()).digest()
        if int(image_id[-1], 16) % 8 == 0 and not self.talks:
            return None
        boxes = tuple(
            Sighting(name, seen[n] / 255, (0.1, seen[n] / 511, 0.9, 1.0)) for n, name in enumerate(CLASSES)
        )
        return Testimony({box.class_name: box.score for box in boxes}, sightings=boxes)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A run folder whose images have verdicts."""
    out = tmp_path_factory.mktemp("judged") / "run"
    run = RunFolder(out)
    run.create()
    with RunContext(CONFIG, run, parts=instant_parts(CONFIG, out)) as context:
        context.ledger.add_prompts(prompts())
        context.image_agent.draw(context.ledger.prompts(), 0)
        context.judge_agent.judge()
        assert len(context.ledger.accepted()) > 3 * 2 * CHUNK
    return out


def hear(judged, out, pool=None, **parts):
    """Ask the witnesses about the images of a copy of `judged` (the same call continues); what the ledger holds, and events."""
    if not out.exists():
        shutil.copytree(judged, out)
    events = []
    parts = {
        **instant_parts(CONFIG, out),
        "detector": Looks(),
        **({} if pool is None else {"pool": pool}),
        **parts,
    }
    with RunContext(CONFIG, RunFolder(out), parts=parts) as context:
        context.show = events.append
        if pool is None:
            adopt(context.run, context.ledger)  # as a build does
        context.witness_agent.hear()
    with closing(sqlite3.connect(out / "ledger.db")) as db:
        said = db.execute("SELECT * FROM testimonies ORDER BY rowid").fetchall()
        told = db.execute("SELECT detail FROM events WHERE kind='witness' ORDER BY id").fetchall()
        made = db.execute("SELECT value FROM meta WHERE key='testimonies_made'").fetchall()
    return (said, told, made), events


@pytest.fixture(scope="module")
def local(judged, tmp_path_factory):
    found, _ = hear(judged, tmp_path_factory.mktemp("local") / "run")
    assert {row[1] for row in found[0]} == {"detector", "vlm", "attention"}
    return found


def pool_for(out, detector=None, **options):
    parts = {name: part for name, part in instant_parts(CONFIG, out).items() if name in REMOTE_PARTS}
    return InlinePool(Setup(CONFIG, out, {**parts, "detector": detector or Looks()}), **options)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_what_witnesses_say_does_not_depend_on_the_workers(judged, local, tmp_path, workers):
    out, detector = tmp_path / "run", Looks()
    found, events = hear(judged, out, pool_for(out, detector, workers=workers, latest_first=True))
    assert found == local
    assert not (out / "units").exists()
    assert detector.largest == CHUNK
    last = [event for event in events if isinstance(event, WorkersBusy)][-1]
    assert (last.done, last.workers) == (last.total, workers)


def test_units_of_workers_that_die_or_fail_are_done_by_others(judged, local, tmp_path):
    attempts = []

    def faults(unit, worker):
        attempts.append(unit.kind)
        return {2: "die", 4: "fail", 7: "die", 9: "fail"}.get(len(attempts), "")

    out = tmp_path / "run"
    found, _ = hear(judged, out, pool_for(out, workers=4, latest_first=True, faults=faults))
    assert found == local
    assert {"detector", "vlm", "attention"} == set(attempts)


class Killed(BaseException):
    """Stands for the end of the driver."""


@pytest.mark.parametrize("engine", ["local", "workers"])
def test_a_driver_that_ends_in_between_is_resumed_by_either_engine(
    judged, local, tmp_path, monkeypatch, engine
):
    """The last unit is done first, so what is committed is not what may be folded next; silent images stay behind."""
    done = []

    def faults(unit, worker):
        done.append(unit.id)
        if len(done) > 6:
            raise Killed
        return ""

    out = tmp_path / "run"
    pool = pool_for(out, workers=4, latest_first=True, faults=faults)
    with monkeypatch.context() as patched:
        patched.setattr("segsmith.graph.context.adopt", lambda *_, **__: None)  # it does nothing at its end
        with pytest.raises(Killed):
            hear(judged, out, pool)
    pool = pool_for(out, Looks(talks=True), workers=2) if engine == "workers" else None
    (said, *_), _ = hear(judged, out, pool, detector=Looks(talks=True))
    assert not (out / "units").exists()
    columns = {(row[0], row[1]): row[2:] for row in said}
    assert columns | {(row[0], row[1]): row[2:] for row in local[0]} == columns, (
        "what was heard is that of one process"
    )
    assert len(columns) == len({i for i, _ in columns}) * 3, "and the silent ones have been asked again"
    if pool is not None:
        assert not set(done[:6]) & {unit for _, unit in pool.done}, "no committed unit is done again"


def test_images_of_a_unit_that_fails_three_times_are_asked_about_the_next_time(judged, local, tmp_path):
    bad = []

    def faults(unit, worker):
        if unit.kind == "vlm" and not bad:
            bad.append(unit.id)
        return "fail" if unit.id in bad else ""

    out = tmp_path / "run"
    found, events = hear(judged, out, pool_for(out, workers=4, faults=faults))
    assert len(found[0]) == len(local[0]) - 2 * CHUNK
    (warning,) = [event.message for event in events if isinstance(event, Notice)]
    assert warning.startswith(f"{2 * CHUNK} testimonies could not be made and are tried again")
    found, _ = hear(judged, out, pool_for(out))
    assert sorted(found[0]) == sorted(local[0])


def test_a_finished_build_asks_about_such_images_again_and_is_then_that_of_one_process(tmp_path):
    config = instant_config(("cat", "dog"), 20, witnesses={"detector": "simulated"})

    def build(out, faults=None):
        parts = instant_parts(config, out)
        if faults:
            setup = Setup(config, out, {name: part for name, part in parts.items() if name in REMOTE_PARTS})
            parts["pool"] = InlinePool(setup, workers=4, faults=faults)
        segsmith.build(out=out, config=config, parts=parts, progress=False)

    bad = []

    def faults(unit, worker):
        if unit.kind == "detector" and not bad:
            bad.append(unit.id)
        return "fail" if unit.id in bad else ""

    def heard(out):
        with closing(sqlite3.connect(out / "ledger.db")) as db:
            return set(db.execute("SELECT image_id, scores FROM testimonies"))

    local, out = tmp_path / "local", tmp_path / "run"
    build(local)
    build(out, faults)
    assert len(heard(local) - heard(out)) == 2 * CHUNK
    build(out, lambda unit, worker: "")
    assert heard(out) == heard(local)
    assert fingerprint(out) == fingerprint(local)


def test_a_machine_with_another_witness_ends_the_run_with_both_names(judged, tmp_path):
    class Other(Looks):
        name = "looks/2"

    out = tmp_path / "run"
    with pytest.raises(
        SegsmithError, match=r"The detector is looks/2 on this machine, and looks/1 on the command's\."
    ):
        hear(judged, out, pool_for(out, Other()))


def test_a_vlm_that_segsmith_serves_gets_the_gpu_for_itself(tmp_path):
    """Workers that ask the detector stay; they end when vLLM is about to start."""
    config = instant_config(
        CLASSES,
        4,
        witnesses={"detector": "simulated", "vlm": "llm"},
        llm={"server": "vllm", "model": "some/vlm"},
    )
    run = RunFolder(tmp_path / "run")
    run.create()
    parts = {**instant_parts(config, run.root), "chat": InstantChat()}
    with RunContext(config, run, parts=parts, engine=EngineOptions("ray")) as context:
        pool = Pool(Setup(config, run.root, parts))
        assert context.use(pool=pool, gpu_plan=GpuPlan()).data_plane is not None
        context.enter(GpuStage.HEAR)
        assert not pool.closed
        context.witness_agent.hear()
        assert pool.closed


def test_stand_ins_need_no_gpu_and_models_have_one_each():
    box = [Node(cpus=16, gpus=2)]
    assert is_stand_in("detector", CONFIG)
    assert placement("detector", CONFIG, box) == Placement(15, 0.0)
    real = instant_config(CLASSES, 4, witnesses={"detector": "a/detector", "detector_score": 0.2})
    assert placement("detector", real, box) == Placement(2, 1.0)
    assert witness_name("detector", real) == "a/detector@0.2"
