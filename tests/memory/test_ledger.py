"""The ledger: what goes in comes out, in order, and twice is once."""

import json
import math
import random
import threading
from contextlib import closing
from dataclasses import replace

import pytest

from segsmith.memory.ledger import (
    DatasetInputs,
    DecisionRow,
    Evidence,
    GuidanceRow,
    ImageRow,
    LabelRow,
    Ledger,
    MaskRow,
    ModelRow,
    PromptRow,
    RunSummary,
    UsageRow,
    VerdictRow,
)
from segsmith.types import ClassTally, Evaluation


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
    assert ledger.tallies() == {"cat": ClassTally(admitted=1, drawn=2, judged=1, accepted=0)}


def test_events_come_back_in_order(ledger):
    ledger.log("epoch", epoch=1)
    ledger.log("missing", **{"class": "cat"})
    assert [(kind, detail) for _, kind, detail in ledger.events("epoch")] == [("epoch", {"epoch": 1})]
    assert len(ledger.events()) == 2


def test_properties_come_back_as_they_went_in(ledger):
    assert (ledger.thresholds, ledger.evaluation, ledger.summary) == ({}, {}, RunSummary())
    assert (ledger.built_from, ledger.finished_at, ledger.auto) == (None, None, ())
    assert (ledger.run_id, ledger.logit_scale, ledger.region_centre) == ("", 1.0, None)
    score = Evaluation(
        0.5, {"background": 0.5, "cat": None}, 0.9, ("background", "cat"), ("a",), ((1, 2), (0, 3))
    )
    stored = {
        "thresholds": {"cat": 0.5},
        "evaluation": {"test_set": score},
        "summary": RunSummary(1.5, 2.5, 3.5, "segsmith build"),
        "built_from": DatasetInputs("a1", "b2", ""),
        "finished_at": 5.0,
        "auto": ("class:cat", "verdict"),
        "run_id": "r1",
        "logit_scale": 20.0,
        "region_centre": [0.1],
        "batch_sizes": {"sim": 4},
        "versions": {"torch": "2"},
    }
    for name, value in stored.items():
        setattr(ledger, name, value)
    assert {name: getattr(ledger, name) for name in stored} == stored


def test_what_a_reviewer_has_seen_is_kept_by_kind_and_forgotten_one_by_one(ledger):
    ledger.mark_seen("prompt", {"p1": "admitted", "p2": "admitted"})
    ledger.mark_seen("mask", {"p1": "cat"})
    ledger.mark_seen("mask", {"p1": "cat,dog"})
    assert ledger.seen("prompt") == {"p1": "admitted", "p2": "admitted"}
    assert ledger.seen("prompt", ["p2", "p3"]) == {"p2": "admitted"}
    ledger.unmark("prompt", "p1")
    assert (ledger.seen("prompt"), ledger.seen("mask")) == ({"p2": "admitted"}, {"p1": "cat,dog"})


def test_an_evaluation_stored_under_its_earlier_name_is_read_as_the_test_set(ledger):
    old = {"real": {"miou": 0.4, "iou_per_class": {"cat": None}, "iou": {"cat": None}, "pixel_accuracy": None,
                    "confusion": [[1]], "classes": ["cat"], "examples": ["real-00000"]}}  # fmt: skip
    with ledger._db:
        ledger._db.execute("INSERT INTO meta VALUES ('evaluation', ?)", (json.dumps(old),))
    ((name, score),) = ledger.evaluation.items()
    assert (name, score.miou, dict(score.iou), score.examples) == (
        "test_set",
        0.4,
        {"cat": None},
        ("real-00000",),
    )


def test_an_iou_that_is_not_a_number_is_stored_as_missing(ledger):
    ledger.evaluation = {"test_set": Evaluation(0.5, {"cat": math.nan}, 0.9, ("cat",))}
    assert ledger.evaluation["test_set"].iou == {"cat": None}


def test_evidence_carries_what_the_prompt_asked_and_what_the_real_classifier_says(ledger):
    ledger.add_prompts([prompt("p1")])
    ledger.add_images([image("i1")])
    evidence = Evidence("i1", "p1", "cat", ("cat",), (0.1, 0.2), 3.5, False, -1.0, (0.7,), signature=b"1234")
    ledger.add_evidence([evidence])
    assert ledger.evidence() == {"i1": replace(evidence, signature=b"")}
    assert list(ledger.signatures([1]).values()) == [b"1234"]
    ledger.add_labels([LabelRow("i1", "real", ("cat",), {"cat": 0.8})])
    assert ledger.evidence()["i1"].real == {"cat": 0.8}


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


def test_the_sequence_counts_committed_transactions_over_sessions(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    before = ledger.sequence
    ledger.log("one")
    ledger.finished_at = 1.0
    assert ledger.sequence == before + 2
    ledger.close()
    again = Ledger(tmp_path / "ledger.db")
    again.log("three")
    assert again.sequence == before + 3
    again.close()


def test_the_counters_follow_every_write(tmp_path):
    """Whatever is added, changed or removed, they are what counting the rows would give."""
    rng = random.Random(1)
    count = """SELECT p.class_name, COUNT(DISTINCT p.id), COUNT(i.id), COUNT(v.image_id), COALESCE(SUM(v.accepted), 0)
               FROM prompts p LEFT JOIN images i ON i.prompt_id=p.id LEFT JOIN verdicts v ON v.image_id=i.id
               WHERE p.status='admitted' GROUP BY p.class_name ORDER BY p.class_name"""
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        for step in range(300):
            n, m = rng.randrange(8), rng.randrange(3)
            status = rng.choice(["admitted", "admitted", "dropped"])
            change = rng.randrange(6)
            if change == 0:
                name = "cat" if n % 2 else "dog"
                ledger.add_prompts([PromptRow(f"p{n}", name, "t", (name,), {}, None, 0, status, {})])
            elif change < 3:
                ledger.add_images([ImageRow(f"i{n}.{m}", f"p{n}", m, "fake", step, "")])
            elif change < 5:
                ledger.add_verdicts([VerdictRow(f"i{n}.{m}", rng.random() < 0.5, "ok", {})])
            else:
                ledger.forget_images([f"i{n}.{m}"])
            counted = {row[0]: ClassTally(*row[1:]) for row in ledger._all(count)}
            assert ledger.tallies() == counted
        ledger.add_usage(UsageRow("llm", "a", 1, 2, 3, 0, 0.5))
        ledger.add_usage(UsageRow("llm", "b", 1, 2, 3, 0, 0.25))
        assert ledger.usage() == {"llm": UsageRow("llm", "b", 2, 4, 6, 0, 0.75)}


def test_subjects_are_found_by_the_beginning_of_their_id(ledger):
    ledger.add_prompts([prompt("p-ab"), prompt("p-abc"), prompt("p-b%")])
    ledger.add_images([image(f"i-{k:03}", of="p-ab") for k in range(8)])
    ledger.add_labels([LabelRow("i-001", "clip", ("cat",)), LabelRow("i-002", "relabel", ("cat",))])
    ledger.add_masks([MaskRow("i-003", {"cat": 1}, 0.0, {})])
    assert ledger.subjects_like("prompt", "p-ab", 5) == (["p-ab"], 1)  # itself, not what it begins
    assert ledger.subjects_like("prompt", "ab", 5) == (["p-ab", "p-abc"], 2)
    assert ledger.subjects_like("prompt", "b%", 5) == (["p-b%"], 1)
    assert ledger.subjects_like("verdict", "i-", 5) == ([f"i-{k:03}" for k in range(5)], 8)
    assert ledger.subjects_like("label", "00", 5) == (["i-002"], 1)
    assert ledger.subjects_like("mask", "i-0", 5) == (["i-003"], 1)
    for nothing in ("", "%", "I-0", "a", "i\0", "\ud800"):
        assert ledger.subjects_like("verdict", nothing, 5) == ([], 0)
    assert (ledger.class_of("i-004"), ledger.class_of("p-abc")) == ("cat", "cat")
    with pytest.raises(KeyError):
        ledger.class_of("i-9")


def test_subjects_of_a_review_are_read_for_some_ids_or_all(ledger):
    ledger.add_prompts([prompt("p1"), prompt("p2", "dropped"), prompt("p3")])
    ids = [f"i{k}" for k in range(1, 5)]
    ledger.add_images([image(i) for i in ids])
    ledger.add_verdicts([VerdictRow(i, i != "i4", "ok", {}) for i in ids])
    ledger.add_labels([LabelRow(i, "relabel", ("cat",)) for i in ids])
    ledger.add_masks([MaskRow(i, {}, 0.0, s) for i, s in zip(ids, ({}, {"labels": ["dog"]}), strict=False)])
    assert ledger.admitted() == ["p1", "p3"]
    assert ledger.admitted(["p2", "p3", "p9"]) == ["p3"]
    assert ledger.standings() == {"i1": True, "i2": True, "i3": True, "i4": False}
    assert ledger.standings(["i4"]) == {"i4": False}
    assert ledger.final_labels() == dict.fromkeys(ids[:3], ("cat",))
    assert ledger.final_labels(["i2", "i4"]) == {"i2": ("cat",)}
    assert list(ledger.final_masks()) == [("i1", ("cat",), None), ("i2", ("cat",), ("dog",))]
    assert list(ledger.final_masks(["i2", "i3"])) == [("i2", ("cat",), ("dog",))]
    ledger.add_decision(DecisionRow("mask", "i1", "reject"))
    ledger.add_decision(DecisionRow("mask", "i1", "edit", {"labels": ["dog"]}))
    assert ledger.decision("mask", "i1") == ledger.decisions("mask")["i1"]
    assert ledger.decision("label", "i1") is None
    assert list(ledger.each_image())[:2] == [(image("i1"), ""), (image("i2"), "")]
    assert list(ledger.each_image())[2:] == [(image("i3"), None), (image("i4"), None)]
