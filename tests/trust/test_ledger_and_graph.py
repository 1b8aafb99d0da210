"""A ledger that is behind the graph, or a graph that is lost: the run says so and ends as if nothing had happened."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from small_run import SMALL

from segsmith.events import Notice, Status
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import ScriptedChat, fingerprint, small_config
from segsmith.workflows.build import GRAPH_LOST, LEDGER_BEHIND, build_run


def events(out):
    return build_run(small_config(**SMALL), out, "segsmith build", parts={"chat": ScriptedChat()})


def back_up(path, copy):
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def put_back(copy, path):
    for left in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        left.unlink(missing_ok=True)
    copy.rename(path)


@pytest.fixture(scope="module")
def backups(tmp_path_factory):
    """A build, and a copy of its ledger at the first event of each kind."""
    folder = tmp_path_factory.mktemp("backups")
    kinds = []
    for event in events(folder / "run"):
        if event.kind not in kinds:
            kinds.append(event.kind)
            back_up(folder / "run" / "ledger.db", folder / f"{event.kind}.db")
    return folder


def assert_complete(out):
    """Every class has its quota, and each accepted image is in the dataset with its mask."""
    with closing(Ledger(out / "ledger.db")) as ledger:
        tallies, accepted = ledger.tallies(), {row.id for row in ledger.accepted()}
    assert {name: tally.accepted for name, tally in tallies.items()} == {"cat": 3, "dog": 3}
    assert {path.stem for path in (out / "dataset/voc/SegmentationClass").iterdir()} == accepted
    assert {path.stem for path in (out / "dataset/voc/JPEGImages").iterdir()} == accepted


@pytest.mark.parametrize("kind", ["start", "draw", "judge", "segment", "epoch"])
def test_an_older_ledger_is_noticed_and_the_run_is_completed(backups, finished, tmp_path, kind):
    out = shutil.copytree(backups / "run", tmp_path / "run")
    put_back(Path(shutil.copy(backups / f"{kind}.db", tmp_path / "older.db")), out / "ledger.db")
    said = list(events(out))
    assert LEDGER_BEHIND in [event.message for event in said if isinstance(event, Notice)]
    assert said[-1].status == Status.FINISHED
    assert_complete(out)
    if kind in ("judge", "segment", "epoch"):  # earlier, the prompt memory holds prompts that the ledger lost
        assert fingerprint(out) == fingerprint(finished)


def test_a_lost_ledger_is_noticed_and_the_run_is_completed(run):
    for left in run.glob("ledger.db*"):
        left.unlink()
    said = list(events(run))
    assert LEDGER_BEHIND in [event.message for event in said if isinstance(event, Notice)]
    assert_complete(run)


def test_a_lost_graph_is_noticed_and_the_run_is_completed(run, finished):
    RunFolder(run).graph.unlink()
    said = list(events(run))
    assert GRAPH_LOST in [event.message for event in said if isinstance(event, Notice)]
    assert said[-1].status == Status.FINISHED
    now, before = fingerprint(run), fingerprint(finished)
    # Exported again, the dataset's card states the evaluation that the ledger has by now.
    assert {name for name in before if now[name] != before[name]} <= {
        "dataset/voc/README.md",
        "dataset/voc/manifest.json",
    }


def test_an_untouched_run_gives_no_notice(run):
    assert not [event for event in events(run) if isinstance(event, Notice)]
