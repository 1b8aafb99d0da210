"""The image agent: the same images every time, files before rows, and smaller batches when memory runs out."""

import hashlib
import time
from dataclasses import replace

import numpy as np
import pytest

from segsmith.agents.image import ImageAgent, PreviewScore
from segsmith.config import ImagesConfig
from segsmith.errors import Cancelled, OutOfMemory, SegsmithError
from segsmith.files import png_bytes, read_image
from segsmith.memory.ledger import Ledger, PromptRow
from segsmith.memory.run_folder import RunFolder
from segsmith.protocols import unwatched
from segsmith.types import Drawn


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


def agent(place, backend, *, max_usd=None, look=None, stopped=lambda: False, **settings):
    run, ledger = place
    config = ImagesConfig(**{"per_prompt": 4, "batch_size": 8, **settings})
    return ImageAgent(backend, ledger, run, config, 0, max_usd=max_usd, look=look, stopped=stopped)


def test_waiting_prompts_are_the_admitted_ones_with_images_missing(place):
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


def test_an_image_too_large_for_the_device_is_an_error(place):
    with pytest.raises(SegsmithError, match="too little memory for one 128 px image"):
        agent(place, Backend(room=0)).draw(place[1].prompts("admitted"), 0)


def test_the_limit_holds(place):
    backend = Backend()
    assert len(agent(place, backend).draw(place[1].prompts("admitted"), 0, limit=5)) == 5
    assert sum(map(len, backend.batches)) == 5


class Dies(Backend):
    """Crashes before the fourth image of a batch."""

    def draw(self, requests, gate=None, on_step=unwatched):
        for drawn in super().draw(requests):
            if drawn.index == 3:
                raise KeyboardInterrupt
            yield drawn


def test_what_was_drawn_before_a_crash_is_not_drawn_again(place):
    _, ledger = place
    prompts = ledger.prompts("admitted")
    with pytest.raises(KeyboardInterrupt):
        agent(place, Dies()).draw(prompts, 0)
    assert len(ledger.images()) == 3
    backend = Backend()
    assert len(agent(place, backend).draw(prompts, 0)) == 5
    assert sum(map(len, backend.batches)) == 5
    assert ledger.pending_images() == {}


def lose_row(place, png=None):
    """A file that was written without its row, as a kill leaves it; `png` then replaces the file."""
    run, ledger = place
    it = agent(place, Backend())
    task = it._tasks(ledger.prompt("p2"))[0]
    drawn = next(iter(Backend().draw([task.request]))).image
    it._write(task, drawn)
    if png is not None:
        run.new_image(task.id, "png").write_bytes(png)
    return task.id


def test_a_file_without_a_row_is_used_if_it_is_the_one_that_was_drawn(place):
    _, ledger = place
    image_id = lose_row(place)
    assert not ledger.images()
    backend = Backend()
    assert len(agent(place, backend).draw(ledger.prompts("admitted"), 0)) == 8
    assert sum(map(len, backend.batches)) == 7
    assert image_id in {row.id for row in ledger.images()}
    assert ledger.pending_images() == {}


@pytest.mark.parametrize("png", [png_bytes(np.zeros((8, 8, 3), np.uint8)), b"garbage"])
@pytest.mark.parametrize("recorded", [True, False])
def test_any_other_file_without_a_row_is_set_aside_and_its_image_drawn_again(place, png, recorded):
    run, ledger = place
    image_id = lose_row(place, png)
    if not recorded:
        with ledger.transaction():
            ledger._db.execute("DELETE FROM pending_images")
    backend = Backend()
    assert len(agent(place, backend).draw(ledger.prompts("admitted"), 0)) == 8
    assert sum(map(len, backend.batches)) == 8
    row = next(row for row in ledger.images() if row.id == image_id)
    expected = np.random.default_rng(row.seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(run.read_image(row), expected)
    assert (run.root / "set_aside" / f"{image_id}.png").read_bytes() == png
    assert [detail for _, _, detail in ledger.events("set_aside")] == [{"file": f"{image_id}.png"}]


def test_out_of_memory_in_the_middle_of_a_batch_sets_nothing_aside(place):
    class RunsOut(Backend):
        def draw(self, requests, gate=None, on_step=unwatched):
            for drawn in super().draw(requests):
                if drawn.index == 2 and len(requests) > 4:
                    raise OutOfMemory
                yield drawn

    run, ledger = place
    assert len(agent(place, RunsOut()).draw(ledger.prompts("admitted"), 0)) == 8
    assert len(ledger.images()) == 8
    assert not (run.root / "set_aside").exists()


def test_rows_follow_the_requests_whatever_came_first(place):
    class Shuffled(Backend):
        def draw(self, requests, gate=None, on_step=unwatched):
            yield from reversed(list(super().draw(requests)))

    ids = agent(place, Shuffled()).draw(place[1].prompts("admitted"), 0)
    assert [row.id for row in place[1].images()] == ids
    assert [row.seed % 1000 for row in place[1].images()] == [0, 1, 2, 3] * 2


def test_a_batch_that_fitted_is_remembered_by_the_next_session(place):
    agent(place, Backend(room=3)).draw([place[1].prompt("p1")], 0)
    backend = Backend(room=3)
    agent(place, backend).draw([place[1].prompt("p2")], 0)
    assert [len(b) for b in backend.batches] == [2, 2]


class Veto(Backend):
    """Refuses every second request."""

    def draw(self, requests, gate=None, on_step=unwatched):
        for drawn in super().draw(requests):
            yield Drawn(drawn.index, None, "refused", "not nice") if drawn.index % 2 else drawn


def test_refused_images_are_counted_and_never_requested_again(place):
    ledger, prompts = place[1], place[1].prompts("admitted")
    assert len(agent(place, Veto()).draw(prompts, 0)) == 4
    assert [(row.reason, row.detail) for row in ledger.undrawn()] == [("refused", "not nice")] * 4
    assert agent(place, Veto()).waiting() == {}
    backend = Backend()
    assert agent(place, backend).draw(prompts, 1) == []
    assert backend.batches == []


class Priced(Backend):
    usd_per_image = 0.04

    def draw(self, requests, gate=None, on_step=unwatched):
        for drawn in super().draw(requests):
            yield replace(drawn, usd=0.04)


def test_drawing_stops_before_the_budget_is_overdrawn(place):
    ledger, prompts = place[1], place[1].prompts("admitted")
    it = agent(place, Priced(), batch_size=2, max_usd=0.21)
    assert len(it.draw(prompts, 0)) == 5
    assert ledger.usage()["images"].usd == pytest.approx(0.2)
    assert ledger.usage()["images"].images == 5
    assert it.affordable() == 0
    again = Priced()
    assert agent(place, again, max_usd=0.21).draw(prompts, 0) == []  # over a resume, too
    assert again.batches == []
    assert len(ledger.events("budget_spent")) == 2


class Previewing(Backend):
    """Shows the gate each batch as it will be."""

    def draw(self, requests, gate=None, on_step=unwatched):
        drawn = list(super().draw(requests))
        reasons = gate([d.index for d in drawn], [d.image for d in drawn]) if gate else [None] * len(drawn)
        for d, reason in zip(drawn, reasons, strict=True):
            yield Drawn(d.index, None, reason) if reason else d


def looks(values):
    """A judge's look that gives these probabilities in turn, with a threshold of one half."""
    left = iter(values)
    return lambda previews: [PreviewScore(next(left), 0.5) for _ in previews]


def test_filtered_images_are_not_drawn_again(place):
    ledger, prompts = place[1], place[1].prompts("admitted")
    it = agent(place, Previewing(), look=looks([0.9, 0.05] * 4))
    assert len(it.draw(prompts, 0)) == 4
    assert [row.reason for row in ledger.undrawn()] == ["filtered"] * 4
    assert it.waiting() == {}


def test_a_class_that_has_enough_stops_and_its_images_wait(place):
    ledger, prompts = place[1], place[1].prompts("admitted")
    backend = Previewing()
    it = agent(place, backend, look=looks([0.9] * 8), batch_size=4)
    assert len(it.draw(prompts, 0, lacking={"cat": 2})) == 3  # 1.5 times what is lacking
    assert len(backend.batches) == 1  # the second batch is not begun
    assert ledger.undrawn() == []
    assert it.waiting() == {"cat": ["p1", "p2"]}
    assert [d["images"] for _, _, d in ledger.events("stopped")] == [1]


def test_a_stopped_run_keeps_what_is_drawn(place):
    stop = []
    it = agent(place, Backend(), batch_size=2, stopped=lambda: len(stop) > 2 or bool(stop.append(1)))
    with pytest.raises(Cancelled):
        it.draw(place[1].prompts("admitted"), 0)
    assert 2 <= len(place[1].images()) <= 4


def test_a_batch_is_written_while_the_next_one_is_drawn(place):
    """The second batch is not finished before the first one's files are there: waiting for them would be lock-step."""
    run, ledger = place

    class Waits(Backend):
        def draw(self, requests, gate=None, on_step=unwatched):
            if self.batches:
                deadline = time.monotonic() + 30
                while len(list(run.images.rglob("*.png"))) < 4 and time.monotonic() < deadline:
                    time.sleep(0.01)
                self.rows_meanwhile = len(ledger.images())
            yield from super().draw(requests)

    backend = Waits()
    ids = agent(place, backend, batch_size=4).draw(ledger.prompts("admitted"), 0)
    assert backend.rows_meanwhile == 0
    assert [row.id for row in ledger.images()] == ids
    assert len(ids) == 8


def test_new_rows_come_with_their_images_in_the_order_of_the_ledger(place):
    _, ledger = place
    lost = lose_row(place)
    seen, images = [], {}

    def on_images(rows, in_memory):
        assert {row.id for row in rows} <= {row.id for row in ledger.images()}
        seen.extend(row.id for row in rows)
        images.update(in_memory)

    ids = agent(place, Backend(), batch_size=3).draw(ledger.prompts("admitted"), 0, on_images=on_images)
    assert seen == ids == [row.id for row in ledger.images()]
    assert images.keys() == set(ids) - {lost}


def test_a_file_that_cannot_be_written_ends_drawing_and_loses_no_other_image(place):
    run, ledger = place
    third = agent(place, Backend())._tasks(ledger.prompt("p1"))[2].id

    class Full(RunFolder):
        def new_image(self, image_id, form):
            return run.root / "missing" / "x.png" if image_id == third else super().new_image(image_id, form)

    backend = Backend()
    with pytest.raises(FileNotFoundError):
        agent((Full(run.root), ledger), backend, batch_size=2).draw(ledger.prompts("admitted"), 0)
    assert len(ledger.images()) == 5
    assert len(backend.batches) == 3  # the error is raised once the next batch is drawn
    assert len(agent(place, Backend(), batch_size=2).draw(ledger.prompts("admitted"), 0)) == 3


def test_of_a_lossy_file_the_stored_pixels_are_measured(place):
    """A resumed session reads them from the file, and must measure the same."""
    run, ledger = place
    stored = {}
    it = agent(place, Backend(), format="jpeg")
    it.draw(ledger.prompts("admitted"), 0, on_images=lambda rows, images: stored.update(images))
    assert len(stored) == 8
    for row in ledger.images():
        assert np.array_equal(stored[row.id], run.read_image(row))


class Mixture(Backend):
    """Two models that take turns by seed."""

    name = "mixture/1"

    def model_of(self, request):
        return f"model{request.seed % 2}"

    def close(self):
        pass


def test_a_mixture_is_drawn_model_by_model_and_recorded_per_image(place):
    _, ledger = place
    backend = Mixture()
    agent(place, backend, batch_size=3).draw(ledger.prompts("admitted"), 0)
    assert [{seed % 2 for seed in batch} for batch in backend.batches] == [{0}, {0}, {1}, {1}]
    assert {(row.seed % 2, row.backend) for row in ledger.images()} == {(0, "model0"), (1, "model1")}
