import numpy as np
import pytest
import torch
from torch import nn

from segsmith.config import TrainerConfig
from segsmith.segmentation.recipe import (
    Ema,
    class_weights,
    epoch_steps,
    joint_loss,
    learning_rate,
    real_share,
    teacher_labels,
)


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert max(rates) == 1
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[0] <= 0.1
    assert 0 < rates[-1] < 0.02
    assert learning_rate(0, 1, 1.0) == 1


def test_rare_classes_have_higher_weights_with_mean_one_over_pixels():
    pixels = np.array([8100, 1800, 100, 0])
    weights = class_weights(pixels)
    assert float(weights[2] / weights[0]) == pytest.approx(9, rel=1e-4)
    assert float((weights * torch.tensor(pixels)).sum()) == pytest.approx(pixels.sum(), rel=1e-2)
    assert float(weights[3]) == pytest.approx(10 * float(weights[0]), rel=1e-4)  # not in the data: bounded
    assert torch.isfinite(class_weights(np.zeros(3, np.int64))).all()


def test_the_loss_weights_known_pixels_by_class():
    logits = torch.tensor([[[[2.0, 0.0, 5.0]], [[0.0, 1.0, -5.0]]]])
    labels = torch.tensor([[[0, 1, 255]]])
    weights = torch.tensor([1.0, 3.0])
    first, second = np.log1p(np.exp(-2)), np.log1p(np.exp(-1))
    assert joint_loss(logits, [(labels, 1)], weights, "sources").item() == pytest.approx(
        (first + 3 * second) / 4
    )
    assert joint_loss(logits, [(torch.full((1, 1, 3), 255), 1)], weights, "sources").item() == 0


def test_the_average_follows_weights_and_buffers_faster_at_the_start():
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


def test_the_teacher_labels_only_unknown_pixels_of_which_it_is_confident():
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 2, 0] = 9.0  # confident of class 2 in the upper row
    known, all_classes = torch.tensor([[[False, True], [False, True]]]), torch.ones(1, 3, dtype=torch.bool)
    assert teacher_labels(logits, known, all_classes, 0.9).tolist() == [[[2, 255], [255, 255]]]


def test_the_teacher_may_not_predict_a_class_that_is_not_allowed():
    logits = torch.tensor([1.0, 5.0, 9.0]).view(1, 3, 1, 1)
    known = torch.zeros(1, 1, 1, dtype=torch.bool)
    guess = teacher_labels(logits, known, torch.tensor([[True, True, False]]), 0.9)
    assert guess.tolist() == [[[1]]]


def test_sources_are_balanced_by_source_or_by_pixel():
    logits = torch.tensor([[[[2.0, 0.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 1.0]]]])
    one, three = torch.tensor([[[0, 255, 255, 255]]]), torch.tensor([[[255, 0, 0, 0]]])
    small, large = np.log1p(np.exp(-2)), np.log1p(np.exp(1))
    both, even = [(one, 2.0), (three, 1.0)], torch.ones(2)
    assert joint_loss(logits, both, even, "sources").item() == pytest.approx((2 * small + large) / 3)
    assert joint_loss(logits, both, even, "pixels").item() == pytest.approx((2 * small + 3 * large) / 5)
    assert joint_loss(logits, [], even, "sources").item() == 0


@pytest.mark.parametrize(
    ("n_real", "n_generated", "epochs", "share"),
    [
        (16, 160, 33, 0.5),  # few real images are seen often enough anyway
        (320, 160, 12, 1.0),  # many in a short training: generated ones would displace them
        (320, 160, 24, 20 * 320 / (24 * 480)),
    ],
)
def test_the_share_of_real_images_depends_on_their_number_and_the_epochs(n_real, n_generated, epochs, share):
    config = TrainerConfig(epochs=epochs, real_share=0.5, real_passes=20)
    real = [True] * n_real + [False] * n_generated
    assert real_share(config, real) == pytest.approx(share)
    assert real_share(TrainerConfig(epochs=epochs, real_share=0.3, real_passes=0), real) == 0.3


def test_the_number_of_steps_does_not_depend_on_the_number_of_images():
    few, many = (epoch_steps(TrainerConfig(steps=250), n) for n in (40, 100_000))
    assert few == many
    assert (sum(few), len(few), max(few) - min(few)) == (250, 12, 1)
    assert epoch_steps(TrainerConfig(steps=3), 40) == (1, 1, 1)
    assert epoch_steps(TrainerConfig(steps=250, epochs=3), 40) == (3, 3, 3)
    assert epoch_steps(TrainerConfig(epochs=2, batch_size=8), 1) == (1, 1)
    real = [True] * 320 + [False] * 160
    assert real_share(TrainerConfig(steps=800, batch_size=16), real) == pytest.approx(20 * 320 / (800 * 16))
