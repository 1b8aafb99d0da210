"""What a label map holds: its values, and its objects, the connected parts of a class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from skimage.measure import label

from segsmith.datasets.palette import VOID

MAX_OBJECTS = 254
"""How many objects an 8-bit object map can number, besides background (0) and unknown (255)."""
CHUNK = 1 << 20


def histogram(label_map: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(256,) number of pixels of each value.

    In chunks, because `np.bincount` turns every pixel into eight bytes.
    """
    flat = label_map.ravel()
    total = np.zeros(256, np.int64)
    for start in range(0, flat.size, CHUNK):
        total += np.bincount(flat[start : start + CHUNK], minlength=256)
    return total


def present_classes(label_map: NDArray[np.uint8]) -> tuple[int, ...]:
    """Class indices from 1 that occur in a label map, ascending."""
    return tuple(int(v) for v in np.flatnonzero(histogram(label_map)) if v not in (0, VOID))


def number_objects(label_map: NDArray[np.uint8]) -> NDArray[np.int32]:
    """(H, W) numbers of the 8-connected parts of each class, from 1; background and unknown are 0.

    Connected components separate instances as in SeSAM (step 1): two touching objects of a class are one.
    """
    known = np.where(label_map == VOID, 0, label_map)
    return label(known, background=0, connectivity=2).astype(np.int32)


def object_map(label_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) object numbers as VOC stores them: 0 background, 255 unknown.

    Of more than `MAX_OBJECTS` parts the largest keep a number, in their order, and the others become unknown.
    """
    numbers = number_objects(label_map)
    sizes = _areas(numbers)
    kept = np.sort(np.argsort(-sizes, kind="stable")[:MAX_OBJECTS])
    table = np.full(sizes.size + 1, VOID, np.uint8)
    table[0] = 0
    table[kept + 1] = np.arange(1, kept.size + 1)
    return np.where(label_map == VOID, VOID, table[numbers]).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Piece:
    """A connected part of an (H, W) mask: the pixels of `numbers` that hold `number`.

    All parts of a mask share `numbers`, because a noisy mask has a part for every few pixels.
    """

    numbers: NDArray[np.int32]
    """(H, W)."""
    number: int
    area: int
    """In pixels."""
    window: tuple[slice, slice]
    """Rows and columns of the bounding box."""

    @property
    def corner(self) -> tuple[int, int]:
        """(x, y) of the bounding box's top left pixel."""
        return self.window[1].start, self.window[0].start

    def crop(self) -> NDArray[np.bool_]:
        """(h, w) bool mask inside the bounding box."""
        return self.numbers[self.window] == self.number

    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool mask."""
        return self.numbers == self.number


def components(mask: NDArray[np.bool_], min_area_px: int = 1) -> list[Piece]:
    """Instances of one class (SeSAM, step 1): the 8-connected components of an (H, W) mask, the largest first.

    Components under `min_area_px` pixels are left out; if all are smaller, the largest is kept, so that a
    labelled class is never lost. An empty mask gives an empty list.
    """
    numbers, order, areas = numbered_components(mask)
    windows = find_objects(numbers)
    kept = [i for i in order.tolist() if areas[i - 1] >= min_area_px] or order[:1].tolist()
    return [Piece(numbers, i, int(areas[i - 1]), windows[i - 1]) for i in kept]


def components_by_class(label_map: NDArray[np.uint8]) -> dict[int, list[Piece]]:
    """Value -> its `components`, for the values of an (H, W) label map except 0 and 255."""
    numbers = number_objects(label_map)
    windows, areas = find_objects(numbers), _areas(numbers)
    found: dict[int, list[Piece]] = {}
    for i in (np.argsort(-areas, kind="stable") + 1).tolist():
        rows, columns = windows[i - 1]
        first = columns.start + int(np.argmax(numbers[rows.start, columns] == i))
        value = int(label_map[rows.start, first])
        found.setdefault(value, []).append(Piece(numbers, i, int(areas[i - 1]), windows[i - 1]))
    return found


def numbered_components(
    mask: NDArray[np.bool_],
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """(H, W) numbers of the 8-connected components from 1, the numbers from the largest down, and all areas."""
    labelled = label(mask, connectivity=2).astype(np.int32, copy=False)
    areas = _areas(labelled)
    return labelled, np.argsort(-areas, kind="stable") + 1, areas


def _areas(numbers: NDArray[np.int32]) -> NDArray[np.int64]:
    """Number of pixels of the numbers from 1."""
    areas = np.zeros(int(numbers.max(initial=0)) + 1, np.int64)
    flat = numbers.ravel()
    for start in range(0, flat.size, 8 * CHUNK):
        areas += np.bincount(flat[start : start + 8 * CHUNK], minlength=areas.size)
    return areas[1:]
