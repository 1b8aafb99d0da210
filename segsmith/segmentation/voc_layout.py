"""The one writer of the PASCAL VOC segmentation layout; where the bytes go is the caller's business."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from segsmith.memory.store import png_bytes
from segsmith.segmentation.palette import voc_palette

IMAGES, CLASSES, OBJECTS, SETS = (
    "JPEGImages",
    "SegmentationClass",
    "SegmentationObject",
    "ImageSets/Segmentation",
)
CLASS_NAMES = "classes.txt"

Put = Callable[[str, bytes], None]
"""Stores bytes under a path relative to the dataset, "/" between its parts."""


class VocLayout:
    """Writes images and masks as they come, and the lists of names at the end."""

    def __init__(self, put: Put, splits: Sequence[str]) -> None:
        self._put = put
        self._palette = voc_palette()
        self._members: dict[str, list[str]] = {split: [] for split in splits}

    def add(
        self,
        split: str,
        name: str,
        image: tuple[str, bytes],
        label_map: NDArray[np.uint8],
        object_map: NDArray[np.uint8] | None = None,
    ) -> None:
        """Store one image, an encoded file with its suffix (``(".jpg", b"...")``), and its (H, W) maps."""
        suffix, data = image
        self._put(f"{IMAGES}/{name}{suffix}", data)
        self._put(f"{CLASSES}/{name}.png", png_bytes(label_map, self._palette))
        if object_map is not None:
            self._put(f"{OBJECTS}/{name}.png", png_bytes(object_map, self._palette))
        self._members[split].append(name)

    def finish(self, classes: Sequence[str]) -> None:
        """Store the list of each split, ``trainval`` where there are both, and the class names."""
        lists = dict(self._members)
        if {"train", "val"} <= lists.keys():
            lists["trainval"] = [*lists["train"], *lists["val"]]
        for split, names in lists.items():
            self._put(f"{SETS}/{split}.txt", _lines(names))
        self._put(CLASS_NAMES, _lines(classes))


def _lines(names: Sequence[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()
