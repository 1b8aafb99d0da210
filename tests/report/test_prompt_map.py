import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_run import WordEncoder, make_run, remember

from segsmith.memory.prompt_memory import stored_vectors
from segsmith.report import prompt_map, statistics
from segsmith.report.thumbnails import SHAPES


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(2, 12), st.integers(0, 2**31))
def test_projection_keeps_what_a_plane_can_hold(count, width, seed):
    rng = np.random.default_rng(seed)
    plane = np.linalg.qr(rng.normal(size=(width, 2)))[0]
    flat = rng.normal(size=(count, 2)) * (3, 1)
    found, kept = prompt_map.project(flat @ plane.T + rng.normal(size=width))
    distances = lambda p: np.linalg.norm(p[:, None] - p[None], axis=-1)  # noqa: E731
    assert kept == pytest.approx(1)
    assert np.allclose(distances(found), distances(flat), atol=1e-6)


def test_projection_of_equal_or_flat_vectors_is_finite():
    found, kept = prompt_map.project(np.ones((4, 3)))
    assert kept == 0
    assert np.isfinite(found).all()
    assert prompt_map.project(np.arange(4.0)[:, None])[0].shape == (4, 2)


@pytest.mark.parametrize(
    ("judged", "accepted", "level"), [(0, 0, "undrawn"), (2, 0, "none"), (3, 1, "some"), (2, 1, "most")]
)
def test_level_of_yield(judged, accepted, level):
    assert prompt_map.level(judged, accepted) == level


def test_every_shape_has_an_outline_of_its_own():
    assert len({prompt_map.marker(k, 10, 10) for k in range(len(SHAPES))}) == len(SHAPES)


def test_map_shows_each_remembered_prompt_once_and_none_that_was_dropped(tmp_path):
    run, ledger, config = make_run(tmp_path, classes=("cat", "dog"), size=64, prompts_per_class=4)
    remember(run, ledger)
    book = statistics.read_book(ledger)
    admitted = [p for p in book.prompts.values() if p.status == "admitted"]
    vectors = stored_vectors(run.memory, [p.id for p in book.prompts.values()])
    ledger.close()
    assert set(vectors) == {p.id for p in admitted}
    expected = WordEncoder().embed_texts([p.text for p in admitted])
    assert np.allclose([vectors[p.id] for p in admitted], expected, atol=1e-5)
    found = prompt_map.prompt_map(book, config.classes, vectors)
    assert set(found.points) == {p.id for p in admitted}
    assert found.svg.count("z") == len(admitted)
    assert 0 < found.kept <= 1
    assert prompt_map.prompt_map(book, config.classes, {}) is None


def test_no_memory_is_no_vectors(tmp_path):
    assert stored_vectors(tmp_path, ["p-1"]) == {}


def test_families_lie_together_parents_known(tmp_path):
    _, ledger, config = make_run(tmp_path, classes=("cat", "dog"), size=64, prompts_per_class=4)
    book = statistics.read_book(ledger)
    ledger.close()
    table = prompt_map.prompt_table(book, config.classes, {})
    assert sorted(table["id"]) == sorted(book.prompts)
    assert table["family"] == sorted(table["family"])
    for k, parent in enumerate(table["parent"]):
        named = book.prompts[table["id"][k]].parent_id
        assert (parent == -1) == (named is None)
        if parent != -1:
            assert table["id"][parent] == named
            assert table["family"][parent] == table["family"][k]
    assert sum(table["accepted"]) == len(book.accepted)
