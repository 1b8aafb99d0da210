"""What a label map holds: its values, and its objects, the connected parts of a class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
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
    sizes = np.bincount(numbers.ravel())[1:]
    kept = np.sort(np.argsort(-sizes, kind="stable")[:MAX_OBJECTS])
    table = np.full(sizes.size + 1, VOID, np.uint8)
    table[0] = 0
    table[kept + 1] = np.arange(1, kept.size + 1)
    return np.where(label_map == VOID, VOID, table[numbers]).astype(np.uint8)


def components(mask: NDArray[np.bool_], min_area_px: int = 1) -> list[NDArray[np.bool_]]:
    """Instances of one class (SeSAM, step 1): 8-connected (H, W) bool components, the largest first.

    Components under `min_area_px` pixels are left out; if all are smaller, the largest is kept, so that a
    labelled class is never lost. An empty mask gives an empty list.
    """
    labelled, order, areas = numbered_components(mask)
    kept = [i for i in order if areas[i - 1] >= min_area_px] or list(order[:1])
    return [labelled == i for i in kept]


def numbered_components(
    mask: NDArray[np.bool_],
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """(H, W) numbers of the 8-connected components from 1, the numbers from the largest down, and all areas."""
    labelled = label(mask, connectivity=2).astype(np.int32, copy=False)
    areas = np.zeros(int(labelled.max(initial=0)) + 1, np.int64)
    flat = labelled.ravel()
    for start in range(0, flat.size, 8 * CHUNK):
        areas += np.bincount(flat[start : start + 8 * CHUNK], minlength=areas.size)
    return labelled, np.argsort(-areas[1:], kind="stable") + 1, areas[1:]
