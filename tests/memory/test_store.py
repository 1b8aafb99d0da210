"""The run folder: files whole or not at all, and one process at a time."""

import os
import subprocess
import sys

import numpy as np
import pytest

from segsmith.errors import SegsmithError
from segsmith.files import png_bytes, read_index_map, write_atomic
from segsmith.ids import make_id, seed_of
from segsmith.memory.run_folder import RunFolder


def test_ids_depend_on_every_part_and_nothing_else():
    assert make_id("p", "cat", "a cat") == make_id("p", "cat", "a cat")
    assert len({make_id("p", "ab", "c"), make_id("p", "a", "bc"), make_id("i", "ab", "c")}) == 3
    assert 0 <= seed_of("x", 1) < 2**31


def test_ids_are_the_same_in_another_process():
    code = "from segsmith.ids import make_id, seed_of; print(make_id('p', 1), seed_of('a'))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    got = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert got.stdout.split() == [make_id("p", 1), str(seed_of("a"))]


def test_a_failed_write_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_index_maps_survive_the_palette(tmp_path):
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    palette = np.random.default_rng(0).integers(0, 255, (256, 3), dtype=np.uint8)
    (tmp_path / "m.png").write_bytes(png_bytes(indices, palette))
    assert np.array_equal(read_index_map(tmp_path / "m.png"), indices)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SegsmithError, match="--out"):
        RunFolder(tmp_path / "file" / "run").create()


def test_a_second_process_exits_with_the_name_of_the_holder(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    code = f"""
from pathlib import Path
from segsmith.memory.run_folder import RunFolder
with RunFolder(Path({str(tmp_path / "run")!r})).held(): pass
"""
    with run.held():
        got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"process {os.getpid()}" in got.stderr
    with run.held():
        pass
