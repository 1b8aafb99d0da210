"""Label maps of new images by a trained segmenter."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segsmith.datasets.objects import histogram
from segsmith.datasets.records import IMAGE_SUFFIXES
from segsmith.errors import SegsmithError
from segsmith.events import Notice
from segsmith.types import Image, LabelMap
from segsmith.workflows.progress import Screen, open_display

if TYPE_CHECKING:
    from torch import nn

NOTICE_EVERY = 32
"""Images between two lines of the progress display."""

Images = Image | str | Path | Iterable[Image | str | Path]


def predict(checkpoint: str | Path, images: Images) -> list[LabelMap]:
    """Label maps of images: one (H, W) uint8 array each, 0 background, 1.. the checkpoint's classes in their order.

    A segmenter whose training data has no background never predicts 0.

    Args:
        checkpoint: a ``segmenter.safetensors`` or the folder that holds it.
        images: (H, W, 3) uint8 RGB arrays, image files, or a folder, whose images are taken in order of their names.
            A single image, or an (N, H, W, 3) array, works too. Sizes may differ.

    Raises `SegsmithError` for a checkpoint that cannot be used, an image that cannot be read, or a folder without
    one.
    """
    return [label_map for _, _, label_map in _predict_each(checkpoint, images)]


def _predict_each(checkpoint: str | Path, images: Images) -> Iterator[tuple[str, Image, LabelMap]]:
    """(file name or number of the image, image, label map) of each image, a batch at a time."""
    from accelerate import Accelerator

    from segsmith.segmentation.checkpoint import load_segmenter
    from segsmith.segmentation.inference import images_together

    model, _ = load_segmenter(Path(checkpoint))
    model.to(Accelerator().device)
    batch: list[tuple[str, Image]] = []
    for name, image in _opened(images):
        most = images_together(*image.shape[:2])
        if batch and (len(batch) == most or batch[0][1].shape != image.shape):
            yield from _predicted(model, batch)
            batch = []
        batch.append((name, image))
    if batch:
        yield from _predicted(model, batch)


def write_predictions(
    checkpoint: str | Path,
    images: Images,
    out: str | Path,
    *,
    overlays: bool = True,
    screen: Screen | None = None,
) -> int:
    """Write the label map of each image to `out`; returns the number of images.

    ``masks/NAME.png`` are palette PNGs of class indices, ``overlays/NAME.png`` the images with their masks drawn over
    them, and ``shares.json`` the share of each image's pixels that each class covers, without classes that are
    absent. Its list of classes is in the order of the indices, with null for a background that the segmenter does not
    have. Names that only differ in their suffix keep it (``a.jpg.png``). `screen` shows the progress.

    Raises `SegsmithError` as `predict` does, and where `out` cannot be written.
    """
    from segsmith.datasets.palette import voc_palette
    from segsmith.files import local_folder, png_bytes, write_atomic
    from segsmith.review.terminal_image import overlay
    from segsmith.segmentation.checkpoint import load_segmenter

    folder = local_folder(out)
    meta = load_segmenter(Path(checkpoint))[1]
    names = ("background" if meta.background else None, *meta.classes)
    shares: dict[str, dict[str, float]] = {}
    stems: set[str] = set()
    with open_display(None, screen is not None, screen) as display:
        try:
            for name, image, label_map in _predict_each(checkpoint, images):
                stem = Path(name).stem
                stem = name if stem in stems else stem
                stems.add(stem)
                for kind, pixels, palette in (
                    ("masks", label_map, voc_palette()),
                    ("overlays", overlay(image, label_map) if overlays else None, None),
                ):
                    if pixels is not None:
                        (folder / kind).mkdir(parents=True, exist_ok=True)
                        write_atomic(folder / kind / f"{stem}.png", png_bytes(pixels, palette))
                counts = histogram(label_map)[: len(names)] / label_map.size
                shares[name] = {c: round(float(n), 6) for c, n in zip(names, counts, strict=True) if c and n}
                if len(shares) % NOTICE_EVERY == 0:
                    display.show(Notice(f"{len(shares)} images"))
            document = {"classes": names, "images": shares}
            write_atomic(folder / "shares.json", json.dumps(document, indent=1).encode())
        except OSError as error:
            raise SegsmithError(
                f"Cannot write to {folder}: {error.strerror}.", "Name another --out."
            ) from None
    return len(shares)


def _predicted(model: nn.Module, batch: list[tuple[str, Image]]) -> Iterator[tuple[str, Image, LabelMap]]:
    from segsmith.segmentation.inference import predict as run

    names, arrays = zip(*batch, strict=True)
    yield from zip(names, arrays, run(model, arrays), strict=True)


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
