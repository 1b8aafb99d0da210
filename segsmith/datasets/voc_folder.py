"""A VOC-layout dataset with random access, as training reads it.

Layout, as our own export writes it: ``JPEGImages/<id>.png`` (or .jpg), ``SegmentationClass/<id>.png``
(palette or grey indices), ``ImageSets/Segmentation/<split>.txt`` (one id a line) and ``classes.txt`` (one name
a line; line i is index i, 0 is background, 255 unknown). ``labels.csv``, if present, names the classes of whole
images (columns image_id and classes, the latter separated by ``|``) and whether they are real (`source`).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from segsmith.datasets.dataset_files import DatasetFiles, class_name_problem, name_problem
from segsmith.datasets.objects import histogram
from segsmith.datasets.records import IMAGE_SUFFIXES, DataError
from segsmith.datasets.voc_layout import CLASS_NAMES, CLASSES, IMAGES, LABELS, SETS, image_labels
from segsmith.errors import SegsmithError
from segsmith.files import Conversion, ImageHeader, NotAnIndexMap, read_header, read_image, read_index_map
from segsmith.types import IGNORE, SIMULATOR

T = TypeVar("T")

RAM_BYTES = 1 << 30
"""Datasets whose pixels fit in this are read once and kept as uint8."""
SAMPLED = 2000
"""Images of a larger dataset whose pixels `VocFolder.class_pixels` counts."""


class VocFolder(Dataset[tuple[Tensor, Tensor]]):
    """One split: (3, H, W) float32 RGB in [0, 1] and (H, W) int64 labels, 255 = unknown.

    Raises `SegsmithError` that names the file for whatever is missing or does not fit together; small
    datasets are checked when opened, larger ones, and all with `keep` False, as they are read.
    """

    def __init__(self, root: Path, split: str, *, keep: bool = True) -> None:
        self.root = root
        self.split = split
        self.classes = read_classes(root)
        self._files = DatasetFiles(root)
        self.ids = self._read_ids()
        self._image_labels, self._sources, self._backends = self._read_labels()
        self._images = [self._image_path(name) for name in self.ids]
        self._labels = [self._inside(f"{CLASSES}/{name}.png") for name in self.ids]
        fits = keep and 4 * sum(math.prod(size) for size in self.sizes) <= RAM_BYTES
        self._kept = [self._read(i) for i in range(len(self))] if fits else None

    @cached_property
    def _headers(self) -> list[ImageHeader]:
        return [self._decoded(path, read_header) for path in self._images]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of every image, from the file headers."""
        return [header.size for header in self._headers]

    @property
    def conversions(self) -> Mapping[Conversion, int]:
        """How many images are converted when they are read, by kind."""
        return Counter(kind for header in self._headers for kind in header.conversions)

    @property
    def real(self) -> list[bool]:
        """Is an image real? By ``source`` in labels.csv; all are where nothing says so."""
        return [self._sources.get(name) != "generated" for name in self.ids]

    @property
    def simulated(self) -> bool:
        """Did the simulator draw every image? By ``backend`` in labels.csv; no, where nothing says so."""
        return bool(self.ids) and all(self._backends.get(name, "").startswith(SIMULATOR) for name in self.ids)

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
        drawn = {int(v) for v in np.nonzero(histogram(self.raw(index)[1])[1:IGNORE])[0] + 1}
        return tuple(sorted(drawn | self._image_labels.get(self.ids[index], set())))

    @property
    def in_memory(self) -> bool:
        """Are the pixels kept, so that reading an item costs nothing?"""
        return self._kept is not None

    def class_pixels(self, rates: Sequence[float] = ()) -> NDArray[np.int64]:
        """(C + 1,) pixels of background and each class; of a larger dataset, in about `SAMPLED` images.

        `rates` are how often each image counts, once if empty.
        """
        total = np.zeros(256)
        for index in range(0, len(self), 1 if self.in_memory else max(1, len(self) // SAMPLED)):
            total += histogram(self.raw(index)[1]) * (rates[index] if rates else 1)
        return np.rint(total[: len(self.classes) + 1]).astype(np.int64)

    def fingerprint(self) -> str:
        """Changes when an id, an image or a label does; for a larger dataset, when a file's size does."""
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
        undefined = np.flatnonzero(histogram(label)[len(self.classes) + 1 : IGNORE])
        if undefined.size:
            raise SegsmithError(
                f"{label_path} holds index {undefined[0] + len(self.classes) + 1}, but {CLASS_NAMES} has "
                f"{len(self.classes)} classes.",
                f"Add the class to {CLASS_NAMES}, or fix the label.",
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

    def _read_ids(self) -> list[str]:
        path = f"{SETS}/{self.split}.txt"
        have = ", ".join(sorted(p.stem for p in self._files.files(SETS, ".txt"))) or "none"
        ids = _lines(self._files, path, f"Splits of this dataset: {have}.")
        for name in ids:
            if problem := name_problem(name):
                raise SegsmithError(f"{self.root / path}: the id {name!r} {problem}.", "Rename that image.")
            if self._files.is_file(f"{IMAGES}/{name}") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                raise SegsmithError(
                    f"{self.root / path} names files ({name}), not ids.",
                    "Remove the extensions from its lines.",
                )
        return ids

    def _read_labels(self) -> tuple[dict[str, set[int]], dict[str, str], dict[str, str]]:
        """Image id -> class indices, source and image model, from ``labels.csv``."""
        index_of = {name: i for i, name in enumerate(self.classes, 1)}
        try:
            rows = image_labels(self._files)
            labels = {name: {index_of[c] for c in row.classes} for name, row in rows.items()}
        except (DataError, KeyError) as error:
            reason = error.problem.text if isinstance(error, DataError) else f"names the class {error}"
            raise SegsmithError(
                f"{self.root / LABELS} {reason}.",
                f"Fix that file: columns image_id and classes, classes of {CLASS_NAMES} separated by |.",
            ) from None
        sources = {name: row.source for name, row in rows.items()}
        return labels, sources, {name: row.backend for name, row in rows.items()}

    def _image_path(self, name: str) -> Path:
        for suffix in (".png", ".jpg", ".jpeg", ".webp"):
            path = self._inside(f"{IMAGES}/{name}{suffix}")
            if path.exists():
                return path
        raise SegsmithError(
            f"{self.root / IMAGES} has no image {name!r} (.png, .jpg or .webp).", "Export the dataset again."
        )

    def _inside(self, name: str) -> Path:
        try:
            return self._files.path(name)
        except DataError as error:
            raise SegsmithError(f"{self.root / name} {error.problem.text}.") from None


def drawn_by_simulator(root: Path) -> bool:
    """Does ``labels.csv`` name the simulator for every image of a dataset? False for other formats than VOC."""
    try:
        rows = image_labels(DatasetFiles(root))
    except DataError:
        return False
    return bool(rows) and all(row.backend.startswith(SIMULATOR) for row in rows.values())


def read_classes(root: Path) -> tuple[str, ...]:
    """Class names of a VOC-layout dataset, index 1 first."""
    names = _lines(DatasetFiles(root), CLASS_NAMES, "Name the root of a dataset that segsmith exported.")
    remedy = "Fix that file: one class a line, in the order of the label indices from 1."
    if not names or len(names) > IGNORE - 1 or len(set(names)) != len(names) or "background" in names:
        raise SegsmithError(
            f"{root / CLASS_NAMES} must name 1 to {IGNORE - 1} classes, each once, without background.",
            remedy,
        )
    for name in names:
        if problem := class_name_problem(name):
            raise SegsmithError(f"{root / CLASS_NAMES}: the class name {name!r} {problem}.", remedy)
    return tuple(names)


def _lines(files: DatasetFiles, name: str, remedy: str) -> list[str]:
    try:
        return files.lines(name)
    except DataError as error:
        raise SegsmithError(f"{files.root / name} cannot be read: {error.problem.text}.", remedy) from None


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
