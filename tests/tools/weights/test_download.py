"""Downloading a file over plain HTTP: complete and verified, or not there."""

import fcntl
import hashlib
import random

import pytest

from segsmith.errors import SegsmithError
from segsmith.tools.weights.download import RemoteFile, download
from tests.tools.weights.hub_server import serving

CONTENT = random.Random(0).randbytes(3_000_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


def remote(server, name="f.pth", sha256=SHA):
    return RemoteFile(f"{server.url}/{name}", name, sha256=sha256)


def test_a_download_resumes_each_time_the_connection_is_cut(tmp_path):
    told = []
    with serving({"/f.pth": CONTENT}, cuts=3) as server:
        download(remote(server), tmp_path / "f.pth", lambda *news: told.append(news), pause_s=0)
        ranges = [r for _, _, r in server.asked]
    assert (tmp_path / "f.pth").read_bytes() == CONTENT
    assert ranges[0] is None
    starts = [int(r.removeprefix("bytes=").rstrip("-")) for r in ranges[1:]]
    assert len(starts) == 3
    assert starts == sorted(starts)
    assert starts[0] >= 1_000_000
    assert told[-1] == ("f.pth", len(CONTENT), len(CONTENT))
    assert [p.name for p in tmp_path.iterdir()] == ["f.pth"]


def test_the_part_left_by_an_earlier_process_is_not_downloaded_again(tmp_path):
    (tmp_path / "f.pth.part").write_bytes(CONTENT[:2_000_000])
    with serving({"/f.pth": CONTENT}) as server:
        download(remote(server), tmp_path / "f.pth")
        assert [r for _, _, r in server.asked] == ["bytes=2000000-"]
    assert (tmp_path / "f.pth").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_whole_file(tmp_path):
    (tmp_path / "f.pth.part").write_bytes(b"x" * 500)
    with serving({"/f.pth": CONTENT}, ranges=False) as server:
        download(remote(server), tmp_path / "f.pth")
    assert (tmp_path / "f.pth").read_bytes() == CONTENT


def test_a_file_with_the_wrong_hash_is_removed(tmp_path):
    lying = serving({"/f.pth": CONTENT}, lies={"/f.pth": b"z" + CONTENT[1:]})
    with lying as server, pytest.raises(SegsmithError, match="not the expected file"):
        download(remote(server), tmp_path / "f.pth")
    assert not list(tmp_path.iterdir())


def test_a_missing_file_and_a_missing_server(tmp_path):
    with serving() as server, pytest.raises(SegsmithError, match="404"):
        download(remote(server, "none", ""), tmp_path / "none")
    with pytest.raises(SegsmithError, match="Check the network"):
        download(remote(server, "none", ""), tmp_path / "none", pause_s=0)


def test_two_processes_do_not_append_to_the_same_file(tmp_path):
    with serving({"/f.pth": CONTENT}) as server, (tmp_path / "f.pth.part").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SegsmithError, match="by another process"):
            download(remote(server), tmp_path / "f.pth")
        assert server.asked == []


def test_small_files_are_verified_by_their_git_hash(tmp_path):
    content = b"{}"
    git = hashlib.sha1(b"blob 2\0{}").hexdigest()
    with serving({"/f.json": content}) as server:
        file = RemoteFile(f"{server.url}/f.json", "f.json", git_sha1=git)
        download(file, tmp_path / "f.json")
        assert (tmp_path / "f.json").read_bytes() == content
        with pytest.raises(SegsmithError, match="not the expected file"):
            download(RemoteFile(file.url, "g.json", git_sha1="0" * 40), tmp_path / "g.json")
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]
