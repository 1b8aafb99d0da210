"""Large images are predicted in windows: each pixel once, in bounded memory, and as in one piece."""

import numpy as np
import pytest
import torch
from torch import nn

from segsmith.segmentation import inference
from segsmith.segmentation.inference import predict, teacher_predictions, windows
from segsmith.segmentation.sources import LabelSources


class Brightness(nn.Module):
    """Logits that follow from the pixel alone: background where it is dark, class 1 where it is bright."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("pixel_mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.ones(1, 3, 1, 1))
        self.largest = 0

    def forward(self, images):
        self.largest = max(self.largest, images.shape[0] * images.shape[2] * images.shape[3])
        bright = images.mean(dim=1, keepdim=True)
        return torch.cat([1 - bright, bright], dim=1) + self.bias


@pytest.mark.parametrize(
    "size", [(64, 64), (1024, 1024), (1500, 900), (5000, 300), (1, 3_000_000), (769, 1537)]
)
def test_windows_cover_each_pixel_once(size):
    seen_often = np.zeros(size, np.uint8)
    for seen, kept, inside in windows(*size):
        seen_often[kept] += 1
        assert (seen[0].stop - seen[0].start) * (seen[1].stop - seen[1].start) <= inference.WINDOW**2
        for whole, part, relative in zip(seen, kept, inside, strict=True):
            assert (whole.start + relative.start, whole.start + relative.stop) == (part.start, part.stop)
    assert (seen_often == 1).all()


def test_a_large_image_is_predicted_as_in_one_piece(monkeypatch):
    monkeypatch.setattr(inference, "WINDOW", 96)
    monkeypatch.setattr(inference, "OVERLAP", 16)
    model = Brightness()
    images = np.random.default_rng(0).integers(0, 256, (2, 250, 130, 3), np.uint8)
    assert (predict(model, images) == (images.mean(axis=3) > 127.5)).all()
    assert model.largest <= 96**2


def test_a_long_thin_image_is_predicted_in_one_row_of_windows(monkeypatch):
    monkeypatch.setattr(inference, "WINDOW", 96)
    monkeypatch.setattr(inference, "OVERLAP", 16)
    model = Brightness()
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 20_000, 3), np.uint8)
    assert (predict(model, images) == (images.mean(axis=3) > 127.5)).all()
    assert model.largest <= 96 * 32


def test_the_teacher_predicts_in_windows_too(monkeypatch):
    """Its labels and confidence are the same as in one piece."""
    monkeypatch.setattr(inference, "OVERLAP", 16)
    model, rng = Brightness(), np.random.default_rng(0)

    class Data:
        classes = ("bright",)

        def raw(self, index):
            return rng.integers(0, 256, (250, 130, 3), np.uint8), np.zeros((250, 130), np.uint8)

        def __len__(self):
            return 1

    def predictions():
        nonlocal rng
        rng = np.random.default_rng(0)
        return next(teacher_predictions(model, LabelSources(Data(), drawn_classes_only=False)))

    whole = predictions()
    monkeypatch.setattr(inference, "WINDOW", 96)
    parts = predictions()
    assert np.array_equal(whole.labels, parts.labels)
    assert np.allclose(whole.confidence, parts.confidence)
    assert whole.labels.any()
