"""The PASCAL VOC segmentation layout: its names, its only writer, and its image labels."""

from __future__ import annotations

import csv
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.dataset_files import DatasetFiles, class_name_problem, name_problem
from segsmith.datasets.palette import VOID, voc_palette
from segsmith.datasets.records import DataError
from segsmith.errors import SegsmithError
from segsmith.files import PART, png_bytes

IMAGES, CLASSES, OBJECTS, SETS = (
    "JPEGImages",
    "SegmentationClass",
    "SegmentationObject",
    "ImageSets/Segmentation",
)
CLASS_NAMES = "classes.txt"
LABELMAP = "labelmap.txt"
LABELS = "labels.csv"

Put = Callable[[str, bytes], None]
"""Stores bytes under a path relative to the dataset, "/" between its parts."""
Pair = tuple[str, NDArray[np.uint8], NDArray[np.uint8]]
"""Id, (H, W, 3) image, (H, W) label map."""


class VocLayout:
    """Writes images and masks as they come, and the lists of names at the end.

    Raises `SegsmithError` for an id or a class name that the layout cannot hold, such as ``../x``.
    """

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
        if problem := name_problem(name):
            raise SegsmithError(f"The image id {name!r} {problem}.", "Rename that image.")
        suffix, data = image
        self._put(f"{IMAGES}/{name}{suffix}", data)
        self._put(f"{CLASSES}/{name}.png", png_bytes(label_map, self._palette))
        if object_map is not None:
            self._put(f"{OBJECTS}/{name}.png", png_bytes(object_map, self._palette))
        self.list(split, name)

    def list(self, split: str, name: str) -> None:
        """Name an image whose files were stored by other means."""
        self._members[split].append(name)

    @property
    def lists(self) -> dict[str, Sequence[str]]:
        """The names of each split, and of ``trainval`` where there are both."""
        lists: dict[str, Sequence[str]] = dict(self._members)
        if {"train", "val"} <= lists.keys():
            lists["trainval"] = [*lists["train"], *lists["val"]]
        return lists

    def finish(self, classes: Sequence[str]) -> None:
        """Store the list of each split and the class names."""
        for name in classes:
            if problem := class_name_problem(name):
                raise SegsmithError(f"The class name {name!r} {problem}.", "Rename that class.")
        for split, names in self.lists.items():
            self._put(f"{SETS}/{split}.txt", _lines(names))
        self._put(CLASS_NAMES, _lines(classes))


def labelmap_text(classes: Sequence[str]) -> str:
    """``labelmap.txt`` of CVAT and datumaro: the colour of each class, and of unknown pixels.

    Without it CVAT rejects masks with unknown pixels, and datumaro takes the classes for VOC's own twenty.
    """
    palette = voc_palette()
    lines = ["# label:color_rgb:parts:actions"]
    for index, name in labelmap_names(classes).items():
        lines.append(f"{name}:{','.join(str(v) for v in palette[index])}::")
    return "\n".join(lines) + "\n"


def labelmap_names(classes: Sequence[str]) -> dict[int, str]:
    """Index -> name of background, of the classes, and of unknown pixels."""
    unknown = "ignored" if "ignored" not in classes else "ignored 255"
    return {**dict(enumerate(("background", *classes))), VOID: unknown}


def _lines(names: Sequence[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def write_voc(
    folder: Path,
    classes: Sequence[str],
    splits: Mapping[str, Iterable[Pair]],
    image_labels: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write (id, (H, W, 3) image, (H, W) label map) triples in PASCAL VOC's layout, all of it or nothing.

    Images are PNG, so that a test sees exactly the pixels that were made. `image_labels` (id -> class names)
    is read after all images are written, and goes to ``labels.csv``. Raises `SegsmithError` if `folder` came
    into being meanwhile, or for names that the layout cannot hold.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=PART))

    def put(name: str, data: bytes) -> None:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_bytes(data)

    try:
        layout = VocLayout(put, tuple(splits))
        for split, pairs in splits.items():
            for name, image, label_map in pairs:
                layout.add(split, name, (".png", png_bytes(image)), label_map)
        layout.finish(classes)
        if image_labels:
            put(LABELS, _labels_csv(image_labels))
        staging.chmod(0o755)
        try:
            os.rename(staging, folder)
        except OSError as error:
            raise SegsmithError(
                f"The dataset cannot be moved to {folder}: {error.strerror or error}.",
                "Name a new folder with --out.",
            ) from None
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _labels_csv(image_labels: Mapping[str, Sequence[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "classes"])
    writer.writerows([name, "|".join(labels)] for name, labels in image_labels.items())
    return text.getvalue().encode()


@dataclass(frozen=True)
class ImageLabels:
    """One row of ``labels.csv``: `source` is "generated" or "real", `backend` the name of the image model.

    Both are "" where the column is missing.
    """

    classes: tuple[str, ...]
    source: str
    backend: str


def image_labels(files: DatasetFiles) -> dict[str, ImageLabels]:
    """Image id -> its row in ``labels.csv``; empty without that file.

    Raises `DataError` where it cannot be read, or has no columns image_id and classes.
    """
    if not (files.root / LABELS).exists():
        return {}
    rows = files.rows(LABELS)
    if rows and not {"image_id", "classes"} <= rows[0].keys():
        raise DataError("bad_file", LABELS, "has no columns image_id and classes")
    return {
        row["image_id"]: ImageLabels(
            tuple(filter(None, row["classes"].split("|"))), row.get("source", ""), row.get("backend", "")
        )
        for row in rows
    }
