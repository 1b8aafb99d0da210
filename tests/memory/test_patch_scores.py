"""Score maps are written and read one image at a time."""

from contextlib import closing

import numpy as np
import pytest

from segsmith.files import sha256_of
from segsmith.memory.patch_scores import PatchScoreFile, patch_score_writer

MAPS = np.random.default_rng(0).random((3, 2, 8, 8)).astype(np.float16).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    with patch_score_writer(tmp_path / "scores.npz") as add:
        for name, maps in zip("abc", MAPS, strict=True):
            add(name, maps)
    return tmp_path / "scores.npz"


def test_maps_come_back_by_name(path):
    with closing(PatchScoreFile(path, sha256_of(path))) as file:
        assert file.holds(["a", "c"])
        assert not file.holds(["a", "d"])
        np.testing.assert_array_equal(file["b"], MAPS[1])


def test_the_same_maps_give_the_same_bytes(path, tmp_path):
    with patch_score_writer(tmp_path / "again.npz") as add:
        for name, maps in zip("abc", MAPS, strict=True):
            add(name, maps)
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


def test_the_file_of_an_earlier_version_is_read(tmp_path):
    np.savez_compressed(tmp_path / "old.npz", ids=np.array(["a", "b"]), maps=MAPS[:2].astype(np.float16))
    with closing(PatchScoreFile(tmp_path / "old.npz", "")) as file:
        assert file.holds(["a", "b"])
        np.testing.assert_array_equal(file["b"], MAPS[1])


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"x"), lambda p: None])
def test_a_file_that_is_not_the_one_written_holds_nothing(path, damage):
    damage(path)
    assert not PatchScoreFile(path, "0" * 64).holds(["a"])


def test_an_error_while_writing_leaves_the_file_before(path):
    def fails():
        with patch_score_writer(path) as add:
            add("d", MAPS[0])
            raise OSError("disk is full")

    before = path.read_bytes()
    with pytest.raises(OSError, match="full"):
        fails()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["scores.npz"]
