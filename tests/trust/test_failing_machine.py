"""Full disks, read-only folders and memory that runs out: one line, and the same command resumes afterwards."""

import errno
import os
import sqlite3
import subprocess
from contextlib import closing

import pytest

from segsmith import files
from segsmith.engine.models import open_image_backend
from segsmith.errors import OutOfMemory, SegsmithError
from segsmith.files import sha256_of
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import ScriptedChat, leftovers, small_config
from segsmith.workflows.build import build_run
from segsmith.workflows.environment_errors import explain, translate


@pytest.fixture
def scripted():
    """What the backend of this test's builds is wrapped in."""
    return {"backend": lambda inner: inner}


def events_of(out, wrap):
    config = small_config(trainer={"epochs": 1}, evaluation={"images": 0}, per_class=2)
    parts = {
        "chat": ScriptedChat(),
        "backend": wrap["backend"](open_image_backend(config)),
    }
    return build_run(config, out, parts=parts)


def build(out, wrap):
    return [event.kind for event in events_of(out, wrap)][-1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (
            OSError(errno.EROFS, "Read-only file system", "/r/images/x.png"),
            "/r/images/x.png is no longer writable",
        ),
        (sqlite3.OperationalError("database or disk is full"), "disk is full"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "no longer writable"),
        (MemoryError(), "Out of memory"),
        (OutOfMemory("CUDA out of memory"), "Out of memory"),
        (OSError(errno.EIO, "Input/output error", "/r/a"), "Input/output error"),
    ],
)
def test_what_a_machine_does_is_one_line_with_the_remedy(tmp_path, error, words):
    with pytest.raises(SegsmithError, match=words) as caught, translate(tmp_path):
        raise error
    assert "same command again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fault_of_the_program_stays_visible(tmp_path):
    assert explain(ValueError("a bug"), tmp_path) is None


def test_a_backend_out_of_memory_ends_in_one_line_and_the_run_goes_on(tmp_path, scripted):
    class Greedy:
        def __init__(self, inner):
            self.inner, self.name = inner, inner.name

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def draw(self, requests, *_):
            raise OutOfMemory("no memory for one image")

    scripted["backend"] = Greedy
    with pytest.raises(SegsmithError, match="too little memory"):
        build(tmp_path / "run", scripted)
    scripted["backend"] = lambda inner: inner
    assert build(tmp_path / "run", scripted) == "end"


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 3 MB; needs root and the right to mount."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(where)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small tmpfs cannot be mounted here (needs root)")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=False)


def test_a_full_disk_and_then_space(small_disk, scripted):
    with pytest.raises(SegsmithError, match="disk is full"):
        build(small_disk / "run", scripted)
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert build(small_disk / "run", scripted) == "end"
    assert leftovers(small_disk / "run") == []


def test_a_folder_made_read_only_in_mid_run(small_disk, scripted):
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)

    mounted = []

    def then_read_only(inner):
        draw = inner.draw

        class Backend:
            name, usd_per_image, close = inner.name, 0.0, inner.close

            def draw(self, requests, *how):
                images = list(draw(requests, *how))
                # A file system with a file open for writing cannot be made read-only, a bind mount of it can.
                # The next batch is drawn before the failure is noticed.
                folder = small_disk / "run" / "images"
                if not mounted:
                    mounted.append(folder)
                    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
                    subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
                return iter(images)

        return Backend()

    scripted["backend"] = then_read_only
    with pytest.raises(SegsmithError, match="is no longer writable"):
        build(small_disk / "run", scripted)
    subprocess.run(["umount", str(small_disk / "run" / "images")], check=True)
    scripted["backend"] = lambda inner: inner
    assert build(small_disk / "run", scripted) == "end"


def test_a_second_process_exits_with_the_name_of_the_holder(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    with run.held(), pytest.raises(SegsmithError) as caught, RunFolder(tmp_path / "run").held():
        pass
    assert f"process {os.getpid()} on {os.uname().nodename} since 20" in str(caught.value)


@pytest.mark.parametrize("kind", ["draw", "judge"])
def test_a_run_left_inside_a_node_is_not_taken_for_a_finished_one(tmp_path, scripted, kind):
    events = events_of(tmp_path / "run", scripted)
    for event in events:
        if event.kind == kind:
            events.close()  # what a Ctrl-C or an error of the caller does; the node itself may end yet
            break
    assert build(tmp_path / "run", scripted) == "end"


@pytest.mark.parametrize("after", [1, 5, 9])
def test_a_disk_that_fills_up_in_the_middle_loses_nothing(tmp_path, scripted, monkeypatch, after):
    """Whichever file does not fit any more: one line, every row has its file, and the same command completes it."""
    real, written = files.os.replace, []

    def replace(source, target):
        if len(written) == after:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(target)
        real(source, target)

    with monkeypatch.context() as full:
        full.setattr(files.os, "replace", replace)
        with pytest.raises(SegsmithError, match="disk is full") as caught:
            build(tmp_path / "run", scripted)
    assert "\n" not in str(caught.value)
    run = RunFolder(tmp_path / "run")
    rows = []
    if run.ledger.exists():
        with closing(Ledger(run.ledger, read_only=True)) as ledger:
            rows = ledger.images()
            assert all(sha256_of(run.image(row.id)) == row.sha256 for row in rows)
    assert not [path for path in run.root.rglob("*") if files.PART in path.name]
    before = {row.id for row in rows}
    assert build(tmp_path / "run", scripted) == "end"
    with closing(Ledger(run.ledger)) as ledger:
        assert before <= {row.id for row in ledger.images()}
    assert leftovers(run.root) == []
