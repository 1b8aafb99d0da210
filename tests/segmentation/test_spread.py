"""Drawn labels spread along colours: what takes SAM's place."""

import numpy as np
import pytest

from segsmith.segmentation.spread import SIDE_PX, spread


def two_colours(size=(40, 60)):
    """Left grey, right red, with the border at a third of the width, and the true label map."""
    truth = np.full(size, 1, np.uint8)
    truth[:, size[1] // 3 :] = 2
    rng = np.random.default_rng(0)
    image = np.where(truth[..., None] == 1, [90, 90, 90], [200, 40, 40])
    return np.clip(rng.normal(image, 3), 0, 255).astype(np.uint8), truth


@pytest.mark.parametrize("size", [(40, 60), (3 * SIDE_PX + 7, SIDE_PX)])
def test_labels_end_where_the_colour_changes_at_any_size(size):
    image, truth = two_colours(size)
    drawn = np.full(size, 255, np.uint8)
    drawn[size[0] // 2, 3] = 1
    drawn[size[0] // 4, -3] = 2
    found = spread(image, drawn)
    known = found != 255
    assert known.mean() > 0.8
    assert (found == truth)[known].mean() > 0.99
    assert np.array_equal(found[drawn != 255], drawn[drawn != 255])


def test_pixels_about_as_near_to_two_labels_are_unknown():
    drawn = np.full((21, 41), 255, np.uint8)
    drawn[10, 0], drawn[10, 40] = 1, 2
    found = spread(np.full((21, 41, 3), 128, np.uint8), drawn)
    assert (found[10, 20], found[10, 2], found[10, 38]) == (255, 1, 2)
    assert (spread(np.full((21, 41, 3), 128, np.uint8), drawn, lead=0) != 255).all()


def test_one_label_fills_the_image_and_none_leaves_it_unknown():
    image, drawn = np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 255, np.uint8)
    assert (spread(image, drawn) == 255).all()
    drawn[1, 1] = 0
    assert (spread(image, drawn) == 0).all()
