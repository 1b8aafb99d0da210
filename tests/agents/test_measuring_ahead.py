"""Measuring while drawing: the same chunks as afterwards, from memory, and never more than two at a time."""

import threading
from contextlib import suppress

import pytest

from segsmith.agents.judge.agent import MEASURED_TOGETHER
from segsmith.agents.judge.ahead import MeasuringAhead
from segsmith.memory.ledger import Evidence
from segsmith.testing import made_up_run


class Judge:
    """Records the chunks it measures."""

    def __init__(self, ledger):
        self.ledger, self.chunks, self.images = ledger, [], []
        self.gate = threading.Event()
        self.gate.set()

    def measure(self, rows, images):
        self.gate.wait(30)
        self.chunks.append([row.id for row in rows])
        self.images += images
        self.ledger.add_evidence(Evidence(r.id, r.prompt_id, "", (), (), 1.0, False, -1.0) for r in rows)


@pytest.fixture
def place(tmp_path):
    run, ledger, _ = made_up_run(tmp_path / "run", 2 * MEASURED_TOGETHER + 6, size=64)
    rows = ledger.images()
    images = {row.id: run.read_image(row) for row in rows}
    ledger.forget_images(row.id for row in rows)
    yield run, ledger, rows, images
    ledger.close()


def expected(rows):
    ids = [row.id for row in rows]
    return [
        ids[:MEASURED_TOGETHER],
        ids[MEASURED_TOGETHER : 2 * MEASURED_TOGETHER],
        ids[2 * MEASURED_TOGETHER :],
    ]


def add(measuring, ledger, rows, images):
    ledger.add_images(rows)
    measuring.add(rows, images)


def test_chunks_do_not_depend_on_the_batches_and_images_in_memory_are_not_read(place):
    run, ledger, rows, images = place
    for row in rows:
        run.image(row.id).unlink()
    judge = Judge(ledger)
    with MeasuringAhead(judge, ledger, run) as measuring:
        for start in range(0, len(rows), 7):
            batch = rows[start : start + 7]
            add(measuring, ledger, batch, {row.id: images[row.id] for row in batch})
    assert judge.chunks == expected(rows)
    assert ledger.unmeasured() == []


def test_a_resumed_session_measures_the_same_chunks(place):
    run, ledger, rows, images = place
    judge = Judge(ledger)
    with suppress(KeyboardInterrupt), MeasuringAhead(judge, ledger, run) as measuring:
        add(measuring, ledger, rows[: MEASURED_TOGETHER + 9], images)
        raise KeyboardInterrupt
    assert judge.chunks == expected(rows)[:1]
    with MeasuringAhead(judge, ledger, run) as measuring:
        add(measuring, ledger, rows[MEASURED_TOGETHER + 9 :], images)
    assert judge.chunks == expected(rows)
    assert [image.tobytes() for image in judge.images] == [images[row.id].tobytes() for row in rows]


def test_a_slow_judge_holds_drawing_back(place):
    run, ledger, rows, images = place
    judge = Judge(ledger)
    judge.gate.clear()
    with MeasuringAhead(judge, ledger, run) as measuring:
        add(measuring, ledger, rows[:MEASURED_TOGETHER], images)  # is being measured
        drawing = threading.Thread(target=add, args=(measuring, ledger, rows[MEASURED_TOGETHER:], images))
        drawing.start()
        drawing.join(0.2)
        assert drawing.is_alive()
        judge.gate.set()
        drawing.join()
    assert judge.chunks == expected(rows)


def test_an_error_of_the_judge_ends_drawing(place):
    run, ledger, rows, images = place

    class Broken(Judge):
        def measure(self, rows, images):
            raise RuntimeError("no CLIP")

    with (
        pytest.raises(RuntimeError, match="no CLIP"),
        MeasuringAhead(Broken(ledger), ledger, run) as measuring,
    ):
        add(measuring, ledger, rows, images)
