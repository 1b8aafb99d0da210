"""Thumbnails for the page: photos, and masks with a transparent background and the names of their classes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy import ndimage

from segsmith.datasets.palette import VOID
from segsmith.files import read_image, read_index_map
from segsmith.report.theme import class_colour

SIDE = 128
"""Longest side of an image that is part of the page itself, in pixels."""
JPEG_QUALITY = 82
TAG_MIN_SHARE = 0.015
"""A region smaller than this share of the image gets no name tag, which would cover it."""
TAG_WIDTH, TAG_HEIGHT = 40, 16
"""Approximate size of a name tag, in percent of the image's sides."""
VOID_GREY = 235

Content = TypeVar("Content")


@dataclass(frozen=True)
class Tag:
    """A class name to write on a mask, at (x, y) in percent of the image."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Overlay:
    """A mask as a data URI (PNG, transparent background) and the names to write on it."""

    uri: str
    tags: tuple[Tag, ...]


def small_photo(path: Path, side: int) -> PILImage.Image | None:
    """The image at most `side` pixels wide and high; None for a missing or unreadable file."""
    pixels = _read(read_image, path)
    if pixels is None:
        return None
    photo = PILImage.fromarray(pixels)
    photo.thumbnail((side, side), PILImage.Resampling.LANCZOS)
    return photo


def small_mask(path: Path, side: int) -> NDArray[np.uint8] | None:
    """The (H, W) index map, at most `side` wide and high; None for a file that is no index map."""
    indices = _read(read_index_map, path)
    if indices is None:
        return None
    small = PILImage.fromarray(indices)
    small.thumbnail((side, side), PILImage.Resampling.NEAREST)
    return np.asarray(small)


def painted(mask: NDArray[np.uint8], classes: int) -> PILImage.Image:
    """An index map as a palette image in the page's colours; index 0 is transparent, 255 is hatched."""
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    hatched = np.where((mask == VOID) & ((x + y) % 6 >= 3), 0, mask).astype(np.uint8)
    image = PILImage.fromarray(hatched).convert("P")
    image.putpalette(_colours(classes))
    return image


def photo_uri(path: Path) -> str | None:
    """Data URI of a JPEG thumbnail; None for a missing or unreadable file."""
    photo = small_photo(path, SIDE)
    if photo is None:
        return None
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return _data_uri("jpeg", buffer)


def mask_overlay(path: Path, classes: Sequence[str]) -> Overlay | None:
    """Thumbnail of the index map at `path`; None for a file that is no index map."""
    mask = small_mask(path, SIDE)
    if mask is None:
        return None
    buffer = io.BytesIO()
    painted(mask, len(classes)).save(buffer, "PNG", transparency=0, optimize=True)
    return Overlay(_data_uri("png", buffer), tuple(name_tags(mask, classes)))


def name_tags(mask: NDArray[np.uint8], classes: Sequence[str]) -> list[Tag]:
    """Where to write the names of the classes on a mask: above the largest region of each, without overlap.

    Places are in percent from edge to edge, as in CSS's ``object-position``: at x = 100 a tag ends at the right edge.
    """
    tags: list[Tag] = []
    for index in sorted(set(np.unique(mask).tolist()) - {0, VOID}):
        region = mask == index
        if index > len(classes) or region.mean() < TAG_MIN_SHARE:
            continue
        blobs, _ = ndimage.label(region)
        largest = 1 + int(np.bincount(blobs.ravel())[1:].argmax())
        rows, columns = ndimage.find_objects(blobs)[largest - 1]
        height, width = mask.shape
        # Above the object, so that the name does not cover it.
        x = 50 * (columns.start + columns.stop) / width
        y = max(100 * rows.start / height - TAG_HEIGHT / 2, 0)
        while any(abs(x - t.x) < TAG_WIDTH and abs(y - t.y) < TAG_HEIGHT for t in tags):
            y += TAG_HEIGHT
        if y <= 100:
            tags.append(Tag(classes[index - 1], x, y))
    return tags


def _read(read: Callable[[Path], Content], path: Path) -> Content | None:
    try:
        return read(path)
    except (OSError, MemoryError):
        return None


@cache
def _colours(classes: int) -> bytes:
    """The palette of `painted`."""
    colours = np.zeros((256, 3), np.uint8)
    for index in range(1, min(classes, VOID - 1) + 1):
        colours[index] = [int(class_colour(index)[k : k + 2], 16) for k in (1, 3, 5)]
    colours[VOID] = VOID_GREY
    return colours.tobytes()


def _data_uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
