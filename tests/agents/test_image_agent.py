"""The image agent: the same pictures every time, saved before the row, batches that shrink when memory ends."""

import hashlib

import numpy as np
import pytest

from segsmith.agents.image import ImageAgent
from segsmith.config import ImagesConfig
from segsmith.errors import SegsmithError
from segsmith.memory.ledger import Ledger, PromptRow
from segsmith.memory.store import RunFolder, read_image
from segsmith.tools.protocols import Drawn, OutOfMemory, unwatched


class Backend:
    name = "noise/1"

    def __init__(self, room=99):
        self.room, self.batches = room, []

    usd_per_image = 0.0

    def draw(self, requests, gate=None, on_step=unwatched):
        if len(requests) > self.room:
            raise OutOfMemory
        self.batches.append([r.seed for r in requests])
        for index, r in enumerate(requests):
            yield Drawn(index, np.random.default_rng(r.seed).integers(0, 255, (8, 8, 3), dtype=np.uint8))
            on_step((index + 1) / len(requests))


@pytest.fixture
def place(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    ledger = Ledger(run.ledger)
    ledger.add_prompts(
        PromptRow(p, "cat", f"a cat {p}", ("cat",), {}, None, 0, status, {})
        for p, status in [("p1", "admitted"), ("p2", "admitted"), ("p3", "dropped")]
    )
    yield run, ledger
    ledger.close()


def agent(place, backend, **settings):
    run, ledger = place
    return ImageAgent(
        backend, ledger, run, ImagesConfig(**{"per_prompt": 4, "batch_size": 8, **settings}), seed=0
    )


def test_waiting_prompts_are_the_admitted_ones_with_pictures_missing(place):
    it = agent(place, Backend())
    assert it.waiting() == {"cat": ["p1", "p2"]}
    it.draw([place[1].prompt("p1")], 0)
    assert it.waiting() == {"cat": ["p2"]}


def test_files_match_their_rows(place):
    run, ledger = place
    ids = agent(place, Backend()).draw(ledger.prompts("admitted"), 0)
    assert len(set(ids)) == 8
    for row in ledger.images():
        data = run.image(row.id).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row.sha256
        expected = np.random.default_rng(row.seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        assert np.array_equal(read_image(run.image(row.id)), expected)


def test_drawing_again_draws_nothing(place):
    backend = Backend()
    prompts = place[1].prompts("admitted")
    agent(place, backend).draw(prompts, 0)
    assert agent(place, backend).draw(prompts, 1) == []
    assert sum(map(len, backend.batches)) == 8


def test_seeds_of_a_prompt_are_consecutive_and_those_of_others_apart(place):
    backend = Backend()
    agent(place, backend).draw(place[1].prompts("admitted"), 0)
    seeds = sorted(s for b in backend.batches for s in b)
    assert seeds[0] % 1000 == 0
    assert seeds[:4] == list(range(seeds[0], seeds[0] + 4))
    assert seeds[4] % 1000 == 0


def test_out_of_memory_halves_the_batch_and_loses_nothing(place):
    backend = Backend(room=3)
    heard = []
    agent(place, backend).draw(
        place[1].prompts("admitted"), 0, on_batch=lambda done, total: heard.append((done, total))
    )
    assert [len(b) for b in backend.batches] == [2, 2, 2, 2]
    assert heard[-1] == (8, 8)


def test_a_picture_too_large_for_the_device_is_an_error(place):
    with pytest.raises(SegsmithError, match="too little memory for one 128 px image"):
        agent(place, Backend(room=0)).draw(place[1].prompts("admitted"), 0)


def test_the_limit_holds(place):
    backend = Backend()
    assert len(agent(place, backend).draw(place[1].prompts("admitted"), 0, limit=5)) == 5
    assert sum(map(len, backend.batches)) == 5
