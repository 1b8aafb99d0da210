"""Crops around objects; the image measures are tested with the judge, which uses them."""

import numpy as np
import pytest

from segsmith.segmentation.image_ops import crop_object


def image_and_mask():
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 2] = 200
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:30] = True
    image[mask] = (250, 10, 10)
    return image, mask


def test_the_object_is_centred_with_a_margin():
    context, alone = crop_object(*image_and_mask(), 64)
    assert context.shape == alone.shape == (64, 64, 3)
    red = (alone[..., 0] > 200) & (alone[..., 1] < 40)
    ys, xs = np.nonzero(red)
    assert abs(ys.mean() - 31.5) < 2
    assert abs(xs.mean() - 31.5) < 2
    assert 0.6 < np.ptp(ys) / 64 < 0.85


def test_the_second_view_shows_nothing_of_the_surroundings():
    image, mask = image_and_mask()
    context, alone = crop_object(image, mask, 64)
    assert (context[..., 2] >= 195).mean() > 0.3
    assert not (alone[..., 2] >= 195).any(), "the mean colour is less blue than the surroundings"


@pytest.mark.parametrize("corner", [(slice(0, 4), slice(0, 4)), (slice(36, 40), slice(0, 60))])
def test_views_beyond_the_image_border_are_filled(corner):
    image, mask = image_and_mask()
    mask[:] = False
    mask[corner] = True
    for view in crop_object(image, mask, 32):
        assert view.shape == (32, 32, 3)


def test_an_empty_mask_is_an_error():
    image, mask = image_and_mask()
    with pytest.raises(ValueError, match="mask is empty"):
        crop_object(image, mask & False, 32)
