"""Workers that hang or fail, and what the store commits: without models, and on a virtual clock."""

import errno
import os

import pytest

from segsmith.engine.dispatch import Failed, Finished, Ready, run_units
from segsmith.engine.options import EngineOptions
from segsmith.engine.plane import adopt
from segsmith.engine.scheduler import Limits
from segsmith.engine.store import UnitStore
from segsmith.engine.units import DrawUnit
from segsmith.errors import Cancelled, SegsmithError
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import small_config
from segsmith.workflows.preflight import check_engine

UNITS = [DrawUnit(f"u{n}", (), 1) for n in range(6)]


class Desk:
    """A pool of workers that take a second for a unit; those in `hanging` never answer, those in `full` fail."""

    def __init__(self, workers, hanging=(), full=()):
        self.now, self.hanging, self.full = 0.0, set(hanging), set(full)
        self.news = [Ready(name, f"node-of-{name}") for name in workers]
        self.given, self.ended = [], []

    def clock(self):
        return self.now

    def prepare(self, kind):
        pass

    @property
    def starting(self):
        return len(self.news)

    def submit(self, worker, unit, attempt):
        if worker in self.full:
            self.news.append(Failed(worker, unit.id, attempt, "OSError: No space left on device"))
        elif worker not in self.hanging:
            self.given.append((worker, unit.id))
            self.news.append(Finished(worker, unit.id, attempt, 32))

    def poll(self, timeout):
        self.now += timeout
        news, self.news = self.news, []
        return news

    def end(self, worker, *, replace):
        self.ended.append((worker, replace))
        if replace:
            self.news.append(Ready(f"{worker}-again", f"node-of-{worker}"))


def run(desk, store, **options):
    folded, said = [], []
    batch = run_units(
        UNITS, desk, store, lambda unit: folded.append(unit.id), warn=said.append, clock=desk.clock, **options
    )
    return batch, folded, said


@pytest.fixture
def store(tmp_path):
    return UnitStore(tmp_path)


def test_a_worker_that_hangs_is_replaced_and_its_unit_done(store):
    desk = Desk(("a", "b"), hanging=("a",))
    batch, folded, said = run(desk, store, limits=Limits(timeout_s=30, slow=1e9))
    assert folded == [unit.id for unit in UNITS]
    assert batch.set_aside == ()
    assert desk.ended == [("a", True)]
    assert said == ["A worker gave no result within 30 s; it was replaced, and another one does its unit."]


def test_a_node_with_a_full_disk_is_left_out_and_named_once(store):
    desk = Desk(("a", "b", "c"), full=("a",))
    batch, folded, said = run(desk, store, limits=Limits(per_worker=1))
    assert folded == [unit.id for unit in UNITS]
    assert batch.set_aside == ()
    if ("a", False) in desk.ended:
        assert said == ["A worker on node node-of-a is left out: OSError: No space left on device"]


def test_disks_that_are_all_full_end_the_run_with_one_line(store):
    with pytest.raises(SegsmithError, match=r"No worker can go on: OSError: No space left on device \(node"):
        run(Desk(("a", "b"), full=("a", "b")), store, limits=Limits(unit_failures=9))


def test_units_that_all_fail_end_the_run_with_one_line(store):
    with pytest.raises(SegsmithError, match=r"None of 6 units of work could be done: OSError"):
        run(Desk(("a",), full=("a",)), store, limits=Limits(worker_failures=99))


def test_the_users_wish_to_stop_ends_the_batch(store):
    with pytest.raises(Cancelled):
        run(Desk(("a",), hanging=("a",)), store, stopped=lambda: True)


def test_no_units_need_no_workers(store):
    assert run_units([], None, store, lambda unit: None).set_aside == ()


def test_the_units_behind_a_slow_one_are_folded_one_at_a_time_while_workers_get_more(store):
    """Folding takes the driver's time; a worker that becomes free meanwhile must not wait for all of it."""

    class Watched(Desk):
        def poll(self, timeout):
            self.polls += 1
            return super().poll(timeout)

    desk = Watched(("a", "b"), hanging=("a",))
    desk.polls, polls_at_fold = 0, []
    limits = Limits(per_worker=1, timeout_s=30, slow=1e9)
    run_units(UNITS, desk, store, lambda u: polls_at_fold.append(desk.polls), clock=desk.clock, limits=limits)
    assert len(polls_at_fold) == len(UNITS)
    assert len(set(polls_at_fold)) == len(UNITS), "workers are looked after between two folds"


# -- the store ------------------------------------------------------------------------------------------


def test_of_two_attempts_one_is_committed_and_the_other_leaves_nothing(store, tmp_path):
    for attempt in ("s-1", "s-2"):
        (store.begin("u1", attempt) / "i-1.png").write_bytes(attempt.encode())
    assert store.commit("u1", "s-2", {"images": {}})
    assert not store.commit("u1", "s-1", {"images": {}})
    assert store.committed() == {"u1"}
    assert store.files("u1") == ["i-1.png"]
    store.take("u1", "i-1.png", tmp_path / "i-1.png")
    assert (tmp_path / "i-1.png").read_bytes() == b"s-2"
    store.take("u1", "i-1.png", tmp_path / "i-1.png")  # a second session
    store.empty("u1")
    assert store.is_committed("u1"), "a late attempt sees that it comes too late"
    assert store.committed() == set()
    assert not (tmp_path / "units").exists()


def test_a_file_system_without_hard_links_is_rejected_before_any_work(store, tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(SegsmithError, match="cannot create a file only once"):
        store.check()
    assert list((tmp_path / "units").iterdir()) == []


def test_attempts_without_a_commit_are_removed_by_the_next_session(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    store, ledger = UnitStore(run.root), Ledger(run.ledger)
    (store.begin("u1", "s-1") / "i-1.png").write_bytes(b"half")
    adopt(run, ledger)
    ledger.close()
    assert not (run.root / "units").exists()


# -- what an engine cannot do ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ({"backend": "hosted", "model": "x"}, "Images of a hosted model are requested from one process."),
        (
            {"backend": "diffusion", "model": "x", "filter": {"enabled": True}},
            "The online filter needs --engine local",
        ),
    ],
)
def test_settings_that_need_one_process_are_rejected(images, said):
    config = small_config(images=images)
    check_engine(config, EngineOptions())
    with pytest.raises(SegsmithError, match=said):
        check_engine(config, EngineOptions("ray"))
