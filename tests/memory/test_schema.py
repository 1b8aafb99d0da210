"""Opening a ledger: schema versions, migration, read-only access, and files that are no ledgers."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from segsmith.errors import SegsmithError
from segsmith.memory.ledger import ImageRow, Ledger, MaskRow, PromptRow
from segsmith.memory.schema import SCHEMA_VERSION, TRIGGERS
from segsmith.types import ClassTally

PROMPT = PromptRow("p1", "cat", "a cat", ("cat",), {}, None, 0, "admitted", {})
REVIEW = {"seen": {"prompt": {"p1": "admitted"}, "label": {"i1": "cat,dog", "i2": ""}}, "auto": ["class:dog"]}
MASK = MaskRow("i1", {"cat": 3}, 0.5, {"seed": 1})


def edit(path, *statements):
    with closing(sqlite3.connect(path)) as db, db:
        for statement in statements:
            db.execute(statement)


def as_written_by_schema(version, path):
    """A ledger with one masked image, as that schema version stored it."""
    with closing(Ledger(path)) as ledger:
        ledger.add_prompts([PROMPT])
        ledger.add_images([ImageRow("i1", "p1", 7, "sim", 0, "00")])
        ledger.add_masks([MASK])
    counters = [
        *(f"DROP TRIGGER {name}" for name in re.findall(r"IF NOT EXISTS (\w+) AFTER", TRIGGERS)),
        *(f"DROP TABLE {name}" for name in ("prompt_counts", "class_counts", "usage_totals")),
    ]
    edit(
        path,
        "DROP TABLE seen",
        f"INSERT INTO meta VALUES ('review', '{json.dumps(REVIEW)}')",
        "DROP TABLE testimonies" if version < 6 else "ALTER TABLE testimonies DROP COLUMN maps",
        *(counters if version < 5 else []),
        *(["ALTER TABLE masks DROP COLUMN sha256", "DROP TABLE pending_images"] if version < 4 else []),
        f"UPDATE meta SET value='{version}' WHERE key='schema_version'",
        *(["DROP TABLE evidence"] if version == 2 else []),
    )
    return path


@pytest.mark.parametrize("version", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("read_only", [False, True])
def test_an_earlier_schema_is_migrated(tmp_path, version, read_only):
    path = as_written_by_schema(version, tmp_path / "ledger.db")
    before = path.read_bytes()
    with closing(Ledger(path, read_only=read_only)) as ledger:
        assert ledger.schema_version == SCHEMA_VERSION
        assert ledger.masks() == {"i1": MASK}
        assert ledger.tallies() == {"cat": ClassTally(admitted=1, drawn=1)}
        assert ledger.waiting(2) == {"cat": ["p1"]}
        assert {kind: ledger.seen(kind) for kind in REVIEW["seen"]} == REVIEW["seen"]
        assert ledger.auto == ("class:dog",)
        assert ledger.evidence() == ledger.pending_images() == ledger.testimonies(["i1"]) == {}
        if not read_only:
            ledger.add_masks([MaskRow("i1", {}, 0.0, {}, "ab")])
            assert ledger.masks()["i1"].sha256 == "ab"
    if read_only:
        assert path.read_bytes() == before


@pytest.mark.parametrize("version", ["1", "0", "-3", "99", "3.0", "three", "\u0663", ""])
@pytest.mark.parametrize("read_only", [False, True])
def test_any_other_version_gives_one_line(tmp_path, version, read_only):
    path = tmp_path / "ledger.db"
    Ledger(path).close()
    edit(path, f"UPDATE meta SET value='{version}' WHERE key='schema_version'")
    with pytest.raises(SegsmithError) as error:
        Ledger(path, read_only=read_only)
    assert f"schema {version or 'unknown'};" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read_only", [False, True])
def test_files_that_are_no_ledgers_are_rejected_and_left_alone(tmp_path, read_only):
    text, foreign = tmp_path / "text.db", tmp_path / "foreign.db"
    text.write_text("hello, this is no database, but long enough to be read as one" * 50)
    edit(foreign, "CREATE TABLE songs (name TEXT)")
    for path in (text, foreign):
        before = path.read_bytes()
        with pytest.raises(SegsmithError, match="not a usable"):
            Ledger(path, read_only=read_only)
        assert path.read_bytes() == before


def test_a_ledger_that_does_not_exist_cannot_be_read(tmp_path):
    with pytest.raises(SegsmithError, match="does not exist"):
        Ledger(tmp_path / "ledger.db", read_only=True)
    assert not list(tmp_path.iterdir())


def test_a_read_only_ledger_cannot_be_written(tmp_path):
    path = tmp_path / "ledger.db"
    Ledger(path).close()
    with (
        closing(Ledger(path, read_only=True)) as ledger,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        ledger.add_prompts([PROMPT])


READ = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from segsmith.memory.ledger import Ledger
if os.getuid() == 0:  # root may write everywhere
    os.setuid(65534)
try:
    open(Path(sys.argv[1]).parent / "new", "w")
except OSError:
    ledger = Ledger(Path(sys.argv[1]), read_only=True)
    assert [p.id for p in ledger.prompts()] == sys.argv[2].split(), ledger.prompts()
    print("read")
"""


@pytest.mark.parametrize("log", ["checkpointed", "in the write-ahead log", "both files of the log"])
def test_a_folder_that_one_may_not_write_to_is_read(log):
    """Also after a crash, when the last transactions are still in the write-ahead log."""
    folder = Path(tempfile.mkdtemp())
    try:
        ledger = Ledger(folder / "source.db")
        ledger.add_prompts([PROMPT])
        suffixes = {"checkpointed": [""], "in the write-ahead log": ["", "-wal"]}.get(
            log, ["", "-wal", "-shm"]
        )
        if log == "checkpointed":
            ledger.close()
        for suffix in suffixes:
            shutil.copyfile(folder / f"source.db{suffix}", folder / f"ledger.db{suffix}")
        if log != "checkpointed":
            ledger.close()
        os.chmod(folder, 0o555)
        command = [sys.executable, "-c", READ, folder / "ledger.db", "p1", Path(__file__).parents[2]]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("read\n", "")
    finally:
        os.chmod(folder, 0o755)
        shutil.rmtree(folder)


def test_a_transaction_is_all_or_nothing(tmp_path):
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    before = ledger.sequence

    def fail():
        with ledger.transaction():
            ledger.add_prompts([PROMPT])
            ledger.thresholds = {"cat": 0.5}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (ledger.prompts(), dict(ledger.thresholds), ledger.sequence) == ([], {}, before)
    with ledger.transaction():
        ledger.add_prompts([PROMPT])
        with closing(Ledger(path, read_only=True)) as other:
            assert other.prompts() == []
        ledger.thresholds = {"cat": 0.5}
    assert (ledger.prompts(), ledger.sequence) == ([PROMPT], before + 1)
    ledger.close()


def test_commits_are_synchronised(tmp_path):
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        assert ledger._one("PRAGMA synchronous") == (2,)
