"""A run written before the redesign (ledger schema 3) still opens: it is read, exported, recognised as finished, resumed.

`data/run_of_schema_3.zip` holds what that takes. Images that were not accepted, the prompt memory and the training
state are left out, and the segmenter's weights are zeros, so that the archive is small; names and shapes are kept.
"""

import json
import sqlite3
import zipfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segsmith.files import sha256_of
from segsmith.memory.ledger import DecisionRow, Ledger
from segsmith.memory.run_config import read_record
from segsmith.memory.run_folder import RunFolder
from segsmith.memory.schema import SCHEMA_VERSION
from segsmith.testing import ScriptedChat
from segsmith.workflows.build import build_run

ARCHIVE = Path(__file__).parent / "data" / "run_of_schema_3.zip"


@pytest.fixture
def run(tmp_path):
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path / "run")
    return RunFolder(tmp_path / "run")


def build(run):
    parts = {"chat": ScriptedChat()}
    return list(build_run(read_record(run.config).config, run.root, "segsmith build", parts=parts))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_its_ledger_holds_what_was_written(run):
    with closing(Ledger(run.ledger, read_only=True)) as ledger:
        assert {name: t.accepted for name, t in ledger.tallies().items()} == {"cat": 6, "bus": 6}
        assert set(ledger.evaluation) == {"synthetic_val", "test_set"}
        assert len(ledger.evaluation["test_set"].examples) == 8
        assert ledger.evaluation["test_set"].iou["cat"] == pytest.approx(0.113, abs=1e-3)
        assert ledger.summary.wall_seconds > 20
        assert ledger.built_from == ledger.dataset_inputs()
        assert ledger.finished_at
        assert len(ledger.evidence()) == len(ledger.images()) == len(ledger.verdicts())


def test_the_commands_that_read_it_change_nothing_in_it(run, segsmith):
    before = contents(run.root)
    with closing(Ledger(run.ledger, read_only=True)) as ledger:
        image_id = ledger.accepted()[0].id
    code, text, _ = segsmith("ledger", run.root, "--json")
    assert code == 0
    assert json.loads(text)["all"]["accepted"] == 12
    code, text, _ = segsmith("why", run.root, image_id)
    assert code == 0
    assert image_id in text
    assert contents(run.root).keys() - before.keys() <= {".lock", "ledger.db-shm", "ledger.db-wal"}


def test_it_is_exported_compared_and_reported(run, segsmith, tmp_path):
    code, _, error = segsmith("export", run.root, "--format", "coco", "--out", tmp_path / "coco")
    assert (code, error) == (0, "")
    code, text, _ = segsmith("validate", tmp_path / "coco", "--run", run.root)
    assert code == 0, text
    assert segsmith("report", run.root)[0] == 0
    assert run.report.exists()


def test_building_it_again_finds_it_finished_and_migrates_the_ledger(run):
    with closing(Ledger(run.ledger, read_only=True)) as ledger:
        finished_at = ledger.finished_at
    masks, weights = contents(run.masks), run.segmenter.read_bytes()
    assert len(build(run)) == 1, "no stage ran"
    with closing(sqlite3.connect(run.ledger)) as db:
        assert db.execute("SELECT value FROM meta WHERE key='schema_version'").fetchone() == (
            str(SCHEMA_VERSION),
        )
    with closing(Ledger(run.ledger, read_only=True)) as ledger:
        assert ledger.finished_at == finished_at
        assert ledger.fixed_settings["classes"] == ["cat", "bus"]
    assert (contents(run.masks), run.segmenter.read_bytes()) == (masks, weights)


def test_a_decision_resumes_it_where_it_counts(run):
    with closing(Ledger(run.ledger)) as ledger:
        image_id = ledger.accepted()[0].id
        ledger.add_decision(DecisionRow("mask", image_id, "reject"))
    before = contents(run.images)
    build(run)
    exported = [
        json.loads(line)["image_id"] for line in (run.dataset / "provenance.jsonl").read_text().splitlines()
    ]
    assert len(exported) == 11
    assert image_id not in exported
    assert contents(run.images) == before
    with closing(Ledger(run.ledger, read_only=True)) as ledger:
        assert ledger.evaluation.keys() == {"synthetic_val", "test_set"}


def test_a_run_of_schema_2_is_measured_when_it_is_built_again(run, segsmith):
    """Schema 2 stored no evidence: rejudging says to build again, and building again must then help."""
    with closing(Ledger(run.ledger)) as ledger, ledger.transaction():
        kept = {row.id for row in ledger.accepted()}
        for table in ("verdicts", "evidence"):  # the archive holds the files of accepted images only
            marks = ", ".join("?" * len(kept))
            ledger._db.execute(f"DELETE FROM {table} WHERE image_id NOT IN ({marks})", sorted(kept))
        ledger._db.execute(f"DELETE FROM images WHERE id NOT IN ({marks})", sorted(kept))
    with closing(sqlite3.connect(run.ledger)) as db, db:
        db.execute("DROP TABLE evidence")
        db.execute("DROP TABLE pending_images")
        db.execute("ALTER TABLE masks DROP COLUMN sha256")
        db.execute("UPDATE meta SET value='2' WHERE key='schema_version'")
    code, _, error = segsmith("rejudge", run.root, "--calibrated", "--dry-run")
    assert code == 2
    assert "segsmith build" in error
    assert len(build(run)) == 1
    with closing(Ledger(run.ledger, read_only=True)) as ledger:
        assert not ledger.unmeasured()
        assert {row.id for row in ledger.accepted()} == kept
    assert segsmith("rejudge", run.root, "--calibrated", "--dry-run")[0] == 0


def test_its_segmenter_opens(run):
    from segsmith.segmentation.checkpoint import load_segmenter
    from segsmith.segmentation.inference import predict

    model, _ = load_segmenter(run.checkpoints)
    (label_map,) = predict(model, [np.zeros((128, 128, 3), np.uint8)])
    assert label_map.shape == (128, 128)


def test_damaged_patch_scores_are_made_again(run):
    with closing(Ledger(run.ledger)) as ledger:
        row = ledger.labels("relabel")[ledger.accepted()[0].id]
        labels = ("cat", "bus")
        assert row.classes != labels
        ledger.add_decision(DecisionRow("label", row.image_id, "edit", {"labels": list(labels)}))
        ledger.add_labels([replace(row, classes=labels)])
    run.patch_scores.write_bytes(b"garbage")
    build(run)
    with closing(Ledger(run.ledger, read_only=True)) as ledger:
        assert ledger.masks()[row.image_id].sources["labels"] == list(labels)
        assert all(mask.sha256 for mask in ledger.masks().values())
        assert ledger.patch_scores_sha256 == sha256_of(run.patch_scores)
