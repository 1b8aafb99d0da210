"""Masks of COCO annotations: RLE and polygons, checked before anything is allocated for them.

RLE is decoded here instead of by pycocotools, whose C code trusts the lengths it is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.palette import VOID
from segsmith.files import MAX_PIXELS

MAX_OUTLINE = 64
"""Longest outline of an annotation's polygons, as a multiple of the image's height plus width."""
MAX_COVER = 64
"""How often the annotations of an image may cover it."""
MARGIN = 10
"""How far a polygon may leave the image, as a multiple of the image's side."""
MAX_COORDINATE = 1e8
"""pycocotools multiplies coordinates by five and keeps them in 32 bits."""
EDGE_SLACK = 2.0
"""Pixels by which a polygon may leave the image without being reported."""
MAX_DIGITS = 10
"""Base-32 digits of a run length in compressed RLE."""


class MaskError(ValueError):
    """A segmentation that is not a mask of its image; the message completes "annotation 7 ..."."""


@dataclass(frozen=True)
class Runs:
    """A mask of (H, W) pixels: the lengths of its runs in column order, of 0 and 1 in turn, 0 first."""

    size: tuple[int, int]
    counts: NDArray[np.int64]

    @property
    def area(self) -> int:
        """Number of pixels of the mask."""
        return int(self.counts[1::2].sum())

    @property
    def spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First pixel of each run of 1, and the pixel after its last, counted down the columns."""
        ends = np.cumsum(self.counts)
        first, last = ends[0::2][: len(ends) // 2], ends[1::2]
        return first[last > first], last[last > first]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x, y, width, height) of a mask that is not empty."""
        first, after = self.spans
        height = self.size[0]
        left, right = first // height, (after - 1) // height
        crosses = bool(
            (left != right).any()
        )  # such a run holds the end of a column and the start of the next
        top = 0 if crosses else int((first % height).min())
        bottom = height - 1 if crosses else int(((after - 1) % height).max())
        x = int(left.min())
        return x, top, int(right.max()) - x + 1, bottom - top + 1


def is_number(value: Any) -> bool:
    """Is this JSON value a finite number? False for true and false, which are integers to Python."""
    return type(value) in (int, float) and abs(value) < 1e12


def parse(segmentation: Any, size: tuple[int, int]) -> Runs:
    """The mask of an annotation in an image of `size` (H, W): polygons, RLE, or compressed RLE."""
    if isinstance(segmentation, list):
        return _of_polygons(segmentation, size)
    if not isinstance(segmentation, Mapping):
        raise MaskError("has no mask")
    if segmentation.get("size") != list(size):
        raise MaskError(
            f"has a mask of {str(segmentation.get('size'))[:50]} pixels, the image is {list(size)}"
        )
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        return Runs(size, _checked(_decompressed(counts), size))
    if isinstance(counts, list) and all(type(n) is int and 0 <= n <= MAX_PIXELS for n in counts):
        return Runs(size, _checked(np.array(counts, np.int64), size))
    raise MaskError("has run lengths that are not numbers of pixels")


def leaves_image(segmentation: Any, size: tuple[int, int]) -> bool:
    """Is a corner of one of its polygons outside the image? Only for what `parse` accepts."""
    height, width = size
    return any(
        min(polygon) < -EDGE_SLACK
        or max(polygon[::2]) > width + EDGE_SLACK
        or max(polygon[1::2]) > height + EDGE_SLACK
        for polygon in (segmentation if isinstance(segmentation, list) else ())
    )


def encode(pixels: NDArray[np.bool_]) -> dict[str, Any]:
    """Compressed RLE of an (H, W) mask, as pycocotools writes it."""
    from pycocotools import mask as rle

    encoded = rle.encode(np.asfortranarray(pixels, np.uint8))
    return {"size": [int(v) for v in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


class LabelCanvas:
    """A label map that masks are painted on; pixels that two classes claim become unknown (255)."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._pixels = np.zeros(math.prod(size), np.uint8)  # column by column, as RLE counts
        self._painted = 0

    def paint(self, runs: Runs, index: int) -> None:
        """Give the mask's pixels the class `index`; pixels of another class become 255."""
        self._painted += runs.area
        if self._painted > MAX_COVER * self._pixels.size:
            raise MaskError(f"brings the masks to more than {MAX_COVER} times the area of the image")
        first, after = runs.spans
        if not first.size:
            return
        lengths = after - first
        if runs.area * 8 < after[-1] - first[0]:
            before = np.cumsum(lengths) - lengths
            where: Any = np.repeat(first - before, lengths) + np.arange(runs.area)
            inside: Any = True
        else:
            where = slice(int(first[0]), int(after[-1]))
            gaps = np.append(first[1:], after[-1]) - after
            turns = np.stack([lengths, gaps], axis=1).ravel()
            inside = np.repeat(np.tile([True, False], len(lengths)), turns)
        there = self._pixels[where]
        clash = (there != 0) & (there != index)
        self._pixels[where] = np.where(inside, np.where(clash, VOID, index), there)

    def label_map(self) -> NDArray[np.uint8]:
        """(H, W) uint8."""
        height, width = self._size
        return np.ascontiguousarray(self._pixels.reshape(width, height).T)


def _decompressed(counts: str) -> NDArray[np.int64]:
    """Run lengths of COCO's string: base-32 digits, low ones first, each a difference to the last but one."""
    digits = np.frombuffer(counts.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if not digits.size or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise MaskError("has a damaged mask")
    last = np.flatnonzero((digits & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    sizes = last - first + 1
    if sizes.max() > MAX_DIGITS:
        raise MaskError("has a damaged mask")
    place = np.arange(digits.size) - np.repeat(first, sizes)
    values = np.add.reduceat((digits & 31) << (5 * place), first)
    values -= np.where(digits[last] & 16, 1 << (5 * sizes), 0)
    if np.abs(values).max() > MAX_PIXELS:
        raise MaskError("has a damaged mask")
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _checked(counts: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int64]:
    if (counts < 0).any() or counts.sum() != math.prod(size):
        raise MaskError("has run lengths that do not add up to the image")
    return counts


def _of_polygons(polygons: Sequence[Any], size: tuple[int, int]) -> Runs:
    from pycocotools import mask as rle

    height, width = size
    outline = 0.0
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise MaskError("has a polygon that is not a list of at least three x, y pairs")
        if not all(map(is_number, polygon)):
            raise MaskError("has a polygon with coordinates that are not finite numbers")
        points = np.array(polygon, np.float64).reshape(-1, 2)
        if (np.abs(points) > np.minimum(MARGIN * np.array([width, height]), MAX_COORDINATE)).any():
            raise MaskError("has a polygon that lies far outside the image")
        outline += float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())
    if not polygons:
        raise MaskError("has no polygon")
    if outline > MAX_OUTLINE * (height + width):
        raise MaskError(f"has an outline of {outline:.0f} pixels, too long for its image")
    merged = rle.merge(rle.frPyObjects(polygons, height, width))
    return Runs(size, _checked(_decompressed(merged["counts"].decode("ascii")), size))
