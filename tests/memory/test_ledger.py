"""The ledger: what goes in comes out, in order, and twice is once."""

import sqlite3
import threading

import pytest

from segsmith.errors import SegsmithError
from segsmith.memory.ledger import (
    DecisionRow,
    GuidanceRow,
    ImageRow,
    LabelRow,
    Ledger,
    MaskRow,
    ModelRow,
    PromptRow,
    UsageRow,
    VerdictRow,
)


def prompt(name, status="admitted", cls="cat"):
    return PromptRow(
        name, cls, f"a {cls} {name}", (cls,), {"place": "park"}, None, 0, status, {"nearest": 0.5}
    )


def image(name, of="p1"):
    return ImageRow(name, of, 7, "sim", 0, "00")


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def test_rows_come_back_as_they_went_in(ledger):
    rows = [prompt("p1"), prompt("p2", "dropped")]
    ledger.add_prompts(rows)
    ledger.add_images([image("i1")])
    verdict = VerdictRow("i1", True, "ok", {"probability": 0.9})
    label = LabelRow("i1", "clip", ("cat",), {"cat": 0.8})
    mask = MaskRow("i1", {"cat": 12}, 0.25, {"sam:ok": 1})
    ledger.add_verdicts([verdict])
    ledger.add_labels([label])
    ledger.add_masks([mask])
    assert ledger.prompts() == rows
    assert ledger.prompts("admitted") == rows[:1]
    assert ledger.accepted() == [image("i1")]
    assert ledger.verdicts() == {"i1": verdict}
    assert ledger.labels("clip") == {"i1": label}
    assert ledger.labels("relabel") == {}
    assert ledger.masks() == {"i1": mask}


def test_doing_a_step_twice_changes_neither_rows_nor_order(ledger):
    ledger.add_prompts([prompt("p1"), prompt("p2")])
    ledger.add_images([image("i1"), image("i2")])
    ledger.add_images([image("i1")])
    assert [row.id for row in ledger.images()] == ["i1", "i2"]


def test_a_new_verdict_replaces_the_old(ledger):
    ledger.add_prompts([prompt("p1")])
    ledger.add_images([image("i1"), image("i2")])
    ledger.add_verdicts([VerdictRow("i1", True, "ok", {})])
    ledger.add_verdicts([VerdictRow("i1", False, "surplus", {})])
    assert not ledger.accepted()
    assert [r.id for r in ledger.images(judged=False)] == ["i2"]
    assert ledger.tallies() == {"cat": {"admitted": 1, "drawn": 2, "judged": 1, "accepted": 0}}


def test_events_and_meta(ledger):
    ledger.log("epoch", epoch=1)
    ledger.log("missing", **{"class": "cat"})
    assert [(kind, detail) for _, kind, detail in ledger.events("epoch")] == [("epoch", {"epoch": 1})]
    assert len(ledger.events()) == 2
    ledger.set_meta("thresholds", {"cat": 0.5})
    assert ledger.get_meta("thresholds") == {"cat": 0.5}
    assert ledger.get_meta("none") is None


def test_hostile_text_is_data(ledger):
    name = "x'); DROP TABLE prompts; --"
    ledger.add_prompts([prompt(name)])
    assert ledger.prompt(name).id == name


def test_threads_share_one_ledger(ledger):
    def add(start):
        for i in range(start, start + 20):
            ledger.add_prompts([prompt(f"p{i}")])

    threads = [threading.Thread(target=add, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.prompts()) == 60


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "ledger.db").write_text("hello, this is no database, but long enough to be read as one" * 50)
    with pytest.raises(SegsmithError, match="not a usable"):
        Ledger(tmp_path / "ledger.db")


def test_a_ledger_of_another_schema_is_refused(tmp_path):
    Ledger(tmp_path / "ledger.db").close()
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        db.execute("UPDATE meta SET value='99' WHERE key='schema_version'")
    with pytest.raises(SegsmithError, match="schema 99"):
        Ledger(tmp_path / "ledger.db")


def test_usage_adds_up_per_role(ledger):
    ledger.add_usage(UsageRow("llm", "small", calls=2, tokens_in=30, tokens_out=9))
    ledger.add_usage(UsageRow("llm", "small", calls=1, tokens_in=10, tokens_out=1, usd=0.5))
    ledger.add_usage(UsageRow("images", "hosted", calls=1, images=4, usd=0.16))
    assert ledger.usage()["llm"] == UsageRow("llm", "small", 3, 40, 10, 0, 0.5)
    assert ledger.usage()["images"].usd == 0.16


def test_the_newest_decision_about_a_subject_counts(ledger):
    ledger.add_decision(DecisionRow("verdict", "i1", "accept"))
    ledger.add_decision(DecisionRow("verdict", "i1", "reject", note="blurred'); DROP TABLE images;--"))
    ledger.add_decision(DecisionRow("label", "i1", "edit", {"classes": ["cat"]}))
    assert ledger.decisions("verdict")["i1"].action == "reject"
    assert ledger.decisions("label")["i1"].value == {"classes": ["cat"]}


def test_guidance_can_be_edited_and_withdrawn(ledger):
    ledger.add_guidance(GuidanceRow("", "more at night", {"light": ["night"]}))
    (wish,) = ledger.guidance()
    ledger.set_guidance(wish.id, wish={"light": ["dusk"]}, active=True)
    assert ledger.guidance()[0].wish == {"light": ["dusk"]}
    ledger.set_guidance(wish.id, active=False)
    assert ledger.guidance() == []
    assert ledger.guidance(active_only=False)[0].said == "more at night"


def test_a_model_is_kept_once_per_role(ledger):
    ledger.add_models([ModelRow("judge", "mini", sha256="aa")])
    ledger.add_models([ModelRow("judge", "mini", sha256="bb")])
    assert ledger.models() == {"judge": ModelRow("judge", "mini", sha256="bb")}
