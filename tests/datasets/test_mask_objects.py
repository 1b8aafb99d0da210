"""The objects of masks that are kept for later exports."""

import errno
import hashlib
import os
import shutil
import sqlite3
import time
import zlib
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from segsmith.datasets import mask_objects
from segsmith.datasets.export import export_dataset
from segsmith.datasets.mask_objects import ObjectCache, find_objects, pack, unpack
from segsmith.datasets.staging import Sink
from segsmith.errors import SegsmithError
from segsmith.files import copy_new
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import made_up_run

FORMS = ("voc", "coco", "yolo")
IMAGES = 8


@pytest.fixture
def searched(monkeypatch):
    """The label maps in which objects are searched."""
    found = []

    def watched(label_map):
        found.append(label_map)
        return find_objects(label_map)

    monkeypatch.setattr("segsmith.datasets.run_dataset.find_objects", watched)
    return found


def hashes(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_objects_are_searched_once_and_exports_stay_the_same(tmp_path, searched):
    run, ledger, config = made_up_run(tmp_path / "run", IMAGES, 64)
    with closing(ledger):
        export_dataset(run, ledger, config)
    assert len(searched) == IMAGES
    with closing(Ledger(run.ledger, read_only=True)) as ledger:
        for form in FORMS:
            export_dataset(run, ledger, config, form, tmp_path / f"cached-{form}")
        assert len(searched) == IMAGES
        run.objects.unlink()
        for form in FORMS:
            export_dataset(run, ledger, config, form, tmp_path / f"new-{form}")
            assert hashes(tmp_path / f"new-{form}") == hashes(tmp_path / f"cached-{form}")
    assert len(searched) == IMAGES * (1 + len(FORMS))
    assert not run.objects.exists()  # a command that only reads a run writes nothing there


def spoilt(run, how):
    """Damage the cache."""
    if how == "no database":
        run.objects.write_bytes(b"hello " * 1000)
    elif how == "broken off":
        data = run.objects.read_bytes()
        run.objects.write_bytes(data[: len(data) // 2])
    else:
        with closing(sqlite3.connect(run.objects)) as db, db:
            if how == "other version":
                db.execute("PRAGMA user_version=99")
            elif how == "other table":
                db.execute("DROP TABLE objects")
            else:
                entry = pack(find_objects(np.full((4, 4), 3, np.uint8)))
                changed = entry[:-9] + bytes([entry[-9] ^ 1]) + entry[-8:]
                damaged = {"another byte": changed, "shorter": entry[:-5], "empty": b""}[how]
                db.execute("UPDATE objects SET data=?", (damaged,))


@pytest.mark.parametrize(
    "how",
    ["no database", "broken off", "other version", "other table", "another byte", "shorter", "empty"],
)
def test_a_damaged_cache_is_not_used(tmp_path, searched, how):
    run, ledger, config = made_up_run(tmp_path / "run", IMAGES, 64)
    with closing(ledger):
        whole = hashes(export_dataset(run, ledger, config, "coco", tmp_path / "whole").folder)
        spoilt(run, how)
        with closing(Ledger(run.ledger, read_only=True)) as reading:
            assert hashes(export_dataset(run, reading, config, "coco", tmp_path / "read").folder) == whole
        assert hashes(export_dataset(run, ledger, config, "coco", tmp_path / "again").folder) == whole
        before = len(searched)
        assert before > IMAGES
        # The session that may write has made the cache anew.
        assert hashes(export_dataset(run, ledger, config, "coco", tmp_path / "last").folder) == whole
        assert len(searched) == before


def copied_by(monkeypatch):
    """Names of the files that exports copy as they are, instead of reading and hashing them."""
    names = []
    copy = Sink.copy
    monkeypatch.setattr(Sink, "copy", lambda self, name, *how: names.append(name) or copy(self, name, *how))
    return names


def test_files_that_have_not_changed_since_an_export_are_not_hashed_again(tmp_path, monkeypatch):
    copied = copied_by(monkeypatch)
    run, ledger, config = made_up_run(tmp_path / "run", IMAGES, 64)
    time.sleep(0.05)  # files as young as the export are hashed the next time, too
    with closing(ledger):
        first = hashes(export_dataset(run, ledger, config, "voc", tmp_path / "first").folder)
        assert not copied
        for form in ("voc", "voc2012", "coco", "yolo", "hf", "cvat", "fiftyone", "label-studio"):
            export_dataset(run, ledger, config, form, tmp_path / form)
            assert len(copied) == (0 if form == "voc2012" else IMAGES)
            copied.clear()
        assert hashes(tmp_path / "voc") == first
        written = [
            export_dataset(run, ledger, config, "webdataset", tmp_path / "tars").written for _ in range(2)
        ]
        assert written == [True, False], "the manifest has the hashes of the tars"
        shutil.copytree(run.root, tmp_path / "copy")
        with closing(Ledger(tmp_path / "copy" / "ledger.db", read_only=True)) as other:
            export_dataset(RunFolder(tmp_path / "copy"), other, config, "hf", tmp_path / "of-copy")
        assert not copied, "a copy may have been damaged"
        path = next(run.image_files())
        before, data = path.stat(), path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(SegsmithError, match="not the file that the run drew"):
            export_dataset(run, ledger, config, "hf", tmp_path / "damaged")


@pytest.mark.parametrize("data", [b"", b"x" * 3_000_000])
@pytest.mark.parametrize("how", ["kernel", "no such call", "other file system", "nothing copied"])
def test_files_are_copied_whatever_the_kernel_can_do(tmp_path, monkeypatch, data, how):
    def fail(*_):
        raise OSError(errno.EXDEV, "other file system")

    if how == "no such call":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif how != "kernel":
        monkeypatch.setattr(os, "copy_file_range", fail if how == "other file system" else lambda *_: 0)
    (tmp_path / "a").write_bytes(data)
    copy_new(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == data


NOISE = np.random.default_rng(0).choice([0, 1, 2, 255], (70, 50)).astype(np.uint8)


@pytest.mark.parametrize("label_map", [np.zeros((3, 5), np.uint8), np.full((2, 9), 7, np.uint8), NOISE])
def test_an_entry_comes_back_as_it_went_in(label_map):
    found = find_objects(label_map)
    again = unpack(pack(found))
    assert again == found
    assert (again.regions, again.unknown_region, again.lines) == (
        found.regions,
        found.unknown_region,
        found.lines,
    )
    assert found.size == label_map.shape


FULL = find_objects(np.full((4, 4), 3, np.uint8))

HOSTILE = [
    {"size": [4]},
    {"size": ["4", 4]},
    {"present": [True]},
    {"objects": [[1, 1, 0, 0, 1]]},
    {"objects": [[1, 1, 0, 0, 1, "1"]]},
    {"objects": 3},
    {"unknown": [1]},
    {"specks": "many"},
]


@pytest.mark.parametrize("change", HOSTILE, ids=str)
def test_an_entry_of_other_values_is_rejected(monkeypatch, change):
    dumps = mask_objects.json.dumps
    monkeypatch.setattr(mask_objects.json, "dumps", lambda stated, **how: dumps({**stated, **change}, **how))
    entry = pack(FULL)
    with pytest.raises(ValueError, match="damaged"):
        unpack(entry)


@pytest.mark.parametrize(
    "outline",
    [
        '[["<x>"]]',
        '[[1]], "id": 7',
        '{"counts": 3, "size": [1, 1]}',
        '{"counts": "3", "size": [1, "1"]}',
        "[[1]]\n[[2]]",
    ],
)
def test_outlines_that_are_none_reach_no_export(outline):
    found = unpack(pack(replace(FULL, packed_outlines=zlib.compress(outline.encode()))))
    with pytest.raises(SegsmithError, match="outlines that segsmith did not write"):
        assert found.regions
    found = unpack(pack(replace(FULL, packed_lines=b"x" + FULL.packed_lines)))
    with pytest.raises(SegsmithError, match="outlines that segsmith did not write"):
        assert found.lines


def test_an_entry_cannot_fill_the_memory(monkeypatch):
    found = unpack(pack(find_objects(NOISE)))
    monkeypatch.setattr(mask_objects, "MAX_PACKED", 100)
    with pytest.raises(SegsmithError, match="outlines that segsmith did not write"):
        assert found.regions


def test_an_entry_with_an_index_of_no_class_is_an_error(tmp_path):
    run, ledger, config = made_up_run(tmp_path / "run", IMAGES, 64)
    with closing(ledger):
        export_dataset(run, ledger, config)
        entry = pack(find_objects(np.full((4, 4), 200, np.uint8)))
        with closing(sqlite3.connect(run.objects)) as db, db:
            db.execute("UPDATE objects SET data=?", (entry,))
        with pytest.raises(SegsmithError, match="holds index 200, which no class has"):
            export_dataset(run, ledger, config, "yolo")


def test_a_cache_of_masks_that_were_replaced_is_started_anew(tmp_path):
    path, found = tmp_path / "objects.db", find_objects(NOISE)
    with ObjectCache(path, read_only=False, entries=2) as cache:
        for name in "abcde":
            cache.add(name, found)
    with ObjectCache(path, read_only=True) as cache:
        assert cache.get("a") == found
        assert cache.get("x") is None
    with ObjectCache(path, read_only=False, entries=2) as cache:
        assert cache.get("a") is None
