"""The funnel counts every prompt and image once, under the class that the prompt was written for."""

import itertools
from contextlib import closing

import pytest

from segsmith.memory.funnel import PromptYield, read_funnel
from segsmith.memory.ledger import (
    DecisionRow,
    ImageRow,
    LabelRow,
    Ledger,
    MaskRow,
    PromptRow,
    StepCounts,
    VerdictRow,
)


@pytest.fixture
def ledger(tmp_path):
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        ledger.add_prompts(
            [
                PromptRow(name, cls, f"a {cls}", (cls,), {}, None, 0, status, {"reason": reason})
                for name, cls, status, reason in (
                    ("p1", "cat", "admitted", ""),
                    ("p2", "cat", "dropped", "similar"),
                    ("p3", "cat", "refined", ""),
                    ("p4", "dog", "admitted", ""),
                    ("p5", "dog", "dropped", "similar"),
                )
            ]
        )
        ledger.add_images(
            [ImageRow(f"i{n}", "p1" if n < 4 else "p4", n, "x", n // 3, "00") for n in range(6)]
        )
        reasons = {"i0": "ok", "i1": "blurred", "i2": "surplus", "i3": "ok", "i4": "surplus"}
        ledger.add_verdicts([VerdictRow(i, reason == "ok", reason, {}) for i, reason in reasons.items()])
        ledger.add_labels([LabelRow(i, "relabel", ("cat",)) for i in ("i0", "i1", "i3")])
        ledger.add_masks([MaskRow(i, {"cat": 9}, share, {}, i) for i, share in (("i0", 0.1), ("i1", 0.3))])
        yield ledger


def test_it_counts_steps_reasons_and_yields(ledger):
    found = read_funnel(ledger, ("cat", "dog", "bus"), prompts=True)
    assert found.classes == {
        "cat": StepCounts(3, 1, 4, 2, 2, 1),
        "dog": StepCounts(2, 1, 2, 0, 0, 0),
        "bus": StepCounts(),
    }
    assert found.total == StepCounts(5, 2, 6, 2, 2, 1)
    assert list(found.image_rejects.items()) == [("surplus", 2), ("blurred", 1)]
    assert list(found.prompt_rejects.items()) == [("similar", 2), ("refined", 1)]
    assert found.prompts == [PromptYield("p1", "cat", "a cat", 4, 2), PromptYield("p4", "dog", "a dog", 2, 0)]
    of_dogs = read_funnel(ledger, ("dog",))
    assert of_dogs.total == StepCounts(2, 1, 2, 0, 0, 0)
    assert (of_dogs.image_rejects, of_dogs.prompt_rejects) == ({"surplus": 1}, {"similar": 1})
    assert of_dogs.prompts == ()
    assert found.as_json(prompts=False)["all"]["drawn"] == 6


def test_what_is_asked_of_all_images_is_asked_in_sql(ledger):
    assert list(ledger.mask_hashes()) == [("i0", "i0")]
    assert ledger.uncertain_share == pytest.approx(0.2)
    assert (ledger.last_round, ledger.drawn_in(1)) == (1, ["p1", "p4"])
    assert [row.id for row in ledger.unlabelled("relabel")] == ["i2", "i4", "i5"]
    assert not ledger.is_overruled
    ledger.add_decision(DecisionRow("verdict", "i0", "reject"))
    assert ledger.is_overruled
    ledger.add_decision(DecisionRow("verdict", "i0", "accept"))
    assert not ledger.is_overruled


def test_the_inputs_of_a_dataset_change_with_verdicts_labels_and_rejected_masks(ledger):
    first = ledger.dataset_inputs()
    assert ledger.dataset_inputs() == first
    ledger.add_labels([LabelRow("i0", "relabel", ("cat", "dog")), LabelRow("i1", "relabel", ())])
    relabelled = ledger.dataset_inputs()
    assert (relabelled.accepted, relabelled.masked) == (first.accepted, first.masked)
    assert relabelled.labels != first.labels
    ledger.add_decision(DecisionRow("mask", "i0", "reject"))
    rejected = ledger.dataset_inputs()
    assert (rejected.accepted, rejected.labels) == (relabelled.accepted, relabelled.labels)
    assert rejected.masked != first.masked
    ledger.add_verdicts([VerdictRow("i5", True, "ok", {})])
    assert ledger.dataset_inputs().accepted != first.accepted


READ_IN_PAGES = {
    "inputs of a dataset": lambda ledger: ledger.dataset_inputs(),
    "hashes of masks": lambda ledger: list(ledger.mask_hashes()),
    "masks": lambda ledger: list(ledger.each_mask()),
    "verdicts": lambda ledger: list(ledger.each_verdict()),
    "images": lambda ledger: list(ledger.each_image()),
    "drawn images": lambda ledger: list(ledger.each_drawn()),
    "prompts": lambda ledger: list(ledger.each_prompt()),
}


@pytest.fixture(scope="module")
def large_ledgers(tmp_path_factory):
    found = []
    for size in (200, 800):
        ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.db")
        names = [f"i{n:04d}" for n in range(size)]
        ledger.add_prompts(
            PromptRow(f"p{n:04d}", "cat", "a cat", ("cat",), {}, None, 0, "admitted", {}) for n in range(size)
        )
        ledger.add_images([ImageRow(name, f"p{n:04d}", n, "x", 0, "00") for n, name in enumerate(names)])
        ledger.add_verdicts([VerdictRow(name, True, "ok", {}) for name in names])
        for source in ("clip", "relabel"):
            ledger.add_labels([LabelRow(name, source, ("cat",)) for name in names])
        ledger.add_masks([MaskRow(name, {"cat": 9}, 0.1, {}, name) for name in names])
        found.append(ledger)
    yield found
    for ledger in found:
        ledger.close()


@pytest.mark.parametrize("read", READ_IN_PAGES.values(), ids=READ_IN_PAGES)
def test_reading_in_pages_costs_as_much_for_each_row_of_a_large_run(large_ledgers, monkeypatch, read):
    monkeypatch.setattr("segsmith.memory.ledger.PAGE", 10)
    steps = []
    for ledger in large_ledgers:
        count = itertools.count()
        ledger._db.set_progress_handler(lambda count=count: next(count) and None, 20)
        read(ledger)
        ledger._db.set_progress_handler(None, 0)
        steps.append(next(count))
    assert steps[1] < 5 * steps[0]  # of SQLite's virtual machine, for four times the rows
