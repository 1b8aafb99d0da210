"""Label maps of new images by a trained segmenter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segsmith.datasets.records import IMAGE_SUFFIXES
from segsmith.errors import SegsmithError
from segsmith.types import Image, LabelMap

if TYPE_CHECKING:
    from torch import nn

BATCH = 32
"""Images of one size that are predicted together."""

Images = Image | str | Path | Iterable[Image | str | Path]


def predict(checkpoint: str | Path, images: Images) -> list[LabelMap]:
    """Label maps of images: one (H, W) uint8 array each, 0 background, 1.. the checkpoint's classes in their order.

    Args:
        checkpoint: a ``segmenter.safetensors`` or the folder that holds it.
        images: (H, W, 3) uint8 RGB arrays, image files, or a folder, whose images are taken in order of their names.
            A single image, or an (N, H, W, 3) array, works too. Sizes may differ.

    Raises `SegsmithError` for a checkpoint that cannot be used, an image that cannot be read, or a folder without
    one.
    """
    return [label_map for _, label_map in predict_each(checkpoint, images)]


def predict_each(checkpoint: str | Path, images: Images) -> Iterator[tuple[str, LabelMap]]:
    """(file name or number of the image, label map) of each image, a batch at a time."""
    from accelerate import Accelerator

    from segsmith.segmentation.checkpoint import load_segmenter

    model, _ = load_segmenter(Path(checkpoint))
    model.to(Accelerator().device)
    batch: list[tuple[str, Image]] = []
    for name, image in _opened(images):
        if batch and (len(batch) == BATCH or batch[0][1].shape != image.shape):
            yield from _predicted(model, batch)
            batch = []
        batch.append((name, image))
    if batch:
        yield from _predicted(model, batch)


def write_predictions(checkpoint: str | Path, images: Images, out: str | Path) -> int:
    """Write the label map of each image as a palette PNG under the image's name to `out`; returns their number.

    Raises `SegsmithError` as `predict` does, and where `out` cannot be written.
    """
    from segsmith.datasets.palette import voc_palette
    from segsmith.files import png_bytes, write_atomic

    folder, count = Path(out), 0
    try:
        for name, label_map in predict_each(checkpoint, images):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / f"{Path(name).stem}.png", png_bytes(label_map, voc_palette()))
            count += 1
    except OSError as error:
        raise SegsmithError(f"Cannot write to {folder}: {error.strerror}.", "Name another --out.") from None
    return count


def _predicted(model: nn.Module, batch: list[tuple[str, Image]]) -> Iterator[tuple[str, LabelMap]]:
    from segsmith.segmentation.inference import predict as run

    names, arrays = zip(*batch, strict=True)
    yield from zip(names, run(model, arrays), strict=True)


def _opened(images: Images) -> Iterator[tuple[str, Image]]:
    for number, image in enumerate(_listed(images)):
        if isinstance(image, str | Path):
            yield Path(image).name, _read(Path(image))
        else:
            yield str(number), _checked(np.asarray(image), number)


def _listed(images: Images) -> Iterable[Image | str | Path]:
    if isinstance(images, np.ndarray):
        return [images] if images.ndim == 3 else images
    if not isinstance(images, str | Path):
        return images
    if not Path(images).is_dir():
        return [images]
    files = sorted(path for path in Path(images).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise SegsmithError(
            f"{images} holds no image.", f"Name a folder with {', '.join(IMAGE_SUFFIXES)} files."
        )
    return files


def _read(path: Path) -> Image:
    from segsmith.files import read_image

    try:
        return read_image(path)
    except (OSError, ValueError) as error:
        raise SegsmithError(f"{path} cannot be read: {error}.", "Name an image file.") from None


def _checked(image: Image, number: int) -> Image:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise SegsmithError(
            f"Image {number} is {image.dtype} of shape {image.shape}.", "Pass (H, W, 3) uint8 RGB arrays."
        )
    return image
