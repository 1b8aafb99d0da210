"""The director's plans: what is written and drawn next, and when a run stops."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segsmith.agents.director import ClassProgress, plan_round, prompts_wanted
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


def test_spares_make_one_round_for_the_last_images_likely():
    """One image short at a yield of a half: one prompt would do in the mean, so in half of all cases it would not."""
    tallies = {"cat": stand(18, 18, 9), "dog": stand(20, 20, 10)}
    wanted = plan_round(CONFIG, tallies, {}, 4).write["cat"]
    assert 1 - tallies["cat"].expected_yield ** wanted > 0.9


def test_few_spares_are_drawn_for_a_large_quota():
    assert prompts_wanted(10_000, 0.5, 2) == pytest.approx(10_000, rel=0.03)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.1])
@pytest.mark.parametrize("quota", [20, 1_000, 1_000_000])
def test_rounds_grow_with_the_logarithm_of_the_quota(quota, share):
    """With the prompts that the plan before wrote, and a yield that varies from round to round."""
    config = Config(classes=("cat",), per_class=quota)
    rng = random.Random(quota)
    drawn = accepted = rounds = waiting = 0
    while True:
        state = {"cat": stand(drawn, drawn, accepted)}
        plan = plan_round(config, state, {"cat": range(waiting)}, rounds)
        if plan.reason == "quota_met":
            break
        waiting += plan.write.get("cat", 0) - len(plan.draw)
        if plan.reason == "draw":
            rounds += 1
            images = 2 * len(plan.draw)
            deviation = math.sqrt(images * share * (1 - share))
            drawn += images
            accepted += min(images, max(1, round(rng.gauss(images * share, deviation))))
        assert rounds < 40
    assert rounds <= 5 + 1.2 * math.log2(quota / share / 12)


def test_a_cap_within_a_round_leaves_no_class_behind():
    config = Config(classes=("cat", "dog"), per_class=10, budget={"max_images": 8})
    waiting = {name: [f"{name}{i}" for i in range(6)] for name in config.classes}
    plan = plan_round(config, {"cat": stand(), "dog": stand()}, waiting, 0)
    assert sorted(plan.draw) == ["cat0", "cat1", "dog0", "dog1"]


def test_no_prompts_are_written_for_images_that_a_cap_forbids():
    waiting = {"cat": [f"p{i}" for i in range(6)]}
    states = {"cat": stand(), "dog": stand(10, 10, 10)}
    written = {
        cap: dict(plan_round(CONFIG.model_copy(update={"budget": budget}), states, waiting, 0).write)
        for cap in (22, 24, 200)
        for budget in [CONFIG.budget.model_copy(update={"max_images": cap})]
    }
    assert written == {22: {}, 24: {"cat": 1}, 200: written[200]}
    assert written[200]["cat"] > 1


@pytest.mark.parametrize(
    ("tallies", "rounds", "reason"),
    [
        ({"cat": stand(20, 20, 10), "dog": stand(20, 20, 10)}, 5, "quota_met"),
        ({"cat": stand(20, 20, 10), "dog": stand(20, 20, 4, idle_rounds=4)}, 5, "stalled"),
        ({"cat": stand(20, 20, 9), "dog": stand(20, 20, 4)}, 1000, "budget_spent"),
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
