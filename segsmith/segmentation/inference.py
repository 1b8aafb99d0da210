"""Use of a trained segmenter: label maps of pictures, and a score on a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from segsmith.datasets.voc_folder import VocFolder
from segsmith.errors import SegsmithError
from segsmith.segmentation.checkpoint import load_segmenter
from segsmith.segmentation.metrics import SegmentationScore, score_pairs
from segsmith.segmentation.network import STRIDE, normalise
from segsmith.segmentation.sources import LabelSources, Opinion

PREDICT_BATCH = 32


def predict(model: nn.Module, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Label maps (N, H, W) uint8, 0 background, of (N, H, W, 3) uint8 RGB images of one size, any size."""
    batches = [
        _predict_batch(
            model, torch.from_numpy(np.stack(list(images[i : i + PREDICT_BATCH]))).permute(0, 3, 1, 2)
        )
        for i in range(0, len(images), PREDICT_BATCH)
    ]
    return torch.cat(batches).numpy() if batches else np.zeros((0, 0, 0), np.uint8)


class LabelledImages(Protocol):
    """What `evaluate_on` reads: a `VocFolder`, or a split of any other dataset."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of index 1 and up."""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of every image."""

    def __len__(self) -> int: ...

    def raw(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """(H, W, 3) uint8 image and (H, W) uint8 label map."""


def evaluate(checkpoint: Path, dataset_root: Path, split: str = "test") -> SegmentationScore:
    """Score a checkpoint on one split in VOC's layout, at the size of each label.

    Raises `SegsmithError` when checkpoint and dataset do not have the same classes in the same order.
    """
    return evaluate_on(checkpoint, lambda _: VocFolder(dataset_root, split))


def evaluate_on(
    checkpoint: Path, open_data: Callable[[tuple[str, ...]], LabelledImages]
) -> SegmentationScore:
    """Score a checkpoint on what `open_data` gives for the checkpoint's classes.

    Raises `SegsmithError` when the data has not those classes in that order.
    """
    model, meta = load_segmenter(checkpoint)
    data = open_data(meta.classes)
    if meta.classes != data.classes:
        raise SegsmithError(
            f"The checkpoint knows the classes {', '.join(meta.classes)}; the dataset has "
            f"{', '.join(data.classes)}.",
            "Evaluate on a dataset with the same classes in the same order.",
        )
    return score_pairs(predicted_pairs(model.to(Accelerator().device), data), data.classes)


def predicted_pairs(model: nn.Module, data: LabelledImages) -> Iterator[tuple[Tensor, Tensor]]:
    """(prediction, truth) label maps in batches of one size, in the order of the split."""
    start = 0
    while start < len(data):
        size = data.sizes[start]
        stop = start + 1
        while stop < len(data) and stop - start < PREDICT_BATCH and data.sizes[stop] == size:
            stop += 1
        images, labels = zip(*(data.raw(i) for i in range(start, stop)), strict=True)
        yield torch.from_numpy(predict(model, images)), torch.from_numpy(np.stack(labels))
        start = stop


def opinions(model: nn.Module, sources: LabelSources) -> Iterator[Opinion]:
    """What the teacher `model` sees in each picture of a training split, in order, at the picture's size.

    Classes that a picture cannot show are out of the question (`LabelSources.allowed`).
    """
    for index in range(len(sources)):
        image = torch.from_numpy(sources.data.raw(index)[0]).permute(2, 0, 1)[None]
        impossible = ~sources.allowed(index).to(next(model.parameters()).device)
        scores = _logits(model, image)[0].masked_fill(impossible[:, None, None], -torch.inf).softmax(0)
        confidence, labels = scores.max(dim=0)
        yield Opinion(labels.to(torch.uint8).cpu().numpy(), confidence.cpu().numpy())


def opinions_of(checkpoint: Path, dataset_root: Path, drawn_classes_only: bool) -> Iterator[Opinion]:
    """`opinions` of a finished segmenter on split train of a VOC-layout dataset."""
    model, _ = load_segmenter(checkpoint)
    sources = LabelSources(VocFolder(dataset_root, "train"), drawn_classes_only)
    return opinions(model.to(Accelerator().device), sources)


def _predict_batch(model: nn.Module, images: Tensor) -> Tensor:
    return _logits(model, images).argmax(dim=1).to(torch.uint8).cpu()


@torch.inference_mode()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """(B, C + 1, H, W) float32 of (B, 3, H, W) uint8, at the same size."""
    height, width = images.shape[-2:]
    device = next(model.parameters()).device
    padded = F.pad(
        images.to(device).float() / 255, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate"
    )
    logits: Tensor = model.eval()(normalise(model, padded).to(memory_format=torch.channels_last))
    return logits[..., :height, :width].float()
