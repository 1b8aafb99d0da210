from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_run import WordEncoder, make_run, remember

from segsmith.memory.prompt_memory import stored_vectors
from segsmith.report import prompt_map
from segsmith.report.run_data import read_run
from segsmith.report.theme import SHAPES


def _distances(points):
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(2, 12), st.integers(0, 2**31))
def test_projection_keeps_the_distances_of_points_in_a_plane(count, width, seed):
    rng = np.random.default_rng(seed)
    plane = np.linalg.qr(rng.normal(size=(width, 2)))[0]
    flat = rng.normal(size=(count, 2)) * (3, 1)
    found, kept = prompt_map.project(flat @ plane.T + rng.normal(size=width))
    assert kept == pytest.approx(1)
    assert np.allclose(_distances(found), _distances(flat), atol=1e-6)


def test_projection_of_equal_or_flat_vectors_is_finite():
    found, kept = prompt_map.project(np.ones((4, 3)))
    assert kept == 0
    assert np.isfinite(found).all()
    assert prompt_map.project(np.arange(4.0)[:, None])[0].shape == (4, 2)


@pytest.mark.parametrize(
    ("judged", "accepted", "level"), [(0, 0, "unjudged"), (2, 0, "none"), (3, 1, "some"), (2, 1, "most")]
)
def test_level_of_yield(judged, accepted, level):
    assert prompt_map.level(judged, accepted) == level


def test_every_shape_has_its_own_outline():
    assert len({prompt_map.marker(shape, 10, 10) for shape in SHAPES}) == len(SHAPES)


def test_map_shows_every_admitted_prompt_once_and_no_dropped_one(tmp_path):
    run, ledger, config = make_run(tmp_path, classes=("cat", "dog"), size=64, prompts_per_class=4)
    remember(run, ledger)
    data = read_run(run, ledger)
    admitted = [p for p in data.prompts.values() if p.status == "admitted"]
    vectors = stored_vectors(run.memory, [p.id for p in data.prompts.values()])
    ledger.close()
    assert set(vectors) == {p.id for p in admitted}
    expected = WordEncoder().embed_texts([p.text for p in admitted])
    assert np.allclose([vectors[p.id] for p in admitted], expected, atol=1e-5)
    found = prompt_map.prompt_map(data, config.classes, vectors)
    assert set(found.points) == {p.id for p in admitted}
    assert found.svg.count("z") == len(admitted)
    assert 0 < found.kept <= 1
    assert prompt_map.prompt_map(data, config.classes, {}) is None


def test_a_run_without_a_memory_has_no_vectors(tmp_path):
    assert stored_vectors(tmp_path, ["p-1"]) == {}


def test_families_are_grouped_and_parents_are_rows_of_the_table(tmp_path):
    run, ledger, config = make_run(tmp_path, classes=("cat", "dog"), size=64, prompts_per_class=4)
    data = read_run(run, ledger)
    ledger.close()
    table = prompt_map.prompt_table(data, config.classes, {})
    assert sorted(table["id"]) == sorted(data.prompts)
    assert table["family"] == sorted(table["family"])
    for k, parent in enumerate(table["parent"]):
        named = data.prompts[table["id"][k]].parent_id
        assert (parent == -1) == (named is None)
        if parent != -1:
            assert table["id"][parent] == named
            assert table["family"][parent] == table["family"][k]
    assert sum(table["accepted"]) == data.image_counts.accepted.total()


def test_damaged_vectors_and_parents_are_left_out(tmp_path):
    run, ledger, config = make_run(tmp_path, classes=("cat",), size=64, prompts_per_class=4)
    first = ledger.prompts("admitted")[0]
    ledger.add_prompts([replace(first, parent_id=first.id)])
    data = read_run(run, ledger)
    ledger.close()
    vectors = {prompt_id: np.arange(3, dtype=np.float32) for prompt_id in data.prompts}
    vectors[first.id] = np.full(3, np.nan, np.float32)
    assert first.id not in prompt_map.prompt_map(data, config.classes, vectors).points
    table = prompt_map.prompt_table(data, config.classes, {})
    assert table["parent"][table["id"].index(first.id)] == -1
