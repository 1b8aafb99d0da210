"""The one writer of the PASCAL VOC segmentation layout; where the bytes go is the caller's business."""

from __future__ import annotations

import csv
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.palette import voc_palette
from segsmith.files import png_bytes

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


Pair = tuple[str, NDArray[np.uint8], NDArray[np.uint8]]


def write_voc(
    folder: Path,
    classes: Sequence[str],
    splits: Mapping[str, Iterable[Pair]],
    image_labels: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write (id, (H, W, 3) image, (H, W) label map) triples in PASCAL VOC's layout, all of it or nothing.

    Images are PNG, so that a test sees exactly the pixels that were made. `image_labels` (id -> class names),
    read when all pictures are written, goes to ``labels.csv``.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))

    def put(name: str, data: bytes) -> None:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).write_bytes(data)

    try:
        layout = VocLayout(put, tuple(splits))
        for split, pairs in splits.items():
            for name, image, label_map in pairs:
                layout.add(split, name, (".png", png_bytes(image)), label_map)
        layout.finish(classes)
        if image_labels:
            put("labels.csv", _labels_csv(image_labels))
        aside.chmod(0o755)
        os.rename(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _labels_csv(image_labels: Mapping[str, Sequence[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "classes"])
    writer.writerows([name, "|".join(labels)] for name, labels in image_labels.items())
    return text.getvalue().encode()
