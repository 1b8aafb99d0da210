"""Weak labels are a subset of the full labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segsmith.datasets.objects import components, present_classes
from segsmith.datasets.weak_labels import KINDS, kind_of, weaken

MAPS = arrays(
    np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.sampled_from([0, 1, 2, 255])
)
DRAWN = [kind for kind in KINDS if kind != "image"]


def rng(seed=0):
    return np.random.default_rng(seed)


def scene():
    label_map = np.zeros((96, 96), np.uint8)
    label_map[10:50, 12:30] = 1
    label_map[40:90, 50:90] = 2
    label_map[60:70, 60:70] = 0
    return label_map


@settings(deadline=None, max_examples=60)
@given(MAPS, st.sampled_from(KINDS), st.integers(0, 99))
def test_no_label_is_ever_changed(label_map, kind, seed):
    weak = weaken(label_map, kind, rng(seed))
    assert weak.dtype == np.uint8
    assert np.all((weak == label_map) | (weak == 255))


@settings(deadline=None, max_examples=40)
@given(MAPS, st.sampled_from(DRAWN))
def test_every_piece_of_every_class_is_drawn_on_except_for_specks(label_map, kind):
    weak = weaken(label_map, kind, rng(), min_area_px=3)
    for value in set(np.unique(label_map)) - {255}:
        for piece in components(label_map == value):
            assert (weak[piece.mask()] == value).any() == (piece.area >= 3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_determines_the_weak_labels(kind):
    assert np.array_equal(weaken(scene(), kind, rng(3)), weaken(scene(), kind, rng(3)))


def test_points_are_one_pixel_per_component():
    weak = weaken(scene(), "points", rng())
    assert [(weak == value).sum() for value in (0, 1, 2)] == [
        2,
        1,
        1,
    ]  # the hole is a second background piece


def test_kinds_that_take_more_effort_label_more_pixels():
    shares = [
        (weaken(scene(), kind, rng()) != 255).mean() for kind in ("image", "points", "scribbles", "coarse")
    ]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.002 < shares[2] < 0.05
    assert 0.4 < shares[3] < 0.9


def test_a_scribble_is_one_line_inside_the_object():
    weak = weaken(scene(), "scribbles", rng()) == 1
    assert len(components(weak)) == 1
    ys, _ = np.nonzero(weak)
    assert ys.max() - ys.min() > 12


def test_a_scribble_follows_the_longest_path_of_a_skeleton_with_branches():
    cross = np.full((60, 200), 255, np.uint8)
    cross[28:33, 10:190] = 1
    cross[10:50, 98:103] = 1
    ys, xs = np.nonzero(weaken(cross, "scribbles", rng()) == 1)
    assert (ys.min() >= 28, ys.max() <= 32) == (True, True)
    assert xs.max() - xs.min() > 100
    assert len(set(xs)) == len(xs), "one pixel per column: the path does not wander"


def test_the_cost_of_a_component_is_that_of_its_box():
    """A large map of many small components: work on the whole map per component would take minutes."""
    label_map = np.full((1024, 1024), 255, np.uint8)
    for top in range(0, 1024, 32):
        label_map[top : top + 8] = np.where(np.arange(1024) % 32 < 20, 1, 255)
    weak = weaken(label_map, "scribbles", rng())
    assert len(components(weak == 1)) == 32 * 32


def test_image_labels_are_the_classes_in_the_image():
    assert present_classes(scene()) == (1, 2)
    assert present_classes(np.full((4, 4), 255, np.uint8)) == ()


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_weak_labels_is_recognised(kind):
    assert kind_of([weaken(scene(), kind, rng(seed)) for seed in range(3)]) == kind


def test_dense_masks_are_not_weak_labels():
    assert kind_of([scene()]) is None


def test_points_drawn_as_small_discs_are_points():
    ys, xs = np.mgrid[:500, :400]
    disc = np.where((ys - 100) ** 2 + (xs - 90) ** 2 <= 16, 1, 255).astype(np.uint8)
    assert kind_of([disc]) == "points"
