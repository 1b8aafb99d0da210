"""The director's plans: what is written and drawn next, and when a run stops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segsmith.agents.director import ClassProgress, plan_round
from segsmith.config import Config
from segsmith.types import ClassTally

CONFIG = Config(classes=("cat", "dog"), per_class=10)


def stand(drawn=0, judged=0, accepted=0, idle_rounds=0):
    return ClassProgress(ClassTally(drawn=drawn, judged=judged, accepted=accepted), idle_rounds)


def test_nothing_yet_asks_for_prompts_for_every_class():
    plan = plan_round(CONFIG, {"cat": stand(), "dog": stand()}, {}, 0)
    assert plan.reason == "need_prompts"
    assert set(plan.write) == {"cat", "dog"}
    assert all(0 < n <= CONFIG.prompts.batch for n in plan.write.values())


def test_a_class_with_its_quota_neither_writes_nor_draws():
    tallies = {"cat": stand(20, 20, 10), "dog": stand(5, 5, 3)}
    plan = plan_round(CONFIG, tallies, {"cat": ["p1"], "dog": ["p2"]}, 3)
    assert plan.reason == "draw"
    assert plan.draw == ("p2",)
    assert "cat" not in plan.write


def test_writes_the_next_round_while_drawing_this_one():
    plan = plan_round(CONFIG, {"cat": stand(), "dog": stand(10, 10, 10)}, {"cat": ["p1"]}, 1)
    assert plan.reason == "draw"
    assert plan.write["cat"] > 0


def test_a_little_more_is_asked_for_than_the_yield_calls_for():
    # one image short at a yield of a half: one prompt of two images would do in the mean, so often not
    tallies = {"cat": stand(18, 18, 9), "dog": stand(20, 20, 10)}
    assert plan_round(CONFIG, tallies, {}, 4).write == {"cat": 2}


@pytest.mark.parametrize(
    ("tallies", "rounds", "reason"),
    [
        ({"cat": stand(20, 20, 10), "dog": stand(20, 20, 10)}, 5, "quota_met"),
        ({"cat": stand(20, 20, 10), "dog": stand(20, 20, 4, idle_rounds=4)}, 5, "stalled"),
        ({"cat": stand(20, 20, 9), "dog": stand(20, 20, 4)}, 40, "budget_spent"),
        ({"cat": stand(9, 9, 0, 4), "dog": stand(9, 9, 0, 4)}, 5, "nothing_accepted"),
    ],
)
def test_stops_with_a_reason(tallies, rounds, reason):
    plan = plan_round(CONFIG, tallies, {}, rounds)
    assert plan.reason == reason
    assert dict(plan.missing) == {
        c: 10 - t.tally.accepted for c, t in tallies.items() if t.tally.accepted < 10
    }


def test_one_stalled_class_does_not_stop_the_other():
    tallies = {"cat": stand(20, 20, 0, idle_rounds=4), "dog": stand(5, 5, 3)}
    plan = plan_round(CONFIG, tallies, {"cat": ["p1"], "dog": ["p2"]}, 3)
    assert plan.draw == ("p2",)


@given(
    accepted=st.integers(0, 12), extra=st.integers(0, 60), idle=st.integers(0, 6),
    rounds=st.integers(0, 41), waiting=st.integers(0, 9), limit=st.none() | st.integers(1, 80),
)  # fmt: skip
def test_a_plan_always_leads_somewhere(accepted, extra, idle, rounds, waiting, limit):
    config = Config(classes=("cat",), per_class=10, budget={"max_images": limit})
    judged = accepted + extra
    tally = stand(judged, judged, accepted, idle)
    plan = plan_round(config, {"cat": tally}, {"cat": [f"p{i}" for i in range(waiting)]}, rounds)
    if plan.reason == "draw":
        assert plan.draw
        assert limit is None or judged < limit
    elif plan.reason == "need_prompts":
        assert sum(plan.write.values()) > 0
        assert not plan.draw
    else:
        assert not plan.draw
        assert not plan.write
        assert (plan.reason == "quota_met") == (accepted >= 10)
