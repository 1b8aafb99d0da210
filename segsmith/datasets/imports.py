"""Foreign datasets as something to train or test on: what is usable of them, with classes matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.detect import open_dataset
from segsmith.datasets.labelled_dataset import DataError, Item, Problem
from segsmith.datasets.palette import VOID
from segsmith.errors import SegsmithError

UNSAFE = {"bad_file", "duplicate_class", "duplicate_id"}
"""Problems after which nobody can say which label belongs to which image."""


@dataclass(frozen=True)
class ImportedDataset:
    """What is sound of a dataset; `skipped` names every file left out, and why."""

    root: Path
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    skipped: tuple[Problem, ...]
    has_label_maps: bool
    knows_background: bool = True

    @property
    def splits(self) -> dict[str, int]:
        """Split -> usable images."""
        names = sorted({item.split for item in self.items})
        return {name: sum(item.split == name for item in self.items) for name in names}


def import_dataset(root: Path, split: str | None = None) -> ImportedDataset:
    """Open a dataset of VOC, COCO, a folder per class, or any other format with files of its own.

    Every image (of one split, or all) is read once. One that is missing, corrupt, of another size than its
    label map, or with an undefined index or class is skipped and named. Raises `SegsmithError` where
    skipping is not safe: classes or ids are ambiguous, a list is damaged, or nothing is left.
    """
    data = open_dataset(root)
    if data.format == "webdataset":
        raise SegsmithError(
            f"{root} holds shards, which are read in one sweep only.",
            "Unpack them, or name the dataset in another format.",
        )
    for problem in data.problems:
        if problem.kind in UNSAFE:
            raise SegsmithError(f"{root}: {problem.where}: {problem.text}.", "Mend that file.")
    items, skipped = [], list(data.problems)
    for item in data:
        if split is not None and item.split != split:
            continue
        try:
            _check(item, data.classes)
        except DataError as error:
            skipped.append(error.problem)
        else:
            items.append(item)
    if not items:
        have = ", ".join(sorted({i.split for i in data if i.split})) or "none"
        reason = f" The first of {len(skipped)} problems: {skipped[0]}." if skipped else ""
        raise SegsmithError(
            f"{root} has no usable image{f' in split {split!r}' if split else ''}.{reason}",
            f"Splits of this dataset: {have}.",
        )
    return ImportedDataset(
        root, data.classes, tuple(items), tuple(skipped), data.has_label_maps, data.knows_background
    )


def _check(item: Item, classes: Sequence[str]) -> None:
    image, label_map = item.load()
    for name in item.labels or ():
        if name not in classes:
            raise DataError("unknown_class", item.where, f"is labelled {name!r}, which is not listed")
    if label_map is None:
        return
    if label_map.shape != image.shape[:2]:
        raise DataError("wrong_size", item.where, f"image {image.shape[:2]}, label map {label_map.shape}")
    values = np.unique(label_map)
    undefined = values[(values > len(classes)) & (values != VOID)]
    if undefined.size:
        raise DataError("undefined_index", item.where, f"the label map holds {undefined.tolist()}")


def match_classes(theirs: Sequence[str], ours: Sequence[str]) -> dict[str, str]:
    """Their names -> ours, of those that are the same but for case, spaces, hyphens and underscores.

    So VOC's "pottedplant" is "potted plant". Raises `SegsmithError` when two names of one side become one,
    or when no name is in both.
    """
    known, found = _plain(ours), _plain(theirs)
    matched = {name: known[plain] for plain, name in found.items() if plain in known}
    if not matched:
        raise SegsmithError(
            f"None of the classes {', '.join(theirs)} is one of {', '.join(ours)}.",
            "Name a dataset that shows at least one of them.",
        )
    return matched


def _plain(names: Sequence[str]) -> dict[str, str]:
    plain: dict[str, str] = {}
    for name in names:
        key = "".join(c for c in name.casefold() if c not in " -_")
        if key in plain:
            raise SegsmithError(
                f"Classes {plain[key]!r} and {name!r} are the same name.", "Rename one of them."
            )
        plain[key] = name
    return plain


class ImportedSplit:
    """A split as the segmenter's evaluation reads it, its label maps in the indices of `classes`.

    A pixel of a class that is not in `classes` is background, as it is for a segmenter that does not know
    the class; `ignored_classes` names those.
    """

    def __init__(self, root: Path, split: str, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.source = import_dataset(root, split)
        if not self.source.has_label_maps:
            raise SegsmithError(
                f"{root} has image labels alone.",
                "Name a dataset with masks: VOC, COCO, Ultralytics or CVAT.",
            )
        matched = match_classes(self.source.classes, classes)
        self.ignored_classes = tuple(name for name in self.source.classes if name not in matched)
        self._table = np.zeros(256, np.uint8)
        self._table[VOID] = VOID
        for index, name in enumerate(self.source.classes, 1):
            if name in matched:
                self._table[index] = self.classes.index(matched[name]) + 1

    def __len__(self) -> int:
        return len(self.source.items)

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of every image."""
        return [self.raw(i)[1].shape[:2] for i in range(len(self))]

    def raw(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """(H, W, 3) image and (H, W) label map."""
        image, label_map = self.source.items[index].load()
        assert label_map is not None
        return image, self._table[label_map]
