"""The objects of a label map as formats with instances state them: pieces joined, specks left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segsmith.datasets.objects import MAX_OBJECTS, number_objects
from segsmith.datasets.outlines import Outline, Ring, outlines
from segsmith.datasets.palette import VOID

REACH = 64
"""Pieces of a class are one object if they are nearer than 1/64 of the image's longer side, and never beyond 1/32."""
MIN_AREA_PX = 25
MIN_SHARE = 10_000
"""An object of fewer than 25 pixels, or 1/10,000 of a larger image, is a speck."""
EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Instance:
    """One object: class index, area in pixels, box (x, y, width, height), and the map of its pieces in the box."""

    index: int
    area: int
    box: tuple[int, int, int, int]
    pieces: NDArray[np.int32]

    @property
    def outlines(self) -> list[Outline]:
        """The outlines of its pieces, in pixels of the box."""
        return outlines(self.pieces)

    @property
    def polygons(self) -> list[Ring]:
        """One polygon for each piece, in pixels of the image; holes are joined to them."""
        return [outline.polygon() + np.array(self.box[:2], np.int32) for outline in self.outlines]


@dataclass(frozen=True)
class Instances:
    """All objects of a label map. `numbers` (H, W) counts them from 1; background, unknown and specks are 0."""

    objects: Sequence[Instance]
    specks: int
    """Number of objects that are too small."""
    numbers: NDArray[np.int32]


def min_area(size: tuple[int, int]) -> int:
    """Pixels that an object needs in an image of (H, W) pixels."""
    return max(MIN_AREA_PX, size[0] * size[1] // MIN_SHARE)


def find_instances(label_map: NDArray[np.uint8]) -> Instances:
    """The objects of an (H, W) label map in reading order.

    Of a class whose objects are all specks the largest stays, so that a class is never lost.
    """
    pieces = number_objects(label_map)
    places = ndimage.find_objects(pieces)
    areas = np.bincount(pieces.ravel(), minlength=len(places) + 1)
    # The first pixel of each piece, in reading order.
    firsts = [
        (rows.start, columns.start + int(np.argmax(pieces[rows.start, columns] == number)))
        for number, (rows, columns) in enumerate(places, 1)
    ]
    classes = [int(label_map[first]) for first in firsts]
    several = {index for index, count in Counter(classes).items() if count > 1}
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    side = max(1, max(label_map.shape) // REACH)
    cells = {index: _cells(label_map == index, side) for index in several}
    for number, (index, (y, x)) in enumerate(zip(classes, firsts, strict=True), 1):
        groups[index, int(cells[index][y // side, x // side]) if index in cells else 0].append(number)
    kept = _large_enough({key: int(areas[members].sum()) for key, members in groups.items()}, label_map.shape)
    table = np.zeros(len(places) + 1, np.int32)
    objects: list[Instance] = []
    for key in kept:
        members = groups[key]
        table[members] = len(objects) + 1
        top, left = (min(places[m - 1][axis].start for m in members) for axis in (0, 1))
        bottom, right = (max(places[m - 1][axis].stop for m in members) for axis in (0, 1))
        crop = pieces[top:bottom, left:right]
        own = np.where(crop == members[0] if len(members) == 1 else np.isin(crop, members), crop, 0)
        box = (left, top, right - left, bottom - top)
        objects.append(Instance(key[0], int(areas[members].sum()), box, own))
    return Instances(objects, len(groups) - len(kept), table[pieces])


def without_specks(label_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The label map as formats with instances keep it: the pixels of specks are unknown (255)."""
    found = find_instances(label_map)
    if not found.specks:
        return label_map
    return np.where((found.numbers == 0) & (label_map != 0), VOID, label_map).astype(np.uint8)


def instance_map(label_map: NDArray[np.uint8], found: Instances) -> NDArray[np.uint8]:
    """(H, W) object numbers as VOC stores them: 0 background; 255 unknown, specks, and objects beyond the 254th."""
    table = np.zeros(max(MAX_OBJECTS, len(found.objects)) + 1, np.uint8)
    table[: MAX_OBJECTS + 1] = np.arange(MAX_OBJECTS + 1)
    numbers = table[found.numbers]
    numbers[(numbers == 0) & (label_map != 0)] = VOID
    return numbers


def _cells(mask: NDArray[np.bool_], side: int) -> NDArray[np.int32]:
    """Numbers of the connected groups of cells, `side` pixels wide, that hold a pixel of the mask."""
    rows, columns = (-(-length // side) for length in mask.shape)
    whole = np.zeros((rows * side, columns * side), bool)  # not np.pad, which takes longer than all the rest
    whole[: mask.shape[0], : mask.shape[1]] = mask
    numbered: NDArray[np.int32]
    numbered, _ = ndimage.label(whole.reshape(rows, side, columns, side).any(axis=(1, 3)), EIGHT)
    return numbered


def _large_enough(areas: dict[tuple[int, int], int], size: tuple[int, ...]) -> list[tuple[int, int]]:
    least = min_area((size[0], size[1]))
    largest: dict[int, int] = {}
    for (index, _), area in areas.items():
        largest[index] = max(area, largest.get(index, 0))
    return [key for key, area in areas.items() if area >= min(least, largest[key[0]])]
