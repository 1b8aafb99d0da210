"""A VOC-layout dataset as tensors.

Layout, as our own export writes it: ``JPEGImages/<id>.png`` (or .jpg), ``SegmentationClass/<id>.png``
(palette or grey indices), ``ImageSets/Segmentation/<split>.txt`` (an id a line) and ``classes.txt`` (a name
a line; line i is index i, 0 is background, 255 unknown). ``labels.csv``, where there is one, names the classes
of whole images (columns image_id and classes, the latter separated by ``|``).
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from segsmith.errors import SegsmithError
from segsmith.files import NotAnIndexMap, image_size, read_image, read_index_map
from segsmith.types import IGNORE

T = TypeVar("T")

RAM_BYTES = 1 << 30
"""Datasets whose pixels fit in this are read once and kept as uint8."""


class VocFolder(Dataset[tuple[Tensor, Tensor]]):
    """One split: (3, H, W) float32 RGB in [0, 1] and (H, W) int64 labels, 255 = unknown.

    Raises `SegsmithError` that names the file for whatever is missing or does not fit together; small
    datasets are checked when opened, larger ones as they are read.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root = root
        self.split = split
        self.classes = read_classes(root)
        self.ids = _read_ids(root, split)
        self._image_labels = _read_image_labels(root, self.classes)
        self._images = [_image_path(root, name) for name in self.ids]
        self._labels = [root / "SegmentationClass" / f"{name}.png" for name in self.ids]
        pixels = sum(math.prod(size) for size in self.sizes)
        self._kept = [self._read(i) for i in range(len(self))] if pixels * 4 <= RAM_BYTES else None

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of every image, from the file headers."""
        return [self._decoded(path, image_size) for path in self._images]

    @cached_property
    def real(self) -> list[bool]:
        """Is an image real? By ``source`` in labels.csv; all are where nothing says so."""
        path = self.root / "labels.csv"
        if not path.exists():
            return [True] * len(self)
        with path.open(newline="", encoding="utf-8") as file:
            source = {row.get("image_id"): row.get("source") for row in csv.DictReader(file)}
        return [source.get(name) != "generated" for name in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.raw(index)
        return torch.from_numpy(image).permute(2, 0, 1).float() / 255, torch.from_numpy(label).long()

    def raw(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """(H, W, 3) uint8 image and (H, W) uint8 label, as stored."""
        return self._kept[index] if self._kept is not None else self._read(index)

    def present(self, index: int) -> tuple[int, ...]:
        """Class indices from 1 that the image's mask or ``labels.csv`` names, ascending; () if neither does."""
        counts = np.bincount(self.raw(index)[1].ravel(), minlength=256)
        drawn = {int(v) for v in np.nonzero(counts[1:IGNORE])[0] + 1}
        return tuple(sorted(drawn | self._image_labels.get(self.ids[index], set())))

    @property
    def in_memory(self) -> bool:
        """Are the pixels kept, so that reading an item costs nothing?"""
        return self._kept is not None

    def class_pixels(self, rates: Sequence[float] = ()) -> NDArray[np.int64]:
        """(C + 1,) pixels of background and each class; of a large dataset, in some thousand images.

        `rates` are how often each image counts, once if empty.
        """
        total = np.zeros(256)
        for index in range(0, len(self), 1 if self.in_memory else max(1, len(self) // 2000)):
            count = np.bincount(self.raw(index)[1].ravel(), minlength=256)
            total += count * (rates[index] if rates else 1)
        return np.rint(total[: len(self.classes) + 1]).astype(np.int64)

    def fingerprint(self) -> str:
        """Changes when an id, an image or a label does; of a large dataset, when a file's size does."""
        digest = hashlib.sha256("\n".join((*self.classes, "", *self.ids)).encode())
        digest.update(repr(self.real).encode())
        digest.update(repr([sorted(self._image_labels.get(name, ())) for name in self.ids]).encode())
        for pair in self._kept or ():
            for array in pair:
                digest.update(np.ascontiguousarray(array).data)
        if not self.in_memory:
            sizes = [path.stat().st_size for path in (*self._images, *self._labels)]
            digest.update(repr(sizes).encode())
        return digest.hexdigest()

    def _read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        image_path, label_path = self._images[index], self._labels[index]
        image = np.array(self._decoded(image_path, read_image))
        label = np.array(self._decoded(label_path, read_index_map))
        if label.shape != image.shape[:2]:
            raise SegsmithError(
                f"{label_path} is {_by(label.shape)} pixels, but its image is {_by(image.shape)}.",
                "Save the label at the size of the image.",
            )
        wrong = np.setdiff1d(np.unique(label), [*range(len(self.classes) + 1), IGNORE])
        if wrong.size:
            raise SegsmithError(
                f"{label_path} holds index {wrong[0]}, but classes.txt has {len(self.classes)} classes.",
                "Add the class to classes.txt, or fix the label.",
            )
        return image, label

    def _decoded(self, path: Path, decode: Callable[[Path], T]) -> T:
        try:
            return decode(path)
        except FileNotFoundError:
            raise SegsmithError(
                f"{path} is missing, but split {self.split!r} names it.", "Export the dataset again."
            ) from None
        except NotAnIndexMap as error:
            raise SegsmithError(
                f"{path} is not an index map: {error}.", "Save labels as 8-bit palette or grey PNG."
            ) from None
        except OSError as error:
            raise SegsmithError(f"{path} cannot be read: {error}.", "Replace the file.") from None


def read_classes(root: Path) -> tuple[str, ...]:
    """Class names of a VOC-layout dataset, index 1 first."""
    names = _lines(root / "classes.txt", "Name the root of a dataset that segsmith exported.")
    if not names or len(names) > IGNORE - 1 or len(set(names)) != len(names) or "background" in names:
        raise SegsmithError(
            f"{root / 'classes.txt'} must name 1 to {IGNORE - 1} classes, each once, without background.",
            "Mend that file: one class a line, in the order of the label indices from 1.",
        )
    return tuple(names)


def _read_ids(root: Path, split: str) -> list[str]:
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    have = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
    return _lines(path, f"Splits of this dataset: {have}.")


def _read_image_labels(root: Path, classes: Sequence[str]) -> dict[str, set[int]]:
    """Image id -> class indices, from ``labels.csv``; empty without that file."""
    path = root / "labels.csv"
    if not path.exists():
        return {}
    index_of = {name: i for i, name in enumerate(classes, 1)}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {
                row["image_id"]: {
                    index_of[name] for name in filter(None, (row.get("classes") or "").split("|"))
                }
                for row in csv.DictReader(file)
            }
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, AttributeError) as error:
        raise SegsmithError(
            f"{path} cannot be read ({type(error).__name__}: {error}).",
            "Mend that file: columns image_id and classes, classes of classes.txt separated by |.",
        ) from None


def _lines(path: Path, remedy: str) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SegsmithError(f"{path} cannot be read: {reason}.", remedy) from None


def _image_path(root: Path, name: str) -> Path:
    for suffix in (".png", ".jpg", ".jpeg"):
        path = root / "JPEGImages" / f"{name}{suffix}"
        if path.exists():
            return path
    raise SegsmithError(
        f"{root / 'JPEGImages'} has no image {name!r} (.png or .jpg).", "Export the dataset again."
    )


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
