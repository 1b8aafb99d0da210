"""The labels a training uses: those of the dataset, SAM's, and which classes each image can show."""

from __future__ import annotations

import shlex
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from segsmith.datasets.voc_folder import VocFolder
from segsmith.errors import SegsmithError
from segsmith.files import UnreadableImage, atomic_file, png_bytes, read_index_map
from segsmith.types import IGNORE

SAM = 1
"""Index of SAM's labels in `Sample.labels`; index 0 are the dataset's."""


class Prediction(NamedTuple):
    """The teacher's prediction for one image: (H, W) uint8 labels and their (H, W) float32 confidence in [0, 1]."""

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32]


class SamLabels(Protocol):
    """A source of labels from SAM; see `segsmith.segmentation.weak_refiner.WeakRefiner`."""

    name: str
    """Identifies all that the labels depend on except the images; a state saved under another name is not used."""

    background: bool
    """Whether its labels may be 0, that is, whether it decides where background is."""

    def label_maps(
        self, data: VocFolder, predictions: Iterable[Prediction] | None, round_: int
    ) -> Iterator[NDArray[np.uint8]]:
        """An (H, W) uint8 label map for every image, in order. SeSAM's step 0 is skipped without `predictions`."""
        ...


class Sample(NamedTuple):
    """One training image, or a batch of B, then with a leading dimension B.

    `image` is (3, H, W) float32 in [0, 1]; `labels` is (S, H, W) int64 with 255 for unknown, S = 1, or 2 with SAM's
    labels; `allowed` is (C + 1,) bool: background and the classes that the image can show.
    """

    image: Tensor
    labels: Tensor
    allowed: Tensor


class LabelSources(Dataset[Sample]):
    """A split with all its label sources, as the trainer reads it.

    SAM's label maps are kept in memory as PNG, which takes about a hundredth of the uncompressed size. With
    `drawn_classes_only`, an image can only show the classes it is labelled with.
    """

    def __init__(self, data: VocFolder, drawn_classes_only: bool) -> None:
        self.data = data
        self._drawn_only = drawn_classes_only
        self._sam: list[bytes] | None = None
        self._sam_path: Path | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        image, given = self.data.raw(index)
        maps = [given]
        if self._sam is not None:
            # The dataset's own labels outrank SAM's and must not count twice.
            maps.append(np.where(given == IGNORE, self._sam_map(index, given.shape), IGNORE).astype(np.uint8))
        return Sample(
            torch.from_numpy(image).permute(2, 0, 1).float() / 255,
            torch.from_numpy(np.stack(maps)).long(),
            self.allowed(index),
        )

    def _sam_map(self, index: int, size: tuple[int, ...]) -> NDArray[np.uint8]:
        """SAM's (H, W) labels of an image, checked: the file may be damaged."""
        assert self._sam is not None
        assert self._sam_path is not None
        try:
            found = pixels_of(self._sam[index])
        except UnreadableImage as error:
            raise damaged_maps(self._sam_path, f"{self.data.ids[index]}: {error}") from None
        if found.shape != size or found[found != IGNORE].max(initial=0) > len(self.data.classes):
            raise damaged_maps(self._sam_path, f"{self.data.ids[index]} has another size or other classes")
        return found

    def allowed(self, index: int) -> Tensor:
        """(C + 1,) bool: background and the classes that an image can show; all, if it has no labels."""
        present = self.data.present(index) if self._drawn_only else ()
        allowed = torch.full((len(self.data.classes) + 1,), not present)
        allowed[[0, *present]] = True
        return allowed

    def class_pixels(self, rates: Sequence[float] = ()) -> NDArray[np.int64]:
        """(C + 1,) labelled pixels of background and each class in both sources; see `VocFolder.class_pixels`."""
        total = self.data.class_pixels(rates)
        for index in range(0, len(self), max(1, len(self) // 2000)) if self._sam is not None else ():
            both = self[index].labels[SAM]
            total = total + np.bincount(both.flatten().numpy(), minlength=256)[: len(total)]
        return total

    def use(self, path: Path) -> None:
        """Use SAM's labels from a file that `save_maps` wrote; raises `SegsmithError` as `load_maps` does."""
        self._sam, self._sam_path = load_maps(path, self.data.ids), path


def save_maps(path: Path, names: Sequence[str], maps: Iterable[NDArray[np.uint8]]) -> None:
    """Write a zip archive with the (H, W) uint8 label map of each image as PNG, atomically."""
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, label_map in zip(names, maps, strict=True):
            archive.writestr(zipfile.ZipInfo(f"{name}.png"), png_bytes(label_map))


def load_maps(path: Path, names: Sequence[str]) -> list[bytes]:
    """The PNGs of `save_maps`; `SegsmithError` if the file is missing, damaged or lacks one of the names."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # `save_maps` stores without compression, so the entries cannot be larger than the file.
            if sum(e.file_size for e in entries) > path.stat().st_size or any(
                e.compress_type for e in entries
            ):
                raise zipfile.BadZipFile("entries that segsmith did not write")
            return [archive.read(f"{name}.png") for name in names]
    # zipfile raises these for damage in different parts of the file.
    except (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise damaged_maps(path, f"{type(error).__name__}: {error}") from None


def read_map(path: Path, name: str) -> NDArray[np.uint8]:
    """One (H, W) uint8 label map of a file that `save_maps` wrote; `SegsmithError` if it is damaged."""
    return next(read_maps(path, [name]))


def read_maps(path: Path, names: Sequence[str]) -> Iterator[NDArray[np.uint8]]:
    """Label maps as of `read_map`, for several names."""
    for name, png in zip(names, load_maps(path, names), strict=True):
        try:
            label_map = pixels_of(png)
        except UnreadableImage as error:
            raise damaged_maps(path, f"{name}: {error}") from None
        yield label_map


def pixels_of(png: bytes) -> NDArray[np.uint8]:
    """The (H, W) uint8 label map of one PNG of `load_maps`; raises `UnreadableImage`."""
    return read_index_map(png)


def damaged_maps(path: Path, reason: str) -> SegsmithError:
    """The error for a file of label maps that cannot be used."""
    return SegsmithError(
        f"The labels in {path} are damaged ({' '.join(reason.split())[:200]}).",
        f"Type rm -r {shlex.quote(str(path.parent))} to make them again.",
    )


def stack(samples: Sequence[Sample], size: tuple[int, int]) -> Sample:
    """Batch samples, resized to `size` (H, W): images bilinearly, labels to the nearest pixel."""
    images, labels, allowed = zip(*(_fit(sample, size) for sample in samples), strict=True)
    return Sample(torch.stack(images), torch.stack(labels), torch.stack(allowed))


def _fit(sample: Sample, size: tuple[int, int]) -> Sample:
    image, labels, allowed = sample
    if image.shape[-2:] == size:
        return sample
    resized = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    nearest = F.interpolate(labels[None].to(torch.uint8), size, mode="nearest-exact")[0].long()
    return Sample(resized, nearest, allowed)
