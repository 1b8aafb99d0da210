import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.morphology import skeletonize

from segsmith.datasets.objects import components
from segsmith.segmentation.sesam import THINNED_PX, confidence_points, select_mask, skeleton_points
from segsmith.types import MaskCandidates

few = settings(max_examples=40, deadline=None)
masks = arrays(np.bool_, st.tuples(st.integers(1, 14), st.integers(1, 14)))


def box(y0, y1, x0, x1, size=(20, 20)):
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def offer(*pairs):
    return MaskCandidates(np.stack([m for m, _ in pairs]), np.array([s for _, s in pairs], np.float32))


# -- step 1 ---------------------------------------------------------------------------------------


@few
@given(masks)
def test_components_partition_the_mask_largest_first(mask):
    parts = components(mask)
    assert np.array_equal(
        np.sum([p.mask() for p in parts], axis=0) if parts else np.zeros_like(mask, int), mask.astype(int)
    )
    areas = [p.area for p in parts]
    assert areas == [p.crop().sum() for p in parts]
    assert areas == sorted(areas, reverse=True)


@few
@given(masks, st.integers(2, 50))
def test_a_minimum_area_never_removes_the_largest(mask, area):
    parts = components(mask, area)
    assert bool(parts) == mask.any()
    assert all(p.area >= area for p in parts) or len(parts) == 1


def test_diagonal_neighbours_are_one_object():
    assert len(components(np.eye(5, dtype=bool))) == 1


# -- step 2 ---------------------------------------------------------------------------------------


@few
@given(masks, st.integers(1, 9), st.integers(0, 5))
def test_skeleton_points_are_distinct_pixels_of_the_component(mask, n, seed):
    for part in (piece.mask() for piece in components(mask)):
        points = skeleton_points(part, n, np.random.default_rng(seed))
        assert points.dtype == np.float32
        assert 1 <= len(points) <= n
        assert all(part[int(y), int(x)] for x, y in points)
        assert len({tuple(p) for p in points}) == len(points)


def test_points_of_a_bar_are_on_its_centre_line():
    points = skeleton_points(box(8, 13, 1, 19), 5, np.random.default_rng(0))
    assert len(points) == 5
    assert set(points[:, 1]) == {10}


@pytest.mark.parametrize(("shape", "count"), [((4, 5, 6, 7), 1), ((4, 5, 6, 9), 3), ((2, 6, 7, 8), 4)])
def test_thin_components_give_all_their_pixels(shape, count):
    assert len(skeleton_points(box(*shape), 5, np.random.default_rng(0))) == count


def test_an_object_that_fills_the_image_has_points():
    assert len(skeleton_points(np.ones((9, 30), bool), 5, np.random.default_rng(0))) == 5


def test_every_skeleton_pixel_is_equally_likely():
    line = box(3, 4, 0, 10)
    rng = np.random.default_rng(0)
    hits = np.bincount([int(skeleton_points(line, 1, rng)[0, 0]) for _ in range(2000)], minlength=10)
    assert hits.min() > 140
    assert hits.max() < 260


def test_an_empty_component_has_no_points():
    empty = np.zeros((5, 5), bool)
    assert skeleton_points(empty, 5, np.random.default_rng(0)).shape == (0, 2)
    assert confidence_points(np.zeros((5, 5), np.float32), empty, 5).shape == (0, 2)


def test_confidence_points_are_the_best_pixels_inside():
    score = np.arange(25, dtype=np.float32).reshape(5, 5)
    part = box(0, 3, 0, 3, (5, 5))
    assert confidence_points(score, part, 2).tolist() == [[2, 2], [1, 2]]


# -- step 3 ---------------------------------------------------------------------------------------

OWN = box(5, 10, 5, 15)  # 50 px
OTHER = box(12, 16, 5, 15)  # 40 px


def test_a_mask_that_covers_the_weak_label_beats_a_more_confident_part_of_it():
    whole, part = box(4, 11, 4, 16), box(5, 10, 5, 8)
    chosen = select_mask(offer((part, 0.99), (whole, 0.8)), OWN, OTHER)
    assert chosen.index == 1
    assert chosen.reason == "ok"
    assert chosen.coverage == 1
    assert chosen.precision == pytest.approx(50 / 84)
    assert chosen.predicted_iou == pytest.approx(0.8)


def test_the_more_confident_of_two_covering_masks_wins():
    a, b = box(5, 10, 5, 15), box(5, 10, 5, 14)  # coverage 1.0 and 0.9
    assert select_mask(offer((a, 0.8), (b, 0.85)), OWN, OTHER).index == 0
    assert select_mask(offer((a, 0.8), (b, 0.95)), OWN, OTHER).index == 1


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (box(5, 10, 5, 11), "coverage"),  # 30 of 50
        (box(5, 15, 5, 15), "overlap"),  # 30 of the other class's 40
        (box(0, 20, 0, 19), "flood"),  # 0.95 of the image
        (box(0, 20, 0, 20) & ~box(3, 17, 3, 17), "flood"),  # a frame
        (box(0, 0, 0, 0), "empty"),
    ],
)
def test_rejections_state_their_reason(mask, reason):
    chosen = select_mask(offer((mask, 0.9)), OWN, OTHER, 0.7, 0.3)
    assert chosen.index is None
    assert chosen.reason == reason


def test_thresholds_are_inclusive():
    own, others = box(0, 1, 0, 10), box(2, 3, 0, 10)
    mask = box(0, 1, 0, 7) | box(2, 3, 0, 3)
    assert select_mask(offer((mask, 0.9)), own, others, 0.7, 0.3).reason == "ok"
    assert select_mask(offer((mask, 0.9)), own, others, 0.7, 0.29).reason == "overlap"
    assert select_mask(offer((mask, 0.9)), own, others, 0.71, 0.7).reason == "coverage"


def test_the_reading_by_weights_trades_confidence_for_coverage():
    part, whole = box(5, 10, 5, 11), box(5, 10, 5, 15)  # coverage 0.6 and 1.0
    pair = offer((part, 0.95), (whole, 0.4))
    # 0.3 x IoU + 0.7 x coverage: 0.705 against 0.82; 0.9 and 0.1: 0.915 against 0.46
    assert select_mask(pair, OWN, OTHER, 0.3, 0.7, reading="weights").index == 1
    assert select_mask(pair, OWN, OTHER, 0.9, 0.1, reading="weights").index == 0
    elsewhere = offer((OTHER, 0.9))
    assert select_mask(elsewhere, OWN, OTHER, reading="weights").reason == "score"


def test_without_candidates_or_other_classes():
    none = MaskCandidates(np.zeros((0, 20, 20), bool), np.zeros(0, np.float32))
    assert select_mask(none, OWN, OTHER).reason == "no_candidates"
    assert select_mask(offer((OWN, 0.9)), OWN, np.zeros_like(OWN)).index == 0


def test_large_components_are_thinned_at_a_lower_resolution_near_the_same_skeleton():
    wide = np.zeros((700, 900), bool)
    wide[100:180, 50:850] = True
    points = skeleton_points(wide, 40, np.random.default_rng(0)).astype(int)
    assert len(points) == 40
    assert wide[points[:, 1], points[:, 0]].all()
    skeleton = np.argwhere(skeletonize(wide))
    for x, y in points:
        assert np.abs(skeleton - (y, x)).max(axis=1).min() <= 2 * math.ceil(800 / THINNED_PX)


def test_a_large_component_that_the_coarse_grid_misses_still_gives_points():
    line = np.zeros((600, 600), bool)
    line[np.arange(1, 600), np.arange(599)] = True
    assert len(skeleton_points(line, 5, np.random.default_rng(0))) == 5
