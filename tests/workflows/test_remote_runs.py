"""Runs whose folder is a URL of an object store: built, killed, resumed on another machine, exported, and read."""

import json
import os
import subprocess
import sys
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

import segsmith as library
from segsmith.datasets.export import export_dataset
from segsmith.engine.options import EngineOptions
from segsmith.engine.plane import DataPlane
from segsmith.engine.work import Setup
from segsmith.errors import SegsmithError
from segsmith.events import WorkersBusy
from segsmith.graph.context import REMOTE_PARTS
from segsmith.memory import remote_run
from segsmith.memory.ledger import Ledger
from segsmith.memory.object_store import ObjectStore
from segsmith.memory.remote_run import working_folder
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import InstantScenes, fingerprint, instant_config, instant_parts
from segsmith.workflows.verify import verify
from tests import s3_server as fixtures
from tests.engine.inline_pool import InlinePool

CONFIG = instant_config(("cat", "dog"), 6)


server, fs = fixtures.server, fixtures.fs


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Call it with a name to be another machine: one with working folders of its own."""

    def become(name):
        monkeypatch.setenv("SEGSMITH_CACHE", str(tmp_path / name))
        return tmp_path / name

    become("first")
    return become


def build(url, **parts):
    out = working_folder(url, new=True)
    return library.build(
        out=url,
        config=None if (out / "run.toml").exists() else CONFIG,
        parts={**instant_parts(CONFIG, out), **parts},
        progress=False,
    )


SESSION = f"""
import sys, time
from segsmith.memory import remote_run
from segsmith.testing import InstantScenes
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.workflows.test_remote_runs import CONFIG, build
remote_run.SAVE_EVERY_S, remote_run.SAVE_SHARE = 0.5, 0.2

class Slow(InstantScenes):
    def draw(self, *arguments):
        time.sleep(1.0)
        yield from super().draw(*arguments)

build(sys.argv[1], backend=Slow(CONFIG.classes, CONFIG.images.size))
"""


class Counting(InstantScenes):
    drawn = 0

    def draw(self, requests, *rest):
        for found in super().draw(requests, *rest):
            self.drawn += 1
            yield found


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The same run in a folder."""
    out = tmp_path_factory.mktemp("local") / "run"
    library.build(out=out, config=CONFIG, parts=instant_parts(CONFIG, out), progress=False)
    return fingerprint(out)


@pytest.mark.long
def test_a_killed_run_is_resumed_by_another_machine(fs, machine, local, tmp_path):
    url = "s3://bucket/killed"
    store = ObjectStore(url)
    session = subprocess.Popen([sys.executable, "-c", SESSION, url], env=os.environ)
    try:
        deadline = time.monotonic() + 500
        while len(store.keys("images")) < 6 or not store.names("snapshots"):
            assert session.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.3)  # each look takes the time of both processes
    finally:
        session.kill()
        session.wait()
    there = {key.rpartition("/")[2] for key in store.keys("images")}

    machine("second")
    backend = Counting(CONFIG.classes, CONFIG.images.size)
    run = build(url, backend=backend)
    assert run.is_finished
    assert fingerprint(run.path) == local
    images = {path.name for path in RunFolder(run.path).image_files()}
    assert there <= images
    assert backend.drawn == len(images - there), "no image is drawn twice"
    assert {key.rpartition("/")[2] for key in store.keys("images")} == images

    machine("third")
    again = build(url)
    assert again.ended.status == "already_finished"
    report = library.open_run(url)
    assert report.tallies == run.tallies
    assert store.get("report.html") is not None
    assert len(store.names("snapshots")) <= remote_run.KEPT
    content = {key.removeprefix("files/") for key in store.keys("files")}
    kept = [content_of(store, name) for name in store.names("snapshots")]
    assert content == set().union(*kept), "nothing is kept that no snapshot names"


def content_of(store, name):
    return set(json.loads(store.get(f"snapshots/{name}"))["files"].values())


def test_what_workers_committed_is_used_by_another_machine(fs, machine, local, monkeypatch):
    url, drawn, kinds = "s3://bucket/workers", [], set()

    def session(name, faults):
        machine(name)
        out = working_folder(url, new=True)
        backend = Counting(CONFIG.classes, CONFIG.images.size)
        models = {name: part for name, part in instant_parts(CONFIG, out).items() if name in REMOTE_PARTS}
        pool = InlinePool(Setup(CONFIG, out, {**models, "backend": backend}, url), workers=2, faults=faults)
        try:
            return build(url, pool=pool)
        finally:
            drawn.append(backend.drawn)

    def dies(unit, worker):
        kinds.add(unit.kind)
        if unit.kind == "masks":
            raise ZeroDivisionError
        return ""

    with monkeypatch.context() as patched:
        # The driver is killed: it takes no snapshot of what was drawn.
        patched.setattr(remote_run.RemoteRun, "save", lambda self: None)
        with pytest.raises(ZeroDivisionError):
            session("first", dies)
    store = ObjectStore(url)
    assert drawn[0] > 0
    assert kinds >= {"draw", "teach", "relabel", "masks"}
    assert store.names("units")
    assert not store.names("snapshots")
    run = session("second", lambda unit, worker: "")
    assert drawn[1] == 0, "what is committed is not drawn again"
    for key in (*store.keys("images"), *store.keys("masks")):
        RunFolder(run.path).remote.fetch(run.path / key)
    assert fingerprint(run.path) == local
    assert store.names("units") == store.names("relabelling") == []
    checked = verify(url)
    assert (checked.findings, checked.images) == ((), len(list(RunFolder(run.path).image_files())))


def test_the_dataset_is_exported_to_a_url_and_read_by_webdataset(fs, machine, segsmith, monkeypatch):
    import fsspec
    import webdataset

    url, shards = "s3://bucket/exported", "s3://bucket/shards/pets"
    run = build(url)
    machine("reader")
    code, out, _ = segsmith("export", url, "--format", "webdataset", "--out", shards)
    assert code == 0
    assert out.splitlines()[-1] == shards
    index = json.loads(fs.cat_file(f"{shards}/dataset.json"))
    manifest = json.loads(fs.cat_file(f"{shards}/manifest.json"))
    assert set(manifest["files"]) | {"manifest.json"} == set(ObjectStore(shards).keys())
    opened = lambda address, mode, bufsize: fsspec.open(address, "rb").open()  # noqa: E731
    monkeypatch.setitem(webdataset.gopen_schemes, "s3", opened)
    read = webdataset.WebDataset([f"{shards}/{name}" for name in index["shards"]], shardshuffle=False)
    found = {sample["__key__"]: sample for sample in read.decode("rgb8")}
    assert found.keys() == {image.id for image in run.images}
    for image in run.images:
        assert (found[image.id]["png"] == image.image).all()
        assert (found[image.id]["mask.png"][..., 0] == image.mask).all()
    assert "already exported" in segsmith("export", url, "--format", "webdataset", "--out", shards)[1]
    code, out, _ = segsmith("export", url, "--format", "coco")
    assert out.splitlines()[-1] == f"{url}/dataset/coco"
    assert "not replaced" in segsmith("export", url, "--out", "s3://bucket/shards")[2]
    (first, *_) = run.images
    assert segsmith("why", url, first.id)[0] == segsmith("report", url)[0] == segsmith("verify", url)[0] == 0
    assert "cannot be repaired" in segsmith("verify", url, "--repair")[2]


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (extra segsmith[ray])")
@pytest.mark.long
def test_a_real_ray_builds_and_exports_a_run_in_a_store_as_one_process_does_in_a_folder(
    fs, machine, local, tmp_path
):
    """Long: workers are processes that import segsmith and reach the store by themselves."""
    from segsmith.engine.ray import connect, disconnect

    url, copy = "s3://bucket/ray", "s3://bucket/ray-coco"
    ray = connect(EngineOptions("ray", workers=2))
    cluster = {"engine": "ray", "address": "auto", "workers": 2}
    workers = set()
    try:
        out = working_folder(url, new=True)

        def see(event):
            if isinstance(event, WorkersBusy):
                workers.update(event.per_worker)

        run = library.build(out=url, config=CONFIG, parts=instant_parts(CONFIG, out), on_event=see, **cluster)
        assert len(workers) == 2
        machine("reader")
        exported = library.open_run(url)
        assert exported.export("coco", copy, **cluster) == copy
        folder = exported.export("yolo", tmp_path / "yolo", **cluster)
        assert not list(RunFolder(exported.path).image_files()), "the command reads no image"
    finally:
        disconnect(ray)
    store = ObjectStore(url)
    assert store.names("units") == []
    for form, found in (("coco", content_at(copy)), ("yolo", content_of_folder(folder))):
        assert found == content_of_folder(exported.export(form, tmp_path / f"{form}-alone"))
    machine("first")
    for key in (*store.keys("images"), *store.keys("masks")):
        RunFolder(run.path).remote.fetch(run.path / key)
    assert fingerprint(run.path) == local


def content_at(url):
    store = ObjectStore(url)
    return dict(zip(store.keys(), map(store.get, store.keys()), strict=True))


def content_of_folder(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


def test_an_export_to_a_url_that_was_interrupted_is_written_anew(fs, machine, tmp_path):
    url, copy = "s3://bucket/interrupted", "s3://bucket/interrupted-voc"
    run = build(url)
    alone = content_of_folder(run.export("voc", tmp_path / "alone"))

    def export(faults):
        pool = InlinePool(Setup(CONFIG, run.path, {}, url), workers=2, latest_first=True, faults=faults)
        folder = RunFolder(run.path)
        with closing(Ledger(folder.ledger, read_only=True)) as ledger:
            plane = DataPlane(pool, folder, ledger, CONFIG)
            export_dataset(folder, ledger, CONFIG, "voc", copy, plane.write_records)
        kept = RunFolder(pool._shop.run.root)
        assert not [*kept.image_files(), *kept.mask_files()], "workers keep nothing"
        return pool.done

    def stops(unit, worker):
        raise ZeroDivisionError

    machine("exporting")
    with pytest.raises(ZeroDivisionError):
        export(stops)
    store = ObjectStore(copy)
    assert json.loads(store.get("manifest.json"))["files"] == {}
    store.put("units/u-0/commit", b"of a command that was killed")
    store.put("JPEGImages/strange.png", b"of another export")
    assert export(lambda unit, worker: "")
    assert content_at(copy) == alone


def test_a_run_is_held_in_its_store(fs, machine, monkeypatch):
    url = "s3://bucket/held"
    first = RunFolder(working_folder(url, new=True))
    machine("second")
    second = RunFolder(working_folder(url, new=True))
    with first.held():
        with (
            pytest.raises(SegsmithError, match=f"{url} is in use by process {os.getpid()} on"),
            second.held(),
        ):
            pass
        monkeypatch.setattr(remote_run, "LEASE_S", -1.0)  # the first one is silent for longer than that
        with second.held():
            monkeypatch.setattr(remote_run, "LEASE_S", 180.0)
            second.remote.save()
            with pytest.raises(SegsmithError, match="was taken over by another process"):
                first.remote.save()
        monkeypatch.setattr(remote_run.RemoteRun, "save", lambda self: None)
    with pytest.raises(SegsmithError, match="was changed a moment ago"), first.held():
        pass
    assert len(ObjectStore(url).names("lock")) == 1


@pytest.mark.parametrize(
    ("change", "url", "said"),
    [
        ({}, "s3://nowhere/run", "There is no bucket 'nowhere'. "),
        (
            {},
            "s3://bucket/nothing",
            "There is no run at s3://bucket/nothing. Start one: segsmith build --out",
        ),
        ({}, "s3://bucket", "s3://bucket does not name a folder in a bucket. Type s3://BUCKET/NAME"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "s3://bucket/run", "no credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://bucket/run", "does not answer"),
    ],
    ids=["bucket", "run", "url", "credentials", "endpoint"],
)
def test_a_store_that_cannot_be_used_is_one_line(fs, machine, monkeypatch, segsmith, change, url, said):
    for name, value in change.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    type(fs).clear_instance_cache()
    commands = [["report", url], ["build", "--classes", "cat", "--out", url]]
    # A build may start a run where there is none; a server that is down is asked five times.
    for command in commands[: 1 if "no run" in said or "answer" in said else 2]:
        code, _, complaint = segsmith(*command)
        assert code == 2
        assert said in complaint
        assert complaint.count("\n") == 1
