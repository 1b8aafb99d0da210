"""An export that workers write is that of one process, byte for byte, whatever happens to the workers."""

import hashlib
import json
import os
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from segsmith.datasets import mask_objects
from segsmith.datasets.detect import EXPORTS
from segsmith.datasets.export import export_dataset, splits_work
from segsmith.datasets.mask_objects import ObjectCache
from segsmith.datasets.palette import voc_palette
from segsmith.engine.dispatch import Failed
from segsmith.engine.exports import WORK
from segsmith.engine.options import EngineOptions
from segsmith.engine.plane import DataPlane
from segsmith.engine.store import StagedUnitStore
from segsmith.engine.work import Setup
from segsmith.errors import SegsmithError
from segsmith.files import png_bytes
from segsmith.graph.context import RunContext
from segsmith.memory.ledger import Ledger
from segsmith.memory.real_images import LIST, RealImage, RealSet
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import CLASSES, made_up_run
from segsmith.workflows.run import open_run
from tests.engine.inline_pool import InlinePool

SPLIT = [form for form in EXPORTS if splits_work(form)]
IMAGES = 70
"""Three units, the last one smaller."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run, ledger, config = made_up_run(tmp_path_factory.mktemp("made") / "run", IMAGES, size=64)
    ledger.close()
    return run, config


@pytest.fixture(scope="module")
def local(made, tmp_path_factory):
    """Format -> what one process writes."""
    folder = tmp_path_factory.mktemp("local")
    return {form: content(export(made, folder / form, form)) for form in SPLIT}


def export(made, out, form="voc", pool=None, *, writes=False):
    """Export in a format, with workers if there is a pool; with `writes`, as a build does, which may write to the run."""
    run, config = made
    with closing(Ledger(run.ledger, read_only=not writes)) as ledger:
        elsewhere = None if pool is None else DataPlane(pool, run, ledger, config).write_records
        summary = export_dataset(run, ledger, config, form, out, elsewhere)
    return Path(summary.folder)


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.is_symlink() for part in path.parents)
    }


def add_real_images(run, count=40):
    """Real images of both splits, as `augment` copies them."""
    folder, items = run.real, []
    (folder / "masks").mkdir(parents=True)
    for n in range(count):
        image = np.random.default_rng(n).integers(0, 255, (48, 40, 3)).astype(np.uint8)
        label_map = np.zeros((48, 40), np.uint8)
        label_map[8:30, 5:30] = 1 + n % 2
        files = png_bytes(image), png_bytes(label_map, voc_palette())
        (folder / f"r-{n}.png").write_bytes(files[0])
        (folder / "masks" / f"r-{n}.png").write_bytes(files[1])
        hashes = [hashlib.sha256(data).hexdigest() for data in files]
        split, labels = ("train", "val")[n % 2], (CLASSES[n % 2],)
        items.append(
            RealImage(f"r-{n}", f"photo {n}", split, labels, f"r-{n}.png", hashes[0], True, hashes[1])
        )
    (folder / LIST).write_text(RealSet(folder, CLASSES, tuple(items)).text)


def pool_for(made, **options):
    run, config = made
    return InlinePool(Setup(config, run.root, {}), **options)


@pytest.mark.parametrize("form", SPLIT)
def test_every_format_is_that_of_one_process(made, local, tmp_path, form):
    pool = pool_for(made, workers=3, latest_first=True)
    found = content(export(made, tmp_path / form, form, pool))
    assert found == local[form]
    assert len(pool.done) == 3
    assert set(json.loads(found["manifest.json"])["files"]) | {"manifest.json"} >= set(found)
    assert [path.name for path in tmp_path.iterdir()] == [form], "nothing else is left"


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_lost_and_failing_workers_change_nothing(made, local, tmp_path, workers):
    attempts = []

    def faults(unit, worker):
        attempts.append(unit.id)
        return {1: "fail", 3: "die" if workers > 1 else "fail"}.get(len(attempts), "")

    found = content(export(made, tmp_path / "coco", "coco", pool_for(made, workers=workers, faults=faults)))
    assert found == local["coco"]
    assert len(attempts) > 3


def test_a_unit_that_was_written_in_part_is_written_again(made, local, tmp_path, monkeypatch):
    """A disk is full after some files; those stay, and are replaced by the same when another worker does the unit."""
    pool, wrote, failed = pool_for(made, workers=2), [], []
    do, replace, poll = pool._shop.do, os.replace, pool.poll

    def full_after_some(source, target):
        wrote.append(target)
        if len(wrote) == 20:
            raise OSError(28, "No space left on device")
        replace(source, target)

    def doing(unit, attempt):
        try:
            return do(unit, attempt)
        except OSError as error:
            failed.append(Failed("w1", unit.id, attempt, str(error)))
            raise

    def polling(timeout):
        try:
            return poll(timeout)
        except OSError:
            assert len(failed) == 1
            return failed

    monkeypatch.setattr("segsmith.datasets.staging.os.replace", full_after_some)
    monkeypatch.setattr(pool._shop, "do", doing)
    monkeypatch.setattr(pool, "poll", polling)
    assert content(export(made, tmp_path / "voc", "voc", pool)) == local["voc"]
    assert len(failed) == 1
    assert len(wrote) != len(set(wrote)), "some files were written twice"


def test_a_late_attempt_writes_nothing_into_a_finished_export(made, local, tmp_path):
    pool, units = pool_for(made), []
    pool._faults = lambda unit, worker: units.append(unit) or ""
    out = export(made, tmp_path / "yolo", "yolo", pool)
    with pytest.raises(SegsmithError, match="is not on this machine"):
        pool._shop.do(units[0], "late-1")
    staging = Path(units[0].place)
    staging.mkdir()  # the next export
    with pytest.raises(SegsmithError, match="is not on this machine"):
        pool._shop.do(units[0], "late-2")
    with pytest.raises(FileNotFoundError):
        StagedUnitStore(staging / WORK).begin("u", "late-3")
    staging.rmdir()
    assert content(out) == local["yolo"]


def test_a_unit_that_cannot_be_written_ends_the_export_and_leaves_the_old_one(made, tmp_path):
    out = export(made, tmp_path / "voc", "voc")
    (out / "README.md").write_text("changed, so that the export is written again")
    before, bad = content(out), []

    def faults(unit, worker):
        bad.append(unit.id) if not bad else None
        return "fail" if unit.id in bad else ""

    with pytest.raises(
        SegsmithError, match=r"1 of 3 units of the export could not be done: OSError: no space left\."
    ):
        export(made, out, "voc", pool_for(made, workers=4, faults=faults))
    assert content(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_objects_that_workers_find_are_kept_and_not_found_again(made, local, tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(made[0].root, run.root)
    mine, finding = (run, made[1]), []
    find = mask_objects.find_objects
    monkeypatch.setattr(
        "segsmith.datasets.run_dataset.find_objects", lambda mask: finding.append(1) or find(mask)
    )
    run.objects.unlink(missing_ok=True)
    assert content(export(mine, tmp_path / "voc", "voc", pool_for(mine), writes=True)) == local["voc"]
    assert len(finding) == IMAGES
    with (
        ObjectCache(run.objects, read_only=True) as cache,
        closing(Ledger(run.ledger, read_only=True)) as ledger,
    ):
        assert all(cache.get(sha) is not None for _, sha in ledger.mask_hashes())
    assert content(export(mine, tmp_path / "coco", "coco", pool_for(mine, workers=2))) == local["coco"]
    assert len(finding) == IMAGES


def test_real_images_are_found_in_the_run_folder(made, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(made[0].root, run.root)
    add_real_images(run)
    mine = (run, made[1])
    alone = content(export(mine, tmp_path / "alone", "hf"))
    assert content(export(mine, tmp_path / "workers", "hf", pool_for(mine, workers=2))) == alone
    assert any(name.startswith("validation/") for name in alone)


def test_a_shard_is_written_by_one_process(made, tmp_path):
    assert set(EXPORTS) - set(SPLIT) == {"webdataset"}
    pool = pool_for(made)
    alone = content(export(made, tmp_path / "alone", "webdataset"))
    assert content(export(made, tmp_path / "workers", "webdataset", pool)) == alone
    assert pool.done == []


@pytest.fixture
def ray_is_installed(monkeypatch):
    monkeypatch.setattr("segsmith.engine.options.find_spec", lambda name: True)


def test_the_command_says_which_format_one_process_writes(made, segsmith, ray_is_installed):
    code, _, complaint = segsmith("export", made[0].root, "--format", "webdataset", "--engine", "ray")
    assert code == 2
    assert complaint.count("\n") == 1
    assert "The format webdataset is written by one process. Leave out --engine" in complaint


def test_the_command_starts_workers_for_an_export_that_is_not_there_yet(
    made, local, tmp_path, segsmith, monkeypatch, ray_is_installed
):
    started = []

    def pool(options, setup):
        started.append(options)
        made_pool = InlinePool(setup, workers=options.workers)
        made_pool.close = lambda: started.append("ended")
        return made_pool

    monkeypatch.setattr("segsmith.engine.ray.RayPool", pool)
    out = tmp_path / "yolo"
    command = ("export", made[0].root, "--format", "yolo", "--out", out, "--engine", "ray", "--workers", 3)
    code, said, _ = segsmith(*command)
    assert code == 0
    assert content(out) == local["yolo"]
    assert (started[0].workers, started[1:]) == (3, ["ended"])
    code, said, _ = segsmith(*command)
    assert (code, len(started)) == (0, 2)
    assert "(already exported)" in said
    other = open_run(made[0].root).export("voc", tmp_path / "voc", engine="ray", workers=2)
    assert content(other) == local["voc"]


def test_a_build_exports_with_its_workers(made, local, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(made[0].root, run.root)
    pool = pool_for((run, made[1]), workers=2)
    with RunContext(made[1], run, parts={"pool": pool}) as context:
        context.finalizer.export()
    assert content(run.voc) == local["voc"]
    assert len(pool.done) == 3
    with RunContext(made[1], run, engine=EngineOptions("ray")) as context:
        context.finalizer.export()
        assert "pool" not in context._made, "it is there already, so that no worker is started"
