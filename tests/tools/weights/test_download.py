"""Fetching a file over plain HTTP: whole and right, or not there."""

import hashlib
import random

import pytest

from segsmith.errors import SegsmithError
from segsmith.tools.weights.download import download
from tests.tools.weights.hub_server import serving

CONTENT = random.Random(0).randbytes(3_000_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


def nobody(*_):
    pass


def test_a_connection_cut_again_and_again_is_taken_up_where_it_broke(tmp_path):
    told = []
    with serving({"/f.pth": CONTENT}, cuts=3) as server:
        download(
            f"{server.url}/f.pth", tmp_path / "f.pth", SHA, 0, lambda *news: told.append(news), pause_s=0
        )
        ranges = [r for _, _, r in server.asked]
    assert (tmp_path / "f.pth").read_bytes() == CONTENT
    assert ranges[0] is None
    starts = [int(r.removeprefix("bytes=").rstrip("-")) for r in ranges[1:]]
    assert len(starts) == 3
    assert starts == sorted(starts)
    assert starts[0] >= 1_000_000
    assert told[-1] == ("f.pth", len(CONTENT), len(CONTENT))
    assert [p.name for p in tmp_path.iterdir()] == ["f.pth"]


def test_a_part_left_by_an_earlier_process_is_not_fetched_again(tmp_path):
    (tmp_path / "f.pth.part").write_bytes(CONTENT[:2_000_000])
    with serving({"/f.pth": CONTENT}) as server:
        download(f"{server.url}/f.pth", tmp_path / "f.pth", SHA, 0, nobody)
        assert [r for _, _, r in server.asked] == ["bytes=2000000-"]
    assert (tmp_path / "f.pth").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(tmp_path):
    (tmp_path / "f.pth.part").write_bytes(b"x" * 500)
    with serving({"/f.pth": CONTENT}, ranges=False) as server:
        download(f"{server.url}/f.pth", tmp_path / "f.pth", SHA, 0, nobody)
    assert (tmp_path / "f.pth").read_bytes() == CONTENT


def test_another_file_than_expected_is_not_kept(tmp_path):
    lying = serving({"/f.pth": CONTENT}, lies={"/f.pth": b"z" + CONTENT[1:]})
    with lying as server, pytest.raises(SegsmithError, match="not the file expected"):
        download(f"{server.url}/f.pth", tmp_path / "f.pth", SHA, 0, nobody)
    assert not list(tmp_path.iterdir())


def test_an_address_without_file_and_one_without_server(tmp_path):
    with serving() as server, pytest.raises(SegsmithError, match="404"):
        download(f"{server.url}/none", tmp_path / "none", "", 0, nobody)
    with pytest.raises(SegsmithError, match="Check the network"):
        download(f"{server.url}/none", tmp_path / "none", "", 0, nobody, pause_s=0)
