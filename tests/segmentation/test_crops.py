"""Objects cut out of their pictures."""

import numpy as np
import pytest

from segsmith.segmentation.crops import cut_out


def picture():
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 2] = 200
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:30] = True
    image[mask] = (250, 10, 10)
    return image, mask


def test_the_object_stands_in_the_middle_with_room_around_it():
    around, alone = cut_out(*picture(), 64)
    assert around.shape == alone.shape == (64, 64, 3)
    red = (alone[..., 0] > 200) & (alone[..., 1] < 40)
    ys, xs = np.nonzero(red)
    assert abs(ys.mean() - 31.5) < 2
    assert abs(xs.mean() - 31.5) < 2
    assert 0.6 < np.ptp(ys) / 64 < 0.85


def test_alone_nothing_of_the_surroundings_is_left():
    image, mask = picture()
    around, alone = cut_out(image, mask, 64)
    assert (around[..., 2] >= 195).mean() > 0.3
    assert not (alone[..., 2] >= 195).any(), "the mean colour is less blue than the surroundings"


@pytest.mark.parametrize("corner", [(slice(0, 4), slice(0, 4)), (slice(36, 40), slice(0, 60))])
def test_what_leaves_the_picture_is_filled(corner):
    image, mask = picture()
    mask[:] = False
    mask[corner] = True
    for view in cut_out(image, mask, 32):
        assert view.shape == (32, 32, 3)


def test_an_empty_mask_cuts_nothing_out():
    image, mask = picture()
    with pytest.raises(ValueError, match="empty mask"):
        cut_out(image, mask & False, 32)
