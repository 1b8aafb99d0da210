"""The report of an older, damaged or hostile run: never a traceback, and it says what is missing."""

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from make_run import make_run, remember
from PIL import Image as PILImage

from segsmith.errors import SegsmithError
from segsmith.files import PART, png_bytes
from segsmith.memory.ledger import ImageRow, Ledger, VerdictRow
from segsmith.memory.real_images import LIST
from segsmith.memory.run_folder import RunFolder
from segsmith.report.drawn import NUMBERS
from segsmith.report.gallery import write_gallery
from segsmith.report.reader import finite
from segsmith.report.report import build_report
from segsmith.report.run_data import read_run

CLASSES = ("cat", "dog")
TABLES = (
    "meta",
    "prompts",
    "images",
    "verdicts",
    "labels",
    "masks",
    "events",
    "usage",
    "models",
    "decisions",
    "guidance",
    "undrawn",
)
JUNK = (
    "",
    "null",
    "[]",
    "{}",
    "[[[1]]]",
    '"text"',
    "{",
    '{"a": NaN, "miou": "x", "epoch": Infinity}',
    '{"synthetic_val": 1, "test_set": {"iou": 3, "confusion": [[1], 2]}}',
    '{"class": [], "epoch": 1e400, "loss": -1e308, "place": {}, "light": [1]}',
    '{"probability": 1e308, "sharpness": -1e308, "problem": {"x": 1}, "cat": -5}',
    '"\\ud800"',
    "[" * 5000,
    "../../outside",
    "1" + "0" * 400,
    "rule: \u202e<script>",
    -1,
    2**62,
    1e308,
    float("inf"),
    b"\xff\x00",
)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """The folder of a complete run; tests copy it."""
    root = tmp_path_factory.mktemp("intact") / "run"
    run, ledger, _ = make_run(root, classes=CLASSES, size=64, prompts_per_class=2)
    remember(run, ledger)
    ledger.close()
    return root


@pytest.fixture
def copied(intact, tmp_path):
    shutil.copytree(intact, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    _, ledger, config = make_run(
        tmp_path_factory.mktemp("config"), classes=CLASSES, size=64, prompts_per_class=2, stage="empty"
    )
    ledger.close()
    return config


def report_of(run, config):
    ledger = Ledger(run.ledger)
    try:
        return build_report(run, ledger, config).read_text("utf-8")
    finally:
        ledger.close()


def change(run, sql, *values):
    with closing(sqlite3.connect(run.ledger)) as database, database:
        database.execute(sql, values)


def test_two_reports_of_a_run_have_the_same_bytes_and_name_no_path_of_the_machine(copied, config):
    first = report_of(copied, config)
    assert report_of(copied, config) == first
    assert str(copied.root) not in first
    assert str(copied.root.parent) not in first


def test_moving_a_run_does_not_change_its_report(copied, config):
    first = report_of(copied, config)
    moved = RunFolder(copied.root.rename(copied.root.with_name("elsewhere")))
    assert report_of(moved, config) == first


def triggers(run):
    with closing(sqlite3.connect(run.ledger)) as database:
        return [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='trigger'")]


def test_a_ledger_of_schema_2_is_reported_by_the_command(copied, segsmith):
    for trigger in triggers(copied):
        change(copied, f"DROP TRIGGER {trigger}")
    for table in ("prompt_counts", "class_counts", "usage_totals", "evidence", "undrawn"):
        change(copied, f"DROP TABLE {table}")
    change(copied, "ALTER TABLE masks DROP COLUMN sha256")
    change(copied, "UPDATE meta SET value='2' WHERE key='schema_version'")
    copied.report.unlink(missing_ok=True)
    code, _, said = segsmith("report", copied.root)
    assert (code, said) == (0, "")
    assert "Damaged or missing" not in copied.report.read_text("utf-8")


def test_a_ledger_that_calls_the_test_set_real_shows_it_as_the_test_set(copied, config):
    with closing(sqlite3.connect(copied.ledger)) as database:
        ((stored,),) = database.execute("SELECT value FROM meta WHERE key='evaluation'")
    scores = json.loads(stored)
    scores["real"] = scores.pop("test_set")
    change(copied, "UPDATE meta SET value=? WHERE key='evaluation'", json.dumps(scores))
    page = report_of(copied, config)
    assert "mIoU, simulator test set" in page
    assert f"{scores['real']['miou']:.3f}" in page


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("DELETE FROM meta WHERE key='evaluation'", "This run has no evaluation yet"),
        (
            "UPDATE meta SET value='{\"test_set\": {\"miou\": NaN}}' WHERE key='evaluation'",
            "&#39;test_set&#39; has no usable mIoU",
        ),
        ("UPDATE meta SET value='[1]' WHERE key='thresholds'", "The thresholds cannot be read"),
        ("UPDATE masks SET pixels='{'", "The masks cannot be read"),
        ("UPDATE masks SET ignore_share='x'", r"(\d+) of \1 masks are damaged and left out"),
        ("UPDATE verdicts SET scores='[]'", r"(\d+) of \1 verdicts are damaged and left out"),
        ("UPDATE images SET prompt_id='p-gone'", r"(\d+) of \1 images belong to no known prompt"),
        ("UPDATE events SET detail='3'", r"(\d+) of \1 events are damaged and left out"),
        ("DROP TABLE prompts", "Damaged or missing|No prompt has been written yet"),
    ],
)
def test_what_is_damaged_is_stated(copied, config, sql, said):
    change(copied, sql)
    assert re.search(said, report_of(copied, config))


def test_missing_folders_are_stated(copied, config):
    shutil.rmtree(copied.masks)
    shutil.rmtree(copied.images)
    shutil.rmtree(copied.evaluation)
    (copied.real).mkdir()
    (copied.real / LIST).write_text("{")
    page = report_of(copied, config)
    assert re.search(r"(\d+) of \1 image files are missing from images/", page)
    assert re.search(r"(\d+) of \1 mask files are missing from masks/", page)
    assert "The list of real images cannot be read." in page
    assert str(copied.root) not in page


def test_a_damaged_prompt_memory_costs_the_map_alone(copied, config):
    (copied.memory / "chroma.sqlite3").write_bytes(b"no database" * 1000)
    assert "There is no map" in report_of(copied, config)


def test_a_table_of_masks_that_breaks_off_is_left_out_whole(copied):
    with closing(Ledger(copied.ledger, read_only=True)) as ledger:
        data = read_run(copied, ledger)
        scores = {name for image in data.chosen.on_sheets for name in image.verdict.scores}
    assert data.image_counts.masks > 0
    assert data.image_counts.pixels.total() > 0
    assert {"probability"} < scores <= set(NUMBERS)
    change(copied, "UPDATE masks SET pixels='{' WHERE rowid=(SELECT MAX(rowid) FROM masks)")
    with closing(Ledger(copied.ledger, read_only=True)) as ledger:
        data = read_run(copied, ledger)
    assert (data.image_counts.masks, data.image_counts.pixels) == (0, {})
    assert not any(image.mask for image in data.chosen.on_sheets)
    assert data.chosen.strip
    assert any("masks cannot be read" in problem for problem in data.problems)


def test_ids_with_path_parts_read_nothing_outside_the_run(copied, config):
    secret = np.zeros((64, 64, 3), np.uint8)
    secret[:] = (250, 3, 250)
    for folder in (copied.root, copied.root.parent):
        (folder / "secret.png").write_bytes(png_bytes(secret))
    before = report_of(copied, config)
    ids = ("../secret", "../../secret", str(copied.root / "secret"), ".", "a\nb", "a/../../secret")
    ledger = Ledger(copied.ledger)
    prompt = ledger.prompts("admitted")[0]
    ledger.add_images([ImageRow(i, prompt.id, 1, "x", 0, "00") for i in ids])
    ledger.add_verdicts([VerdictRow(i, True, "ok", {"probability": 1.0}) for i in ids])
    scores = dict(ledger.evaluation)
    ledger.close()
    examples = [*scores["test_set"].examples, "../../../secret", "../../../../secret"]
    change(
        copied,
        "UPDATE meta SET value=json_set(value, '$.test_set.examples', json(?)) WHERE key='evaluation'",
        json.dumps(examples),
    )
    page = report_of(copied, config)
    assert f"{len(ids)} of " in page
    assert "images are damaged and left out" in page
    assert page.count("data:image/") == before.count("data:image/")
    with pytest.raises(SegsmithError):
        copied.image(ids[0])


def test_a_mask_or_image_in_another_format_is_shown_as_unreadable(copied, config):
    for path in copied.mask_files():
        PILImage.new("RGB", (8, 8)).save(path)
    for path in copied.image_files():
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    page = report_of(copied, config)
    assert "image missing or unreadable" in page
    assert "the mask is missing or unreadable" in page
    ledger = Ledger(copied.ledger)
    with pytest.raises(SegsmithError, match="no accepted image with a mask"):
        write_gallery(copied, ledger, config)
    ledger.close()


cells = st.tuples(
    st.sampled_from(TABLES),
    st.integers(0, 12),  # column
    st.none() | st.integers(0, 12),  # row; None: all rows
    st.sampled_from(JUNK),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(cells, min_size=1, max_size=4))
@example([("verdicts", 1, None, 1e308)])
def test_no_value_in_the_ledger_breaks_the_report(intact, config, tmp_path_factory, damage):
    root = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(intact, root, ignore=shutil.ignore_patterns("memory"))
    run = RunFolder(root)
    for table, column, row, value in damage:
        # A key that must be unique, or a type the schema does not allow, stays as it is.
        with (
            closing(sqlite3.connect(run.ledger)) as database,
            suppress(sqlite3.IntegrityError),
            database,
        ):
            columns = [about[1] for about in database.execute(f"PRAGMA table_info({table})")]
            name = columns[column % len(columns)]
            where = "1" if row is None else f"rowid IN (SELECT rowid FROM {table} LIMIT 1 OFFSET {row})"
            database.execute(f"UPDATE OR IGNORE {table} SET {name}=? WHERE {where}", (value,))
    try:
        ledger = Ledger(run.ledger)
    except SegsmithError:
        shutil.rmtree(root)
        return
    try:
        page = build_report(run, ledger, config).read_text("utf-8")
    finally:
        ledger.close()
        shutil.rmtree(root)
    assert page.rstrip().endswith("</html>")
    tables = re.findall(r'<script type="application/json" id="[\w-]+">(.*?)</script>', page, re.DOTALL)
    assert len(tables) >= 2
    for table in tables:
        json.loads(table, parse_constant=lambda word: pytest.fail(word))
    assert "<script>" not in page.replace("<script>", "", 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "1", None])
def test_finite_is_none_for_what_is_no_finite_number(value):
    assert finite(value) is None


def test_a_killed_report_leaves_the_old_one_and_its_leftover_goes_with_the_next(copied, config):
    first = report_of(copied, config)
    code = (
        "import os, signal, sys; os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL);"
        "sys.argv = ['segsmith', 'report', sys.argv[1]]; from segsmith import cli; cli.main()"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(copied.root)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert copied.report.read_text("utf-8") == first
    assert list(copied.root.glob(f"{PART}*"))
    report_of(copied, config)
    assert not list(copied.root.glob(f"{PART}*"))


def test_a_report_leaves_the_temporary_files_of_a_running_session_alone(copied, config):
    with copied.held():
        (copied.root / f"{PART}session").write_bytes(b"half")
        report_of(copied, config)
        assert (copied.root / f"{PART}session").exists()
