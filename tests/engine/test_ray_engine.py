"""Workers as actors of a real Ray on this machine. Its start takes seconds, so one Ray serves all of these tests."""

import json
import os
import signal
import sqlite3
from contextlib import closing
from importlib.util import find_spec

import pytest

import segsmith as api
from segsmith.config import WitnessesConfig
from segsmith.engine import ray as engine
from segsmith.engine.options import EngineOptions, engine_options
from segsmith.engine.plane import adopt
from segsmith.engine.ray_group import group_size
from segsmith.engine.work import Setup
from segsmith.errors import SegsmithError
from segsmith.events import EpochFinished, Status
from segsmith.graph.context import REMOTE_PARTS, RunContext
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import fingerprint, instant_config, instant_parts, leftovers
from segsmith.workflows.build import build_run
from segsmith.workflows.train import train
from tests.engine.test_data_plane import CONFIG, stages
from tests.engine.test_exports_on_workers import content, export
from tests.segmentation.squares_dataset import write_squares

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (extra segsmith[ray])")


@pytest.fixture(scope="module")
def ray():
    """A Ray of two CPUs, as `--engine ray` starts it."""
    ray = engine.connect(EngineOptions("ray", workers=2))
    yield ray
    engine.disconnect(ray)


HEARING = CONFIG.model_copy(update={"witnesses": WitnessesConfig(detector="simulated")})


def heard(out, pool=None):
    """What the witnesses say about the images of a run."""
    parts = {**instant_parts(HEARING, out), **({} if pool is None else {"pool": pool})}
    with RunContext(HEARING, RunFolder(out), parts=parts) as context:
        context.witness_agent.hear()
    with closing(sqlite3.connect(out / "ledger.db")) as db:
        return db.execute("SELECT * FROM testimonies ORDER BY rowid").fetchall()


def pool_for(out, workers=2):
    parts = {name: part for name, part in instant_parts(CONFIG, out).items() if name in REMOTE_PARTS}
    # "auto" joins the Ray of the fixture, which `close` then leaves alone.
    options = EngineOptions("ray", "auto", workers)
    return engine.RayPool(options, Setup(HEARING, out, parts))


@needs_ray
def test_a_run_of_actors_one_of_which_is_killed_is_that_of_one_process(tmp_path, ray):
    """Longer than ten seconds on a loaded machine: actors are processes that import segsmith."""
    stages(tmp_path / "local")
    out, killed = tmp_path / "run", []
    with closing(pool_for(out)) as pool:
        submit = pool.submit

        def kill_on_the_third(worker, unit, attempt):
            submit(worker, unit, attempt)
            killed.append(pool._actors[worker].node.rpartition(":")[2])
            if len(killed) == 3:
                os.kill(int(killed[-1]), signal.SIGKILL)

        pool.submit = kill_on_the_third
        stages(out, pool)
        said = heard(out, pool)
        written = export((RunFolder(out), CONFIG), tmp_path / "workers", "coco", pool)
    with RunContext(HEARING, RunFolder(out), parts=instant_parts(HEARING, out)) as context:
        # As at the end of a build: an actor may have been late with a unit that another one had done, too.
        adopt(context.run, context.ledger)
    assert len(killed) > 3
    assert fingerprint(out) == fingerprint(tmp_path / "local")
    assert leftovers(out) == []
    assert not (out / "units").exists()
    assert said == heard(tmp_path / "local")
    assert content(written) == content(export((RunFolder(out), CONFIG), tmp_path / "alone", "coco"))


def curve(out):
    return [report["loss"] for report in json.loads((out / "training" / "state.json").read_text())["reports"]]


@needs_ray
@pytest.mark.long
def test_two_actors_have_the_loss_curve_of_one_process_and_go_on_after_a_loss(tmp_path, ray, monkeypatch):
    """Long: two pairs of processes import torch and segsmith."""
    settings = {
        "trainer.encoder": "tu-test_resnet", "trainer.epochs": 4, "trainer.batch_size": 6,
        "trainer.learning_rate": 5e-3, "trainer.ema": 0.9,
    }  # fmt: skip
    squares = write_squares(tmp_path / "squares")
    alone, together = tmp_path / "one", tmp_path / "two"
    train(squares, alone, settings=settings, on_event=lambda event: None)
    epochs, members, actor_class = [], [], ray.remote

    def remembering(cls):
        made = actor_class(cls)
        options = made.options
        made.options = lambda **given: Remembering(options(**given), members)
        return made

    def on_event(event):
        if isinstance(event, EpochFinished):
            epochs.append(event.epoch)
            if len(epochs) == 2:
                ray.kill(members[1])

    monkeypatch.setattr(ray, "remote", remembering)
    found = train(
        squares, together, settings=settings, engine="ray", address="auto", workers=2, on_event=on_event
    )
    assert len(members) == 4
    assert sorted(set(epochs)) == [1, 2, 3, 4]
    # The processes drop other activations than one process does, which moves the loss a little.
    assert curve(together) == pytest.approx(curve(alone), rel=0.1)
    assert found.segmenter.exists()
    assert found.validation is not None


class Remembering:
    """Options of an actor class, whose actors are collected."""

    def __init__(self, options, members):
        self.options, self.members = options, members

    def remote(self):
        self.members.append(self.options.remote())
        return self.members[-1]


@pytest.mark.parametrize(
    ("asked", "there", "batch", "size"), [(None, 8, 16, 8), (None, 3, 16, 2), (4, 1, 16, 4)]
)
def test_training_processes_divide_the_batch(asked, there, batch, size):
    assert group_size(asked, there, batch) == size


def test_a_batch_that_cannot_be_split_is_one_line():
    with pytest.raises(SegsmithError) as caught:
        group_size(3, 8, 16)
    assert str(caught.value) == (
        "A batch of 16 images cannot be split evenly between 3 workers. "
        "Type --set trainer.batch_size=18, or another number of --workers."
    )


@needs_ray
def test_a_node_of_another_version_is_named_with_both(tmp_path, ray, monkeypatch):
    mine = engine.about_this_process()
    monkeypatch.setattr(
        engine, "about_this_process", lambda: type(mine)(mine.host, mine.python, "9.9 (files 0)")
    )
    out = tmp_path / "run"
    with closing(pool_for(out, workers=1)) as pool, pytest.raises(SegsmithError) as caught:
        stages(out, pool)
    assert f"has segsmith {mine.segsmith}, and this machine has segsmith 9.9 (files 0)." in str(caught.value)


@pytest.fixture
def no_cluster(monkeypatch, ray):
    def unreachable(*address, **options):
        raise ConnectionError("Failed to connect to GCS.\nmore lines")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", unreachable)


@needs_ray
def test_an_address_that_does_not_answer_is_one_line_before_anything_is_written(no_cluster, tmp_path):
    with pytest.raises(SegsmithError) as caught:
        engine.connect(EngineOptions("ray", "10.0.0.9:6379"))
    assert str(caught.value).startswith("No Ray cluster answers at 10.0.0.9:6379 (Failed to connect to GCS).")
    assert "\n" not in str(caught.value)
    out = tmp_path / "run"
    with pytest.raises(SegsmithError, match="No Ray cluster answers"):
        api.build(["cat"], out=out, preset="sim", engine="ray", address="10.0.0.9:6379", progress=False)
    assert not out.exists()


@needs_ray
def test_a_finished_run_needs_no_cluster_to_say_so(no_cluster, tmp_path):
    out, config = tmp_path / "run", instant_config(("cat", "dog"), 4)
    *_, ended = build_run(config, out, parts=instant_parts(config, out))
    assert ended.status is Status.FINISHED
    asked = {
        "parts": instant_parts(config, out),
        "engine": "ray",
        "address": "10.0.0.9:6379",
        "progress": False,
    }
    assert api.build(config=config, out=out, **asked).is_finished
    with pytest.raises(SegsmithError, match="No Ray cluster answers"):
        api.build(config=config, out=out, per_class=8, **asked)
    assert api.open_run(out).is_finished  # it stays as it is


@needs_ray
def test_a_ray_that_does_not_start_in_time_is_one_line(monkeypatch, ray):
    """Ray raises a bare Exception then; a bug of the program still shows as what it is."""
    raised = Exception(
        "The current node timed out during startup. This could happen because some of the raylet"
    )

    def failing(*address, **options):
        raise raised

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", failing)
    with pytest.raises(SegsmithError) as caught:
        engine.connect(EngineOptions("ray"))
    assert caught.value.message == "Ray could not be started: this machine was too busy, or lacks memory."
    assert "without --engine ray" in caught.value.remedy
    raised = KeyError("a bug")
    with pytest.raises(KeyError):
        engine.connect(EngineOptions("ray"))


@needs_ray
def test_a_ray_of_another_command_on_this_machine_is_not_joined(monkeypatch, ray):
    given = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(
        ray, "init", lambda address, **options: given.append((address, "num_cpus" in options))
    )
    engine.connect(EngineOptions("ray"))
    assert given == [("local", True)]


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (RuntimeError("Cannot bind the port"), "Cannot bind the port"),
        (RuntimeError("Failed to start the GCS.\nSee the logs."), "Failed to start the GCS"),
        (OSError("The command failed:\n  /usr/bin/raylet --x"), "The command failed"),
        (ValueError(" . "), "ValueError"),
        (TimeoutError(), "TimeoutError"),
        (RuntimeError("x" * 500), "x" * 200),
    ],
)
def test_any_other_failure_to_start_ray_is_one_sentence_and_what_to_do(raised, told):
    error = engine._connection_error(None, raised)
    assert str(error) == (
        f"Ray could not be started: {told}. Fix that, then run the same command again; it resumes from here."
    )


def test_a_cluster_of_other_versions_is_named_with_both():
    text = """Version mismatch: The cluster was started with:
    Ray: 2.40.0
    Python: 3.10.4
This process on node 10.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""
    error = engine._connection_error("auto", RuntimeError(text))
    assert error.message == (
        "The cluster at auto runs Ray 2.40.0, Python 3.10.4, and this machine Ray 2.60.0, Python 3.11.7."
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("dask",), "There is no engine 'dask'."),
        (("local", "auto"), "--address, --workers and --unit-timeout are options of --engine ray."),
        (("local", None, 2), "--address, --workers and --unit-timeout are options of --engine ray."),
        (("local", None, None, 60.0), "--address, --workers and --unit-timeout are options of --engine ray."),
        (("ray", None, None, 0.0), "--unit-timeout 0 leaves no time to work."),
        (("ray", None, None, float("nan")), "--unit-timeout nan leaves no time to work."),
        (("ray", None, 0), "--workers 0 leaves nobody to work."),
    ],
)
def test_options_that_do_not_fit_are_one_line(given, said):
    with pytest.raises(SegsmithError) as caught:
        engine_options(*given)
    assert caught.value.message == said
    assert caught.value.remedy


def test_without_ray_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("segsmith.engine.options.find_spec", lambda name: None)
    with pytest.raises(SegsmithError, match=r'Ray is not installed. Type: pip install "segsmith\[ray\]"'):
        engine_options("ray")


@pytest.mark.parametrize(
    ("arguments", "instead"),
    [
        (("rejudge", "run", "--threshold", 0.4, "--engine", "ray"), "segsmith build --out RUN --engine ray"),
    ],
)
def test_commands_of_one_process_say_what_to_type(segsmith, tmp_path, monkeypatch, arguments, instead):
    monkeypatch.chdir(tmp_path)
    code, _, complaint = segsmith(*arguments)
    assert code == 2
    assert f"segsmith {arguments[0]} works in one process." in complaint
    assert instead in complaint
    assert complaint.count("\n") == 1
    assert not list(tmp_path.iterdir())
