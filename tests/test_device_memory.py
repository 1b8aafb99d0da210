"""Running out of memory is recognised whoever reports it, and every stage continues with smaller batches."""

import numpy as np
import pytest
import torch
from torch import nn

from segsmith.device_memory import Batches, is_out_of_memory
from segsmith.errors import SegsmithError
from segsmith.segmentation.inference import PREDICT_BATCH, images_together, predict, predict_batch
from segsmith.tools.vision.clip import OpenClipEncoder
from segsmith.tools.vision.sam import SamSegmenter
from segsmith.tools.vision.vit import TimmPatchClassifier

CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        RuntimeError(CUBLAS),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        MemoryError(),
    ],
    ids=str,
)
def test_failed_allocations_are_recognised(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        ValueError("out of memory"),
    ],
    ids=str,
)
def test_other_errors_are_not_out_of_memory(error):
    assert not is_out_of_memory(error)


def test_a_batch_that_does_not_fit_is_halved_and_the_size_is_kept():
    tried = []

    def work(start, stop):
        tried.append((start, stop))
        if stop - start > 3:
            raise RuntimeError(CUBLAS)
        return list(range(start, stop))

    batches = Batches(12, "one thing", "Buy memory.")
    assert [n for part in batches.run(8, work) for n in part] == list(range(8))
    assert tried == [(0, 8), (0, 4), (0, 2), (2, 4), (4, 6), (6, 8)]
    assert batches.size == 2


def test_too_little_memory_for_one_item_names_the_stage_and_the_remedy():
    def work(start, stop):
        raise RuntimeError(CUBLAS)

    with pytest.raises(SegsmithError, match=r"for one thing .*CUBLAS_STATUS_ALLOC_FAILED.*Buy memory"):
        list(Batches(4, "one thing", "Buy memory.").run(4, work))


def at_most(module, limit):
    """Make the forward pass of `module` fail for larger batches; returns the sizes it is called with."""
    sizes = []

    def check(_, args):
        sizes.append(len(args[0]))
        if len(args[0]) > limit:
            raise RuntimeError(CUBLAS)

    return sizes, module.register_forward_pre_hook(check)


def images(count, side=128):
    return list(np.random.default_rng(0).integers(0, 255, (count, side, side, 3), dtype=np.uint8))


def test_clip_continues_with_smaller_batches():
    encoder = OpenClipEncoder.load("mini", "cpu")
    expected = encoder.embed_images(images(5))
    sizes, _ = at_most(encoder.tower, 2)
    np.testing.assert_allclose(encoder.embed_images(images(5)), expected, atol=1e-5)
    assert sizes == [5, 2, 2, 1]


def test_sam_continues_with_smaller_batches():
    sam = SamSegmenter.load("mini", "cpu")
    points = [[np.full((3, 2), 20.0 * (k + 1), np.float32) for k in range(3)]] * 3
    expected = sam.segment_many(images(3), points)
    sizes, _ = at_most(sam._sam.image_encoder, 1)
    found = sam.segment_many(images(3), points)
    assert sizes == [3, 1, 1, 1]
    np.testing.assert_allclose(found[2][1].scores, expected[2][1].scores, atol=1e-4)


def test_the_vit_trains_and_predicts_in_smaller_batches(monkeypatch):
    from segsmith.config import LabelerConfig
    from segsmith.tools.vision.patch_head import PatchHead

    encoder = OpenClipEncoder.load("mini", "cpu")
    settings = LabelerConfig(folds=2, epochs=2, batch_size=4)
    labels = np.eye(2, dtype=np.float32)[[0, 1] * 4]

    def scores():
        vit = TimmPatchClassifier.from_encoder(encoder, 2, settings, 0)
        return vit.out_of_fold(images(8), labels, [str(i // 2) for i in range(8)])

    expected = scores()
    forward = PatchHead.forward

    def only_two(self, tokens):
        if len(tokens) > 2 and self.training:
            raise RuntimeError(CUBLAS)
        return forward(self, tokens)

    monkeypatch.setattr(PatchHead, "forward", only_two)
    monkeypatch.setattr("segsmith.tools.vision.patch_head.CALIBRATION_BATCH", 2)
    found = scores()
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=2e-3)


class Network(nn.Module):
    """As much of a segmenter as `predict` uses."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 4, 1)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
        self.register_buffer("pixel_std", torch.ones(3, 1, 1))

    def forward(self, x):
        return self.head(x)


def test_predicting_continues_with_smaller_batches():
    model = Network()
    expected = predict(model, images(5))
    sizes, _ = at_most(model, 2)
    assert np.array_equal(predict(model, images(5)), expected)
    assert sizes == [5, 2, 2, 1]


def test_a_forward_pass_of_large_images_or_many_classes_takes_fewer_of_them():
    assert predict_batch(128, 128, 5) == PREDICT_BATCH
    assert images_together(1024, 1024) == PREDICT_BATCH
    assert images_together(4096, 4096) == 2
    assert images_together(7000, 7000) == 1
    assert predict_batch(1024, 1024, 5) < 8
    assert 1 <= predict_batch(1024, 1024, 81) < predict_batch(1024, 1024, 5)
    assert predict_batch(8000, 8000, 100) == 1
