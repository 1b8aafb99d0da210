import numpy as np
import pytest
import torch
from torch import nn

from segsmith.segmentation.recipe import Ema, class_weights, known_pixel_loss, learning_rate, teacher_labels


def test_the_learning_rate_climbs_and_falls():
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert max(rates) == 1
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[0] <= 0.1
    assert 0 < rates[-1] < 0.02
    assert learning_rate(0, 1, 1.0) == 1


def test_rare_classes_weigh_more_and_a_pixel_weighs_one_on_average():
    pixels = np.array([8100, 1800, 100, 0])
    weights = class_weights(pixels)
    assert float(weights[2] / weights[0]) == pytest.approx(9, rel=1e-4)
    assert float((weights * torch.tensor(pixels)).sum()) == pytest.approx(pixels.sum(), rel=1e-2)
    assert float(weights[3]) == pytest.approx(10 * float(weights[0]), rel=1e-4)  # never seen: bounded
    assert torch.isfinite(class_weights(np.zeros(3, np.int64))).all()


def test_the_loss_counts_known_pixels_by_their_weight():
    logits = torch.tensor([[[[2.0, 0.0, 5.0]], [[0.0, 1.0, -5.0]]]])
    labels = torch.tensor([[[0, 1, 255]]])
    weights = torch.tensor([1.0, 3.0])
    first, second = np.log1p(np.exp(-2)), np.log1p(np.exp(-1))
    assert known_pixel_loss(logits, labels, weights).item() == pytest.approx((first + 3 * second) / 4)
    assert known_pixel_loss(logits, torch.full((1, 1, 3), 255), weights).item() == 0


def test_the_average_follows_weights_and_buffers_faster_at_first():
    model = nn.BatchNorm1d(1)
    ema = Ema(model, decay=0.95)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.running_mean.fill_(1.0)
        model.num_batches_tracked.fill_(7)
    ema.update(model)
    assert ema.model.weight.item() == pytest.approx(1.9)  # decay 1 / 10
    assert ema.model.running_mean.item() == pytest.approx(0.9)
    assert ema.model.num_batches_tracked.item() == 7
    for _ in range(300):
        ema.update(model)
    before = ema.model.weight.item()
    with torch.no_grad():
        model.weight.fill_(3.0)
    ema.update(model)
    assert ema.model.weight.item() - before == pytest.approx(0.05 * (3 - before), rel=1e-3)
    assert not any(p.requires_grad for p in ema.model.parameters())


def test_the_teacher_speaks_only_where_it_is_sure_and_nothing_is_known():
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 2, 0] = 9.0  # sure of class 2 in the upper row
    labels = torch.tensor([[[255, 1], [255, 0]]])
    assert teacher_labels(logits, labels, 0.9).tolist() == [[[2, 255], [255, 255]]]
