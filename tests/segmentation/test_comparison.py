"""Comparing two segmenters on the same images."""

import math

import numpy as np
import pytest
import torch

from segsmith.segmentation.comparison import compare_counts, image_counts
from segsmith.segmentation.metrics import score_pairs
from segsmith.types import IGNORE

CLASSES = ("cat", "dog")


def batches(images, wrong, seed, least=0):
    """One batch of random label maps and predictions that err on the share `wrong` of the pixels, by image."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.randint(least, 3, (images, 8, 8), generator=random)
    other = torch.randint(least, 3, truth.shape, generator=random)
    errs = torch.rand(truth.shape, generator=random) < torch.as_tensor(wrong).view(-1, 1, 1)
    return [(torch.where(errs, other, truth), truth)]


def counts(images, wrong, seed=0):
    return image_counts(batches(images, wrong, seed), len(CLASSES), background=True)


@pytest.mark.parametrize("background", [True, False])
def test_the_counts_of_all_images_give_the_score_of_the_split(background):
    ((prediction, truth),) = batches(6, 0.3, seed=1, least=0 if background else 1)
    truth[:, :2] = IGNORE
    pairs = [(prediction[:2], truth[:2]), (prediction[2:], truth[2:])]
    found = image_counts(pairs, len(CLASSES), background)
    assert found.shape == (6, 3, 3 if background else 2)
    score = score_pairs(pairs, CLASSES, background)
    assert compare_counts(found, found).first == pytest.approx(score.miou)


def test_a_class_that_no_image_shows_is_left_out_of_the_mean():
    found = np.array([[[4, 0], [4, 0], [8, 0]]] * 3)
    assert compare_counts(found, found).first == 0.5


def test_a_clear_gain_is_better_and_its_opposite_is_not():
    good, bad = counts(40, 0.1), counts(40, 0.5)
    assert compare_counts(good, bad).first_is_better
    assert not compare_counts(bad, good).first_is_better
    assert compare_counts(good, bad).gain == -compare_counts(bad, good).gain > 0


def test_a_segmenter_is_not_better_than_itself():
    same = compare_counts(counts(40, 0.3), counts(40, 0.3))
    assert (same.gain, same.error, same.first_is_better) == (0, 0, False)


def test_a_gain_that_one_image_of_many_makes_is_chance():
    """The first is better on one image and a little worse on the others; its mIoU is higher."""
    first, second = counts(20, [0.0] + [0.32] * 19), counts(20, [0.9] + [0.3] * 19)
    found = compare_counts(first, second)
    assert 0 < found.gain < found.error
    assert not found.first_is_better


def test_the_error_falls_with_the_root_of_the_number_of_images():
    few, many = (compare_counts(counts(n, 0.3, 1), counts(n, 0.3, 2)).error for n in (25, 400))
    assert few / many == pytest.approx(4, rel=0.35)


def test_one_image_decides_nothing():
    found = compare_counts(counts(1, 0.1), counts(1, 0.5))
    assert found.gain > 0
    assert found.error == math.inf
    assert not found.first_is_better
