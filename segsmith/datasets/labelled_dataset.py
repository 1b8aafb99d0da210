"""A labelled dataset of any format, as `validate`, `evaluate` and imports see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

Pixels = tuple[NDArray[np.uint8], NDArray[np.uint8] | None]
"""(H, W, 3) RGB image and (H, W) label map: 0 background, i the i-th class, 255 unknown; None without masks."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class Problem:
    """Something wrong with a dataset: a kind from `segsmith.datasets.validate`, the file, and a sentence."""

    kind: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.text}"


class DataError(Exception):
    """An item cannot be read as it should; `problem` says why."""

    def __init__(self, kind: str, where: object, text: str) -> None:
        self.problem = Problem(kind, str(where), text)
        super().__init__(str(self.problem))


@dataclass(frozen=True)
class Item:
    """One image. `load` reads its pixels, or raises `DataError`.

    `labels` are the image labels where the format states them; `image_path` is None inside a shard.
    """

    id: str
    split: str
    where: str
    load: Callable[[], Pixels]
    labels: tuple[str, ...] | None = None
    image_path: Path | None = None


@dataclass
class LabelledDataset:
    """`items` is walked as often as one likes; `problems` are those found without reading pixels.

    A format without splits puts everything into split "". `exact_images` is False where the format stores
    JPEG, so that a comparison with the original must allow for it. `knows_background` is False where 0 in a
    label map may also mean that nobody drew there.
    """

    format: str
    root: Path
    classes: tuple[str, ...]
    items: Iterable[Item]
    problems: list[Problem] = field(default_factory=list)
    has_label_maps: bool = True
    exact_images: bool = True
    knows_background: bool = True

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)


def open_picture(path: Path, kind: str = "corrupt_image") -> PILImage.Image:
    """A decoded picture; `DataError` of `kind`, or "missing_file", where that fails."""
    try:
        with PILImage.open(path) as picture:
            picture.load()
            return picture
    except FileNotFoundError:
        raise DataError("missing_file", path.name, "the file is not there") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(kind, path.name, f"cannot be decoded ({error})") from None


def rgb(picture: PILImage.Image) -> NDArray[np.uint8]:
    """(H, W, 3) uint8."""
    return np.asarray(picture.convert("RGB"))


def indices(picture: PILImage.Image, where: object) -> NDArray[np.uint8]:
    """(H, W) uint8 of a palette or grey picture; `DataError` for anything else."""
    if picture.mode not in ("P", "L", "1"):
        raise DataError("colour_mask", where, f"is a {picture.mode} picture, not an index map")
    return np.asarray(picture.convert("L") if picture.mode == "1" else picture)


def stray_masks(root: Path, folder: str, listed: set[str]) -> list[Problem]:
    """The PNGs of a mask folder that no list names."""
    return [
        Problem("stray_file", f"{folder}/{path.name}", "is in no image set")
        for path in sorted((root / folder).glob("*.png"))
        if path.stem not in listed
    ]


def lossless(items: Iterable[Item]) -> bool:
    """Are all images PNG, so that they can be compared exactly?"""
    return all(item.image_path is None or item.image_path.suffix == ".png" for item in items)
