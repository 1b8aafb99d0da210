"""Runs are merged: what they hold is kept, duplicates across them are rejected, and the result is a run."""

import shutil
from contextlib import closing

import pytest

import segsmith
from segsmith.errors import SegsmithError
from segsmith.memory.ledger import DecisionRow, Ledger
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import fingerprint, instant_config, instant_parts
from segsmith.workflows.build import build_run

CLASSES = ("cat", "dog")


def build(out, per_class=3, **changes):
    config = instant_config(changes.pop("classes", CLASSES), per_class, **changes)
    list(build_run(config, out, parts=instant_parts(config, out)))
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two runs with different seeds, the second of which has drawn an image of the first again. Not to be changed."""
    folder = tmp_path_factory.mktemp("merging")
    one, other = build(folder / "one"), build(folder / "other", seed=7)
    with closing(Ledger(one / "ledger.db")) as first, closing(Ledger(other / "ledger.db")) as second:
        (signature,) = first._one("SELECT signature FROM evidence WHERE image_id=?", first.accepted()[0].id)
        twin = second.accepted()[0].id
        with second.transaction():
            second._db.execute("UPDATE evidence SET signature=? WHERE image_id=?", (signature, twin))
        rejected = next(
            i for i, v in first.verdicts().items() if not v.accepted or i != first.accepted()[0].id
        )
        first.add_decision(DecisionRow("verdict", rejected, "accept", note="mine"))
    return one, other, twin


def test_a_merged_run_has_everything_but_the_duplicate(two, tmp_path):
    *runs, twin = two
    before = [fingerprint(run) for run in runs]
    merged = segsmith.merge(runs, tmp_path / "merged")
    assert [fingerprint(run) for run in runs] == before
    ledgers = [Ledger(run / "ledger.db", read_only=True) for run in (*runs, merged.path)]
    one, other, both = ledgers
    assert {r.id for r in both.images()} == {r.id for r in one.images()} | {r.id for r in other.images()}
    assert {r.id for r in both.accepted()} == {r.id for r in (*one.accepted(), *other.accepted())} - {twin}
    assert both.verdicts()[twin].reason == "duplicate"
    assert both.decisions("verdict") == one.decisions("verdict")
    assert both.masks().keys() == one.masks().keys() | other.masks().keys()
    assert [p.id for p in both.prompts()] == [p.id for p in (*one.prompts(), *other.prompts())]
    for ledger in ledgers:
        ledger.close()
    assert len(merged.images) == 11
    assert merged.export("coco").is_dir()
    assert merged.write_report().exists()
    assert [p.name for p in tmp_path.iterdir()] == ["merged"]


def test_a_merged_run_is_built_and_grows(two, tmp_path):
    *runs, twin = two
    merged = segsmith.merge(runs, tmp_path / "merged")
    build(merged.path, 8)
    grown = segsmith.open_run(merged.path)
    assert {name: tally.accepted for name, tally in grown.tallies.items()} == {"cat": 8, "dog": 8}
    with closing(Ledger(merged.path / "ledger.db", read_only=True)) as ledger:
        assert not ledger.verdicts()[twin].accepted
        assert ledger.finished_at is not None
        assert len({p.text for p in ledger.prompts()}) == len(ledger.prompts())
    verified = grown.export("voc")
    assert verified.is_dir()


def test_a_reviewer_keeps_a_duplicate(two, tmp_path):
    one, other, twin = two
    changed = shutil.copytree(other, tmp_path / "other")
    with closing(Ledger(changed / "ledger.db")) as ledger:
        ledger.add_decision(DecisionRow("verdict", twin, "accept"))
    merged = segsmith.merge([one, changed], tmp_path / "merged")
    assert len(merged.images) == 12


def test_runs_that_do_not_fit_are_rejected_in_one_line(two, tmp_path):
    one, other, _ = two

    def rejected(message, *runs, out=tmp_path / "merged"):
        with pytest.raises(SegsmithError, match=message):
            segsmith.merge(runs, out)
        assert not (tmp_path / "merged").exists()

    rejected("at least two different runs", one)
    rejected("at least two different runs", one, one / ".." / "one")
    rejected("not a run folder", one, tmp_path)
    rejected("not empty", one, other, out=one)
    rejected("classes = .*Merge runs that agree", one, build(tmp_path / "bus", 1, classes=("cat", "bus")))
    other_clip = shutil.copytree(other, tmp_path / "clip")
    text = (other_clip / "run.toml").read_text()
    (other_clip / "run.toml").write_text(text.replace('clip = "mini"', 'clip = "ViT-B-32/openai"'))
    with closing(Ledger(other_clip / "ledger.db")) as ledger:
        ledger.fixed_settings = {**ledger.fixed_settings, "judge.clip": "ViT-B-32/openai"}
    rejected("judge.clip = 'mini'.*ViT-B-32", one, other_clip)
    newer = shutil.copytree(other, tmp_path / "newer")
    with closing(Ledger(newer / "ledger.db")) as ledger:
        ledger.schema_version = 99
    rejected("has ledger schema 99", one, newer)
    with RunFolder(one).held():
        rejected("is in use", one, other)
    damaged = shutil.copytree(other, tmp_path / "damaged")
    next(RunFolder(damaged).image_files()).write_bytes(b"")
    rejected("is not the one that the run wrote", one, damaged)
