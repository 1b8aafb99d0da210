"""The actors that `RayPool` starts on made-up clusters, with a stand-in for Ray whose calls are answered at once."""

from types import SimpleNamespace

import pytest

from segsmith.config import load_config
from segsmith.device_memory import GIB
from segsmith.engine import ray as engine
from segsmith.engine.dispatch import Ready
from segsmith.engine.options import EngineOptions
from segsmith.engine.placement import MOST_ON_A_GPU
from segsmith.engine.work import Setup


class Error(Exception):
    pass


class Answer:
    def __init__(self, value):
        self.value = value


class Actor:
    def __init__(self, needs, card):
        mine = engine.about_this_process()
        self.needs, self.prepared = needs, []
        self.about = self._method(lambda: (mine.host, mine.python, mine.segsmith, "1"))
        self.set_up = self._method(lambda setup: card)
        self.prepare = self._method(self.prepared.append)

    @staticmethod
    def _method(call):
        return SimpleNamespace(remote=lambda *given: Answer(call(*given)))


class FakeRay:
    exceptions = SimpleNamespace(RayTaskError=Error, RayError=Error)

    def __init__(self, card, *nodes):
        self.there = [
            {"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}} for cpus, gpus in nodes
        ]
        self.card, self.actors = card, []

    def nodes(self):
        return self.there

    def put(self, value):
        return value

    def remote(self, cls):
        def start(needs):
            self.actors.append(Actor(needs, self.card))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **needs: SimpleNamespace(remote=lambda: start(needs)))

    def wait(self, answers, num_returns, timeout):
        return list(answers)[:num_returns], []

    def get(self, answer):
        return answer.value

    def kill(self, actor, no_restart):
        self.actors.remove(actor)


@pytest.fixture
def pool_on(monkeypatch, tmp_path):
    def make(ray, workers=None, **labeler):
        config = load_config(preset="gpu", flags={"classes": ["cat", "dog"], "labeler": labeler})
        monkeypatch.setattr(engine, "connect", lambda options: ray)
        return engine.RayPool(EngineOptions("ray", "auto", workers), Setup(config, tmp_path, {}))

    return make


def ready(pool):
    """Workers that become ready."""
    found = []
    while pool.starting:
        found += [news.worker for news in pool.poll(0.0) if isinstance(news, Ready)]
    return found


def test_workers_that_make_masks_share_the_gpus_that_one_had_for_drawing(pool_on):
    ray = FakeRay(80 * GIB, (64, 2))
    pool = pool_on(ray)
    pool.prepare("draw")
    assert len(ready(pool)) == 2
    assert {actor.needs["num_gpus"] for actor in ray.actors} == {1.0}
    drawing = list(ray.actors)
    pool.prepare("relabel")
    assert len(ready(pool)) == 2
    assert ray.actors == drawing, "what has the same share of a GPU keeps running"
    pool.prepare("masks")
    assert len(ready(pool)) == 2 * MOST_ON_A_GPU
    assert not set(ray.actors) & set(drawing)
    assert {(a.needs["num_gpus"], a.needs["num_cpus"]) for a in ray.actors} == {(1 / MOST_ON_A_GPU, 0)}
    assert all(actor.prepared == ["masks"] for actor in ray.actors)
    pool.prepare("draw")
    assert len(ready(pool)) == 2


def test_a_worker_that_is_replaced_has_the_share_of_its_stage(pool_on):
    ray = FakeRay(80 * GIB, (64, 1))
    pool = pool_on(ray)
    pool.prepare("draw")
    ready(pool)
    pool.prepare("masks")
    first, *_ = ready(pool)
    pool.end(first, replace=True)
    assert len(ready(pool)) == 1
    assert [actor.needs["num_gpus"] for actor in ray.actors] == [1 / MOST_ON_A_GPU] * MOST_ON_A_GPU


def test_a_cluster_that_grows_gets_more_workers(pool_on, monkeypatch):
    ray = FakeRay(80 * GIB, (8, 1))
    pool = pool_on(ray)
    pool.prepare("draw")
    assert len(ready(pool)) == 1
    ray.there += FakeRay(0, (8, 1)).there
    monkeypatch.setattr(engine, "LOOK_S", 0.0)
    pool.poll(0.0)
    assert len(ready(pool)) == 1
    assert len(ray.actors) == 2


def test_masks_that_need_no_gpu_are_made_on_all_nodes(pool_on):
    ray = FakeRay(80 * GIB, (4, 1), (4, 0))
    pool = pool_on(ray, use_sam=False, region_doubt=0.0)
    pool.prepare("masks")
    assert len(ready(pool)) == 7
    assert {(a.needs["num_gpus"], a.needs["num_cpus"]) for a in ray.actors} == {(0.0, 1)}
