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
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from segsmith.errors import SegsmithError
from segsmith.files import read_image, read_index_map
from segsmith.ids import seed_of
from segsmith.types import IGNORE

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
        return [_header_size(path) for path in self._images]

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
        try:
            image, label = np.array(read_image(image_path)), np.array(read_index_map(label_path))
        except FileNotFoundError as error:
            raise SegsmithError(
                f"{error.filename} is missing, but split {self.split!r} names it.",
                "Export the dataset again.",
            ) from None
        except (OSError, UnidentifiedImageError) as error:
            raise SegsmithError(
                f"{image_path} or {label_path} cannot be read: {error}.", "Replace the file."
            ) from None
        if label.ndim != 2:
            raise SegsmithError(
                f"{label_path} is a colour picture, not an index map.", "Save labels as palette or grey PNG."
            )
        if label.shape != image.shape[:2]:
            raise SegsmithError(
                f"{label_path} is {_by(label.shape)} pixels, but its image is {_by(image.shape)}.",
                "Save the label at the size of the image.",
            )
        wrong = np.setdiff1d(np.unique(label), [*range(len(self.classes) + 1), IGNORE])
        if wrong.size:
            raise SegsmithError(
                f"{label_path} holds index {wrong[0]}, but classes.txt has {len(self.classes)} classes.",
                "Add the class to classes.txt, or mend the label.",
            )
        return image, label


RATE_EPOCHS = 4
"""Epochs over which `EpochSampler.rates` averages."""


class EpochSampler(Sampler[int]):
    """Indices of one epoch in an order made of (seed, epoch), wrapped around so that every batch is full.

    A full batch also spares batch normalisation the single image it cannot normalise. Where the images are both
    real and generated, at least `real_share` of an epoch is real, each kind drawn as evenly as can be; where real
    ones are drawn again, that goes by `labels`, the class indices of every image: each time to an image of the
    class seen least so far, since generated images are there to even out the classes, and these should help.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        real: Sequence[bool] = (),
        real_share: float = 0.5,
        labels: Sequence[Collection[int]] = (),
    ) -> None:
        self.epoch = 0
        self._seed = seed
        self._labels = labels
        self._length = length
        self._total = math.ceil(length / batch_size) * batch_size
        kinds = [[i for i in range(length) if real[i] is kind] for kind in (True, False)] if real else []
        self._parts: list[tuple[Sequence[int], int]] = [(range(length), self._total)]
        if all(kinds) and kinds:
            wanted = round(max(real_share, len(kinds[0]) / length) * self._total)
            self._parts = list(zip(kinds, (wanted, self._total - wanted), strict=True))

    def __len__(self) -> int:
        return self._total

    @property
    def rates(self) -> list[float]:
        """How often each image is drawn in an epoch, on average over a few."""
        epochs = [Counter(self._drawn(epoch)[0]) for epoch in range(RATE_EPOCHS)]
        return [sum(counts[i] for counts in epochs) / RATE_EPOCHS for i in range(self._length)]

    def __iter__(self) -> Iterator[int]:
        drawn, generator = self._drawn(self.epoch)
        order = (
            range(self._total) if len(self._parts) == 1 else torch.randperm(self._total, generator=generator)
        )
        return iter([drawn[i] for i in order])

    def _drawn(self, epoch: int) -> tuple[list[int], torch.Generator]:
        """What an epoch holds, kind by kind, and the generator that has drawn it."""
        generator = torch.Generator().manual_seed(seed_of("order", self._seed, epoch))
        return [i for part, count in self._parts for i in self._spread(part, count, generator)], generator

    def _spread(self, part: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
        order = [part[i] for i in torch.randperm(len(part), generator=generator).tolist()]
        known = [i for i in order if self._labels and self._labels[i]]
        if len(self._parts) == 1 or count <= len(order) or not known:
            return [order[i % len(order)] for i in range(count)]
        return order + self._evened(known, count - len(order))

    def _evened(self, images: Sequence[int], count: int) -> list[int]:
        """`count` more of the images, one by one an image of the class seen least by then, in turns."""
        queues: dict[int, deque[int]] = {}
        for image in images:
            for name in self._labels[image]:
                queues.setdefault(name, deque()).append(image)
        seen = Counter({name: len(queue) for name, queue in queues.items()})
        drawn = []
        for _ in range(count):
            poorest = min(queues, key=lambda name: (seen[name], name))
            queues[poorest].rotate(-1)
            drawn.append(queues[poorest][-1])
            seen.update(self._labels[drawn[-1]])
        return drawn


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


def _header_size(path: Path) -> tuple[int, int]:
    try:
        with PILImage.open(path) as picture:
            return picture.height, picture.width
    except (OSError, UnidentifiedImageError) as error:
        raise SegsmithError(f"{path} cannot be read: {error}.", "Replace the file.") from None


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
