import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segsmith.segmentation.merge import Region, ignore_share, merge_masks, pixel_counts

SIZE = (6, 9)
regions = st.lists(st.builds(Region, st.integers(0, 4), arrays(np.bool_, SIZE), st.floats(0, 1)), max_size=5)


def row(*on):
    mask = np.zeros((1, 8), bool)
    mask[0, list(on)] = True
    return mask


@settings(max_examples=60, deadline=None)
@given(regions, st.integers(0, 2), arrays(np.bool_, SIZE))
def test_merging_never_adds_a_class(found, border, uncertain):
    merged = merge_masks(found, SIZE, uncertain, border)
    assert merged.shape == SIZE
    assert merged.dtype == np.uint8
    for value in set(np.unique(merged)) - {0, 255}:
        claimed = np.logical_or.reduce([r.mask for r in found if r.class_index + 1 == value])
        assert claimed[merged == value].all()
    if border == 0:
        claimed = np.logical_or.reduce([np.zeros(SIZE, bool), *(r.mask for r in found)])
        assert (merged[~claimed & uncertain] == 255).all()
        assert (merged[~claimed & ~uncertain] == 0).all()


def test_contested_pixels_go_to_a_clear_lead_and_are_255_otherwise():
    left, right = row(0, 1, 2, 3), row(2, 3, 4, 5)
    clear = merge_masks([Region(0, left, 0.9), Region(6, right, 0.6)], (1, 8))
    assert clear.tolist() == [[1, 1, 1, 1, 7, 7, 0, 0]]
    narrow = merge_masks([Region(0, left, 0.9), Region(6, right, 0.85)], (1, 8))
    assert narrow.tolist() == [[1, 1, 255, 255, 7, 7, 0, 0]]
    exact = merge_masks([Region(0, left, 0.9), Region(6, right, 0.8)], (1, 8), margin=0.1)
    assert exact.tolist() == [[1, 1, 1, 1, 7, 7, 0, 0]]


def test_regions_of_one_class_do_not_conflict():
    found = [Region(1, row(0, 1, 2), 0.9, instance=0), Region(1, row(2, 3), 0.9, instance=1)]
    assert merge_masks(found, (1, 8)).tolist() == [[2, 2, 2, 2, 0, 0, 0, 0]]


def test_the_border_covers_both_sides_of_an_outline_but_not_the_image_edge():
    merged = merge_masks([Region(0, row(0, 1, 2, 3), 1.0)], (1, 8), border_px=1)
    assert merged.tolist() == [[1, 1, 1, 255, 255, 0, 0, 0]]


def test_uncertain_pixels_are_255_only_where_no_region_claims_them():
    merged = merge_masks([Region(0, row(0, 1), 0.9)], (1, 8), row(1, 2))
    assert merged.tolist() == [[1, 1, 255, 0, 0, 0, 0, 0]]


def test_an_image_without_regions_is_background():
    assert not merge_masks([], SIZE).any()


def test_pixel_counts_and_share_of_255():
    label_map = np.array([[0, 1, 1, 255], [3, 255, 0, 0]], np.uint8)
    assert ignore_share(label_map) == 0.25
    assert pixel_counts(label_map, ["cat", "dog", "bus"]) == {"cat": 2, "dog": 0, "bus": 1}
