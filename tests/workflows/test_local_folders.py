"""A URL in place of a folder is one line for every command that takes none, and no folder called "s3:" is made."""

import pytest

import segsmith as library
from segsmith.errors import SegsmithError
from segsmith.files import local_folder

URL = "gs://bucket/run"
WRITING = [
    ["build", "--classes", "cat", "--out", URL],
    ["build", "--classes", "cat", "--memory", URL],
    ["augment", "--dataset", ".", "--add-per-class", "2", "--out", URL],
    ["refine", "--dataset", ".", "--out", URL],
    ["weaken", "--dataset", ".", "--out", URL],
    ["train", "--dataset", ".", "--out", URL],
    ["predict", "nothing.safetensors", ".", "--out", URL],
    ["export-model", "nothing.safetensors", "--out", URL],
    ["merge", "a", "b", "--out", URL],
    ["merge", "a", URL, "--out", "c"],
    ["export", URL],
    ["rejudge", URL, "--threshold", "0.4"],
    ["step", URL],
    ["verify", URL],
    ["report", URL],
    ["gallery", URL],
    ["ledger", URL],
    ["why", URL, "i-1"],
    ["push", URL, "--to", "org/name"],
    ["validate", ".", "--run", URL],
    ["plan", "--classes", "cat", "--like", URL],
]


IN_A_STORE = "s3://bucket/run"
"""Of a store where some commands keep or read runs; these do not."""
ELSEWHERE = ("augment", "refine", "weaken", "train", "predict", "export-model", "merge", "step")
WRITING += [
    [IN_A_STORE if word == URL else word for word in case] for case in WRITING if case[0] in ELSEWHERE
]
WRITING.append(["build", "--classes", "cat", "--memory", IN_A_STORE])


@pytest.mark.parametrize("arguments", WRITING, ids=[" ".join(case[:1] + case[-1:]) for case in WRITING])
def test_a_url_is_one_line_and_leaves_nothing(segsmith, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, _, complaint = segsmith(*arguments)
    assert code == 2
    url = IN_A_STORE if IN_A_STORE in arguments else URL
    assert f"{url} is not a folder on a file system of this machine." in complaint
    assert "Type a path such as runs/run" in complaint
    assert complaint.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_export_to_a_url_is_one_line(tmp_path, monkeypatch):
    from segsmith.testing import small_config, small_run

    monkeypatch.chdir(tmp_path)
    run = small_run(
        tmp_path / "run", small_config(per_class=1, judge={"enabled": False}, evaluation={"images": 0})
    )
    with pytest.raises(SegsmithError, match=r"gs://bucket/out is not a folder"):
        run.export("voc", "gs://bucket/out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_library_takes_urls_no_more_than_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SegsmithError, match="abfs://container/run is not a folder"):
        library.build(["cat"], "abfs://container/run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["runs/pets", "/data/a:b/run", "C:/runs", "a:b", "runs/s3:/x", ".", "~x/y"])
def test_paths_stay_as_they_are(path):
    assert str(local_folder(path)) == path


def test_a_file_url_is_told_its_path():
    with pytest.raises(SegsmithError) as caught:
        local_folder("file:///data/run")
    assert caught.value.remedy == "Type /data/run"
