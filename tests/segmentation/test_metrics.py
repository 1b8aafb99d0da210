import math

import numpy as np
import pytest
import torch

from segsmith.segmentation.metrics import score_pairs


def test_a_case_computed_by_hand():
    truth = torch.tensor([[[0, 0, 1, 1], [2, 2, 255, 255]]])
    guess = torch.tensor([[[0, 1, 1, 1], [2, 0, 1, 2]]])
    score = score_pairs([(guess, truth)], ["cat", "dog", "bus"])
    # background: intersection 1, union 3; cat: 2 and 3; dog: 1 and 2; bus: neither in truth nor in prediction
    assert score.iou_per_class["background"] == pytest.approx(1 / 3)
    assert score.iou_per_class["cat"] == pytest.approx(2 / 3)
    assert score.iou_per_class["dog"] == pytest.approx(1 / 2)
    assert math.isnan(score.iou_per_class["bus"])
    assert score.miou == pytest.approx((1 / 3 + 2 / 3 + 1 / 2) / 3)
    assert score.pixel_accuracy == pytest.approx(4 / 6)
    assert np.array_equal(score.confusion, [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])


def test_a_class_that_is_only_predicted_counts_as_zero():
    score = score_pairs([(torch.tensor([[1, 1]]), torch.tensor([[0, 0]]))], ["cat"])
    assert score.iou_per_class["cat"] == 0
    assert score.miou == 0


def test_batches_add_up():
    truth, guess = torch.randint(0, 3, (6, 5, 5)), torch.randint(0, 3, (6, 5, 5))
    whole = score_pairs([(guess, truth)], ["a", "b"])
    parts = score_pairs([(guess[:2], truth[:2]), (guess[2:], truth[2:])], ["a", "b"])
    assert np.array_equal(whole.confusion, parts.confusion)


def test_the_score_without_known_pixels_is_nan():
    score = score_pairs([(torch.zeros(2, 2), torch.full((2, 2), 255))], ["cat"])
    assert math.isnan(score.miou)
    assert math.isnan(score.pixel_accuracy)
