"""Which worker does which unit, with a clock that the tests turn."""

import random

import pytest

from segsmith.engine.scheduler import Limits, Scheduler

MINUTES = 60.0


def names(n):
    return [f"u{i}" for i in range(n)]


def scheduler(n, workers=(), limits=None, **options):
    plan = Scheduler(names(n), "s", limits, **options)
    for worker in workers:
        plan.joined(worker, f"node-{worker}", 0.0)
    return plan


def given(plan, now=0.0):
    """worker -> units that it was just given."""
    found = {}
    for item in plan.assign(now):
        found.setdefault(item.worker, []).append(item.unit)
    return found


def test_units_go_to_workers_in_order_and_each_gets_one_before_any_gets_two():
    plan = scheduler(5, ("a", "b"))
    assert given(plan) == {"a": ["u0", "u2"], "b": ["u1", "u3"]}
    assert given(plan) == {}, "every worker has as much as it may have"
    plan.finished("b", "u1", "s-2", 32, 1.0)
    assert given(plan) == {"b": ["u4"]}


def test_no_worker_no_work():
    plan = scheduler(2)
    assert given(plan) == {}
    assert plan.workers == 0
    assert not plan.is_over


def test_nothing_to_do_is_over_at_once():
    assert scheduler(0).is_over
    plan = scheduler(3, committed={"u0", "u1", "u2"})
    assert plan.is_over
    assert list(plan.foldable()) == names(3)


def test_committed_units_are_folded_and_not_done_again():
    plan = scheduler(3, ("a",), committed={"u1"})
    assert given(plan) == {"a": ["u0", "u2"]}
    assert list(plan.foldable()) == []
    plan.finished("a", "u0", "s-1", 32, 1.0)
    assert list(plan.foldable()) == ["u0", "u1"]


def test_results_are_folded_in_the_order_of_units_and_once():
    plan = scheduler(3, ("a", "b", "c"))
    given(plan)
    plan.finished("c", "u2", "s-3", 32, 1.0)
    plan.finished("b", "u1", "s-2", 32, 1.0)
    assert list(plan.foldable()) == []
    plan.finished("a", "u0", "s-1", 32, 2.0)
    assert list(plan.foldable()) == ["u0", "u1", "u2"]
    assert list(plan.foldable()) == []
    assert plan.is_over


def test_a_lost_worker_is_charged_for_the_unit_it_worked_on_only():
    plan = scheduler(2, ("a",), Limits(unit_failures=1))
    given(plan)
    plan.lost("a", "killed")
    assert [(s.unit, s.reason) for s in plan.set_aside] == [("u0", "its worker on node-a was lost: killed")]
    plan.joined("b", "node-b", 1.0)
    assert given(plan, 1.0) == {"b": ["u1"]}


def test_what_a_lost_worker_had_goes_to_others_first_things_first():
    plan = scheduler(4, ("a", "b"), Limits(per_worker=1))
    given(plan)
    plan.lost("a", "killed")
    plan.finished("b", "u1", "s-2", 32, 1.0)
    assert given(plan, 1.0) == {"b": ["u0"]}
    plan.lost("a", "killed")  # twice told
    assert plan.workers == 1


def test_a_unit_that_fails_three_times_is_set_aside_and_folding_passes_it():
    plan = scheduler(2, ("a",))
    for attempt in (1, 3, 4):
        given(plan)
        plan.failed("a", "u0", f"s-{attempt}", "OSError: bad sector", 1.0)
    assert [(s.unit, s.reason) for s in plan.set_aside] == [("u0", "OSError: bad sector")]
    assert plan.workers == 1, "one bad unit is not the worker's fault"
    plan.finished("a", "u1", "s-2", 32, 2.0)
    assert plan.is_over
    assert list(plan.foldable()) == ["u1"]


def test_a_unit_is_not_tried_again_where_it_failed_if_there_is_another_node():
    plan = Scheduler(names(2), "s", Limits(per_worker=1))
    for worker, node in (("a1", "a"), ("a2", "a"), ("b", "b")):
        plan.joined(worker, node, 0.0)
    assert given(plan) == {"a1": ["u0"], "a2": ["u1"]}
    plan.failed("a1", "u0", "s-1", "disk full", 1.0)
    assert given(plan, 1.0) == {"b": ["u0"]}
    plan.lost("b", "killed")
    assert given(plan, 2.0) == {}, "a2 may do it, once it is free"
    plan.finished("a2", "u1", "s-2", 32, 3.0)
    assert given(plan, 3.0) == {"a2": ["u0"]}
    plan.lost("a2", "killed")
    assert given(plan, 4.0) == {}
    assert plan.is_over, "three failures"


def test_a_worker_that_fails_with_three_different_units_is_retired_and_others_do_them():
    plan = scheduler(6, ("bad", "good"), Limits(per_worker=1))
    now = 0.0
    while not plan.is_over:
        now += 1
        for item in plan.assign(now):
            if item.worker == "bad":
                plan.failed("bad", item.unit, item.attempt, "OSError: disk full", now)
            else:
                plan.finished("good", item.unit, item.attempt, 32, now)
    assert plan.set_aside == []
    assert plan.retired == [("bad", "node-bad", "OSError: disk full")]
    assert plan.workers == 1


def test_a_success_clears_a_workers_failures():
    plan = scheduler(6, ("a",), Limits(per_worker=1, unit_failures=1))
    for n in range(6):
        (item,) = plan.assign(n)
        if n % 3 == 2:
            plan.finished("a", item.unit, item.attempt, 32, n)
        else:
            plan.failed("a", item.unit, item.attempt, "x", n)
    assert plan.retired == []
    assert len(plan.set_aside) == 4


def test_a_first_unit_may_take_long_and_later_ones_a_multiple_of_the_median():
    plan = scheduler(20, ("a", "b"), Limits(per_worker=1))
    given(plan)
    assert plan.overdue(29 * MINUTES) == []
    assert [w for w, _ in plan.overdue(31 * MINUTES)] == ["a", "b"]
    now = 0.0
    for n in range(1, 9):
        now += 60.0
        plan.finished("a", f"u{0 if n == 1 else n}", f"s-{1 if n == 1 else n + 1}", 32, now)
        given(plan, now)
    assert plan.overdue(now + 7 * MINUTES) == []
    assert plan.overdue(now + 9 * MINUTES) == [("a", "no result within 480 s")]


def test_a_timeout_that_the_user_set_holds_from_the_first_unit():
    plan = scheduler(1, ("a",), Limits(timeout_s=5))
    given(plan)
    assert plan.overdue(5.0) == []
    assert plan.overdue(5.1) == [("a", "no result within 5 s")]


def test_the_time_of_a_queued_unit_begins_when_its_turn_comes():
    plan = scheduler(2, ("a",), Limits(timeout_s=10))
    given(plan)
    plan.finished("a", "u0", "s-1", 32, 9.0)
    assert plan.overdue(18.0) == []
    assert plan.overdue(20.0) == [("a", "no result within 10 s")]


def test_an_idle_worker_repeats_what_another_has_not_begun():
    plan = scheduler(3, ("a", "b"))
    assert given(plan) == {"a": ["u0", "u2"], "b": ["u1"]}
    plan.finished("b", "u1", "s-2", 32, 1.0)
    assert given(plan, 1.0) == {"b": ["u2"]}
    plan.finished("b", "u2", "s-4", 32, 2.0)
    plan.finished("a", "u0", "s-1", 32, 3.0)
    assert plan.is_over
    assert list(plan.foldable()) == names(3)
    plan.finished("a", "u2", "s-3", 0, 3.1)  # the first attempt finds that it comes too late
    assert plan.progress(4.0).done == 3


def test_an_idle_worker_repeats_a_unit_that_takes_much_longer_than_others():
    plan = scheduler(7, ("a", "b"), Limits(per_worker=1))
    given(plan)
    for n in range(1, 7):
        plan.finished("b", f"u{n}", f"s-{n + 1}", 32, 10.0 * n)
        assigned = given(plan, 10.0 * n)
    assert assigned == {"b": ["u0"]}
    assert given(plan, 100.0) == {}, "not a third time"
    plan.failed("b", "u0", "s-8", "x", 70.0)
    assert not plan.is_over
    plan.finished("a", "u0", "s-1", 32, 80.0)
    assert plan.is_over


def test_a_failure_after_another_attempt_succeeded_charges_nobody():
    plan = scheduler(2, ("a", "b"))
    given(plan)
    plan.finished("b", "u1", "s-2", 32, 1.0)
    plan.finished("a", "u0", "s-1", 32, 1.0)
    plan.failed("a", "u0", "s-1", "late", 2.0)
    assert plan.set_aside == []
    assert plan.is_over


def test_answers_of_an_earlier_batch_are_ignored():
    plan = scheduler(1, ("a",))
    plan.finished("a", "old", "r-1", 32, 1.0)
    plan.failed("a", "old", "r-1", "x", 1.0)
    plan.finished("ghost", "u0", "s-1", 32, 1.0)
    assert not plan.is_over
    assert given(plan) == {"a": ["u0"]}


def test_speeds_count_images_per_second():
    plan = scheduler(4, ("a", "b"), Limits(per_worker=1))
    given(plan)
    plan.finished("a", "u0", "s-1", 32, 4.0)
    progress = plan.progress(8.0)
    assert (progress.done, progress.total, progress.workers, progress.in_flight) == (1, 4, 2, 1)
    assert progress.images_per_second == 4.0
    assert progress.per_worker == {"a": 4.0, "b": 0.0}


@pytest.mark.parametrize("seed", range(40))
def test_under_random_faults_each_unit_is_folded_once_or_set_aside(seed):
    """Workers die, fail, hang, come and go; in the end no unit is lost, and none is folded twice or out of order."""
    rng = random.Random(seed)
    plan = scheduler(rng.randint(1, 60), limits=Limits(timeout_s=50, per_worker=rng.randint(1, 3)))
    busy, now, joined, folded = {}, 0.0, 0, []
    while not plan.is_over:
        now += rng.expovariate(1.0)
        assert now < 100_000, "it does not end"
        if plan.workers < 4 and rng.random() < 0.5:
            joined += 1
            plan.joined(f"w{joined}", f"n{rng.randint(0, 2)}", now)
            busy[f"w{joined}"] = []
        for item in plan.assign(now):
            busy[item.worker].append(item)
        for worker, _ in plan.overdue(now):
            plan.lost(worker, "hung")
            del busy[worker]
        if busy:
            worker = rng.choice(sorted(busy))
            dice = rng.random()
            if dice < 0.05:
                plan.lost(worker, "killed")
                del busy[worker]
            elif dice < 0.8 and busy[worker]:
                item = busy[worker].pop(0)
                if rng.random() < 0.15:
                    plan.failed(worker, item.unit, item.attempt, "x", now)
                else:
                    plan.finished(worker, item.unit, item.attempt, 32, now)
        for worker, _, _ in plan.retired:
            busy.pop(worker, None)
        folded += plan.foldable()
    aside = {item.unit for item in plan.set_aside}
    assert folded == [name for name in plan._order if name not in aside]
