"""Small pictures inside the page: photos, see-through masks with name tags, and which ones to show."""

from __future__ import annotations

import base64
import colorsys
import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy import ndimage

from segsmith.datasets.palette import VOID
from segsmith.files import read_image, read_index_map

SIDE = 128
"""Longest side of a picture that stands in the page itself, pixels."""
JPEG_QUALITY = 82
TAG_MIN_SHARE = 0.015
"""Regions below this share of the picture get no name tag; it would cover them."""
TAG_WIDTH, TAG_HEIGHT = 40, 16
"""Of a name in a small picture, percent of its side; roughly."""

# The first seven are Okabe and Ito's, made to be told apart without full colour vision, with a yellow that
# still shows on white; past eight classes the shape, not the colour, tells them apart.
HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#c2b200", "#7f6fd0")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "wedge", "bar", "hexagon")
"""Shapes that stand for classes beside their colours; the page's style sheet and its map draw them."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Tag:
    """A class name to write on a mask, at (x, y) in percent of the picture."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Overlay:
    """A mask as a data URI (PNG, transparent background) and the names that go on it."""

    uri: str
    tags: tuple[Tag, ...]


def class_colour(index: int) -> str:
    """The ``#rrggbb`` in which the page shows class `index` (from 1); all indices differ."""
    if index <= len(HUES):
        return HUES[index - 1]
    turn = index * 0.6180339887 % 1
    red, green, blue = colorsys.hls_to_rgb(turn, 0.45 + 0.12 * (index % 3 - 1), 0.55)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def class_shape(index: int) -> int:
    """Which of `SHAPES` stands for class `index` (from 1)."""
    return (index - 1) % len(SHAPES)


def small_photo(path: Path, side: int) -> PILImage.Image | None:
    """The picture at most `side` pixels wide and high; None when there is no readable one."""
    try:
        picture = PILImage.fromarray(read_image(path))
    except OSError:
        return None
    picture.thumbnail((side, side), PILImage.Resampling.LANCZOS)
    return picture


def small_mask(path: Path, side: int) -> NDArray[np.uint8] | None:
    """The (H, W) index map, at most `side` wide and high; None when there is no readable one."""
    try:
        picture = PILImage.fromarray(read_index_map(path))
    except OSError:
        return None
    picture.thumbnail((side, side), PILImage.Resampling.NEAREST)
    return np.asarray(picture)


def painted(mask: NDArray[np.uint8], classes: int) -> PILImage.Image:
    """An index map as a palette picture in the page's colours; index 0 is see-through, 255 is hatched."""
    y, x = np.indices(mask.shape)
    hatched = np.where((mask == VOID) & ((x + y) % 6 >= 3), 0, mask).astype(np.uint8)
    picture = PILImage.fromarray(hatched).convert("P")
    picture.putpalette(_colours(classes).tobytes())
    return picture


def thumbnail(path: Path) -> str | None:
    """Data URI of a JPEG; None when there is no readable picture."""
    picture = small_photo(path, SIDE)
    if picture is None:
        return None
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return _uri("jpeg", buffer)


def overlay(path: Path, classes: Sequence[str]) -> Overlay | None:
    """The index map at `path`, small and see-through; None when there is no readable mask."""
    mask = small_mask(path, SIDE)
    if mask is None:
        return None
    buffer = io.BytesIO()
    painted(mask, len(classes)).save(buffer, "PNG", transparency=0, optimize=True)
    return Overlay(_uri("png", buffer), tuple(name_tags(mask, classes)))


def spread(items: Sequence[Item], key: Callable[[Item], str], limit: int) -> list[Item]:
    """At most `limit` items, taken from the keys in turn, each key's items in their order."""
    piles: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        piles[key(item)].append(item)
    depth = max((len(pile) for pile in piles.values()), default=0)
    turns = (pile[k] for k in range(depth) for pile in piles.values() if k < len(pile))
    return [item for item, _ in zip(turns, range(limit), strict=False)]


def _colours(classes: int) -> NDArray[np.uint8]:
    colours = np.zeros((256, 3), np.uint8)
    for index in range(1, classes + 1):
        colours[index] = [int(class_colour(index)[k : k + 2], 16) for k in (1, 3, 5)]
    colours[VOID] = 235
    return colours


def name_tags(mask: NDArray[np.uint8], classes: Sequence[str]) -> list[Tag]:
    """Where to write the names of the classes on a mask: above the largest region of each, not on each other.

    Places are percents from edge to edge as in CSS's ``object-position``: at 100 a name ends at the edge.
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


def _uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
