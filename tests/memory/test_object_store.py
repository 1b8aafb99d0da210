"""Objects in a store with S3's protocol, and what goes wrong there."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from segsmith.errors import SegsmithError
from segsmith.memory.object_store import ObjectStore, store_url
from tests import s3_server as fixtures
from tests.s3_server import reached, s3_server

server, fs = fixtures.server, fixtures.fs


def test_objects_come_back_and_folders_are_listed(fs, tmp_path):
    store = ObjectStore("s3://bucket/objects/run")
    assert store.names() == store.keys("images") == []
    store.put("images/ab/i-1.png", b"one")
    store.put("images/cd/i-2.png", b"two")
    (tmp_path / "file").write_bytes(b"three")
    store.put_file("run.toml", tmp_path / "file")
    assert store.names() == ["images", "run.toml"]
    assert store.names("images") == ["ab", "cd"]
    assert store.keys("images") == ["images/ab/i-1.png", "images/cd/i-2.png"]
    assert store.copy("images/ab/i-1.png", "copy")
    assert not store.copy("none", "copy")
    assert store.get_file("copy", tmp_path / "there")
    assert not store.get_file("none", tmp_path / "gone")
    assert (tmp_path / "there").read_bytes() == b"one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]
    store.delete(["copy", "never-there"])
    store.delete_folder("images")
    assert store.keys() == ["run.toml"]
    assert store.get("copy") is None
    assert store.modified("copy") is None


def test_of_many_that_create_one_object_one_succeeds(fs):
    store = ObjectStore("s3://bucket/created")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.create("commit", f"{n}".encode()), range(8)))
    assert sum(won) == 1
    assert store.get("commit") == f"{won.index(True)}".encode()
    assert store.create("commit", f"{won.index(True)}".encode()), "a repeated request has not lost to itself"
    assert store.check() is not None
    assert store.keys() == ["commit"], "the check leaves nothing"


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3://bucket",
        "s3://Bucket/run",
        "s3://bucket/a/../b",
        "s3://bucket/run?versionId=1",
        "s3://b ck/run",
    ],
)
def test_a_url_that_names_no_folder_in_a_bucket(url):
    with pytest.raises(SegsmithError, match=r"does not name a folder in a bucket\. Type s3://BUCKET/NAME"):
        store_url(url)


def test_a_key_in_a_url_is_not_repeated():
    with pytest.raises(SegsmithError, match="was typed with a user name or key") as caught:
        store_url("s3://AKIA:secret@bucket/run")
    assert "secret" not in str(caught.value)


def test_urls_and_paths():
    assert store_url("s3:/bucket/a//run/") == "s3://bucket/a/run"
    assert store_url("runs/run") is None


def test_what_is_wrong_with_a_store_is_said(fs, monkeypatch):
    with pytest.raises(SegsmithError, match="There is no bucket 'nowhere'"):
        ObjectStore("s3://nowhere/run").check()
    with pytest.raises(SegsmithError, match="There is no bucket 'nowhere'"):
        ObjectStore("s3://nowhere/run").names()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    type(fs).clear_instance_cache()
    with pytest.raises(
        SegsmithError, match=r"There are no credentials for s3://bucket/run\. Set AWS_ACCESS_KEY_ID"
    ):
        ObjectStore("s3://bucket/run").check()


def test_without_s3fs_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("segsmith.memory.object_store.find_spec", lambda name: None)
    with pytest.raises(SegsmithError, match=r'pip install "segsmith\[s3\]"'):
        ObjectStore("s3://bucket/run").check()


def test_a_store_without_conditional_writes_is_rejected(monkeypatch):
    with (
        s3_server(conditional=False) as environment,
        reached(monkeypatch, environment),
        pytest.raises(SegsmithError, match="ignores `If-None-Match"),
    ):
        ObjectStore("s3://bucket/run").check()
