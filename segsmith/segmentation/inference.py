"""Use of a trained segmenter: predict label maps, and score it on a dataset."""

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
from segsmith.device_memory import Batches
from segsmith.devices import autocast, choose_dtype
from segsmith.errors import SegsmithError
from segsmith.segmentation.checkpoint import SegmenterMeta, load_segmenter
from segsmith.segmentation.metrics import SegmentationScore, score_pairs
from segsmith.segmentation.network import STRIDE, input_size, normalise
from segsmith.segmentation.sources import LabelSources, Prediction

PREDICT_BATCH = 32
"""Maximum number of images per forward pass."""
PREDICT_BYTES = 2 << 30
"""Memory that the activations of one forward pass may take."""
PIXEL_BYTES = 330
CLASS_BYTES = 12
"""Peak of a DeepLabV3+ in float32: bytes per pixel, and per pixel and class (`benchmarks/gpu_memory.py`)."""
WINDOW = 1024
"""Side in pixels of the windows in which larger images are predicted; a forward pass has at most as many pixels."""
OVERLAP = 128
"""Pixels at a window's border whose predictions come from its neighbour, which sees more around them."""


def images_together(height: int, width: int) -> int:
    """Number of `height` x `width` images to read before they are predicted: `PREDICT_BATCH`, or fewer large ones."""
    return max(1, min(PREDICT_BATCH, PREDICT_BATCH * WINDOW**2 // max(1, height * width)))


def predict_batch(height: int, width: int, n_classes: int) -> int:
    """Number of `height` x `width` images per forward pass, so that it stays within `PREDICT_BYTES`; at least 1."""
    per_image = height * width * (PIXEL_BYTES + CLASS_BYTES * n_classes)
    return max(1, min(PREDICT_BATCH, PREDICT_BYTES // per_image))


def predict(
    model: nn.Module,
    images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    precision: str = "auto",
) -> NDArray[np.uint8]:
    """Predict label maps: (N, H, W, 3) uint8 RGB images of one size -> (N, H, W) uint8, 0 is background.

    Any image size works: inputs are padded for the network, and images of more than ``WINDOW ** 2`` pixels are
    predicted in overlapping windows, so that memory is bounded. Index i is the checkpoint's class i - 1. `precision`
    is that of `segsmith.devices.choose_dtype`. Raises `SegsmithError` if memory is too small for one image.
    """
    if not len(images):
        return np.zeros((0, 0, 0), np.uint8)
    height, width = input_size(model, images[0].shape[:2])
    size = predict_batch(height, width, _n_outputs(model)) if height * width <= WINDOW**2 else 1
    memory = Batches(
        size, f"predicting one image of {width} x {height} px", "Use smaller images, or run on a CPU."
    )

    def work(start: int, stop: int) -> Tensor:
        pixels = torch.from_numpy(np.stack(list(images[start:stop]))).permute(0, 3, 1, 2)
        return _labels(model, pixels, precision)

    batches = list(memory.run(len(images), work))
    return torch.cat(batches).numpy()


class LabelledImages(Protocol):
    """The data that `evaluate_on` reads: a `VocFolder`, or a split of any other dataset."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, from index 1."""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of every image."""

    def __len__(self) -> int: ...

    def raw(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """An image as (H, W, 3) uint8 RGB, and its (H, W) uint8 label map; 255 is unknown."""


def evaluate(checkpoint: Path, dataset_root: Path, split: str = "test") -> SegmentationScore:
    """Score a checkpoint on one split of a dataset in VOC layout, at each label map's resolution.

    Raises `SegsmithError` if the checkpoint or the dataset cannot be read, or if they do not have the same classes
    in the same order.
    """
    return evaluate_on(checkpoint, lambda _: VocFolder(dataset_root, split))


def evaluate_on(checkpoint: Path, open_data: Callable[[SegmenterMeta], LabelledImages]) -> SegmentationScore:
    """Score a checkpoint on the data that `open_data` returns for the checkpoint's description.

    Background counts as a class where the checkpoint has it; otherwise pixels that are 0 are not counted.

    Raises `SegsmithError` if the checkpoint cannot be read, or if the data has other classes or another order.
    """
    pairs, meta = pairs_of_checkpoint(checkpoint, open_data)
    return score_pairs(pairs, meta.classes, meta.background)


def pairs_of_checkpoint(
    checkpoint: Path, open_data: Callable[[SegmenterMeta], LabelledImages]
) -> tuple[Iterator[tuple[Tensor, Tensor]], SegmenterMeta]:
    """`predicted_pairs` of a checkpoint, and its description, for which `open_data` returns the data.

    Raises `SegsmithError` as `evaluate_on` does.
    """
    model, meta = load_segmenter(checkpoint)
    data = open_data(meta)
    if meta.classes != data.classes:
        raise SegsmithError(
            f"The checkpoint has the classes {', '.join(meta.classes)}; the dataset has "
            f"{', '.join(data.classes)}.",
            "Evaluate on a dataset with the same classes in the same order.",
        )
    return predicted_pairs(model.to(Accelerator().device), data), meta


def predicted_pairs(
    model: nn.Module, data: LabelledImages, precision: str = "auto"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of (B, H, W) predicted and true label maps, in batches of images of one size, in the split's order."""
    start = 0
    while start < len(data):
        size = data.sizes[start]
        stop, most = start + 1, images_together(*size)
        while stop < len(data) and stop - start < most and data.sizes[stop] == size:
            stop += 1
        images, labels = zip(*(data.raw(i) for i in range(start, stop)), strict=True)
        yield torch.from_numpy(predict(model, images, precision)), torch.from_numpy(np.stack(labels))
        start = stop


def teacher_predictions(model: nn.Module, sources: LabelSources) -> Iterator[Prediction]:
    """The prediction of the teacher `model` for each image of a training split, in order, at the image's size.

    Only the classes that the image can show are considered (`LabelSources.allowed`).
    """
    for index in range(len(sources)):
        image = torch.from_numpy(sources.data.raw(index)[0]).permute(2, 0, 1)[None]
        given = image.shape[-2:]
        image = fit(image, input_size(model, (given[0], given[1])))
        impossible = ~sources.allowed(index).to(next(model.parameters()).device)
        labels, confidence = torch.empty(image.shape[-2:], dtype=torch.uint8), torch.empty(image.shape[-2:])
        for seen, kept, inside in windows(*image.shape[-2:]):
            logits = _logits(model, image[(..., *seen)])[0]
            scores = logits.float().masked_fill(impossible[:, None, None], -torch.inf).softmax(0)
            best, chosen = scores[(..., *inside)].max(dim=0)
            confidence[kept], labels[kept] = best.cpu(), chosen.to(torch.uint8).cpu()
        if given != image.shape[-2:]:
            labels = F.interpolate(labels[None, None], given, mode="nearest-exact")[0, 0]
            confidence = F.interpolate(confidence[None, None], given, mode="bilinear")[0, 0]
        yield Prediction(labels.numpy(), confidence.numpy())


def checkpoint_predictions(
    checkpoint: Path, dataset_root: Path, drawn_classes_only: bool
) -> Iterator[Prediction]:
    """`teacher_predictions` of a trained segmenter for split train of a dataset in VOC layout."""
    model, _ = load_segmenter(checkpoint)
    sources = LabelSources(VocFolder(dataset_root, "train"), drawn_classes_only)
    return teacher_predictions(model.to(Accelerator().device), sources)


def _n_outputs(model: nn.Module) -> int:
    """Number of classes with the background, from the last convolution."""
    heads = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    return heads[-1].out_channels if heads else 1


def _labels(model: nn.Module, images: Tensor, precision: str) -> Tensor:
    """Label maps (B, H, W) uint8 on the CPU for (B, 3, H, W) uint8 RGB images.

    Where the model wants another size (`input_size`), each pixel gets the label of the nearest resized pixel.
    """
    given, wanted = images.shape[-2:], input_size(model, (images.shape[-2], images.shape[-1]))
    images = fit(images, wanted)
    labels = torch.empty((len(images), *images.shape[-2:]), dtype=torch.uint8)
    for seen, kept, inside in windows(*images.shape[-2:]):
        logits = _logits(model, images[(..., *seen)], precision)[(..., *inside)]
        labels[(..., *kept)] = logits.argmax(dim=1).to(torch.uint8).cpu()
    return labels if given == wanted else F.interpolate(labels[:, None], given, mode="nearest-exact")[:, 0]


def fit(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) uint8 images, resized to `size` (H, W)."""
    if images.shape[-2:] == size:
        return images
    return (
        F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
    )


Part = tuple[slice, slice]
"""Rows and columns of an image."""


def windows(height: int, width: int) -> Iterator[tuple[Part, Part, Part]]:
    """Windows that cover an image of (H, W) pixels: what each sees, what is kept of it, and where that is inside.

    An image of at most ``WINDOW ** 2`` pixels is one window. The kept parts cover the image once; away from the
    image's border they are `OVERLAP` pixels inside of what the window sees.
    """
    if height * width <= WINDOW**2:
        whole = slice(0, height), slice(0, width)
        yield whole, whole, whole
        return
    for rows in _spans(height):
        for columns in _spans(width):
            seen, kept, inside = zip(rows, columns, strict=True)
            yield seen, kept, inside


def _spans(length: int) -> Iterator[tuple[slice, slice, slice]]:
    """`windows` in one direction."""
    step = WINDOW - 2 * OVERLAP
    for start in range(0, length, step):
        stop = min(start + step, length)
        low, high = max(0, start - OVERLAP), min(length, stop + OVERLAP)
        yield slice(low, high), slice(start, stop), slice(start - low, stop - low)


@torch.inference_mode()
def _logits(model: nn.Module, images: Tensor, precision: str = "auto") -> Tensor:
    """Logits (B, C + 1, H, W) for (B, 3, H, W) uint8 RGB images, in the dtype of `precision`."""
    height, width = images.shape[-2:]
    device = next(model.parameters()).device
    padded = F.pad(
        images.to(device).float() / 255, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate"
    )
    with autocast(str(device), choose_dtype(str(device), precision)):
        logits: Tensor = model.eval()(normalise(model, padded).to(memory_format=torch.channels_last))
    return logits[..., :height, :width]
