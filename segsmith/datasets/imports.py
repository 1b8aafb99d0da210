"""Foreign datasets as data to train or test on: their usable records, with classes matched by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.dataset_files import class_name_problem, name_problem
from segsmith.datasets.detect import open_dataset
from segsmith.datasets.objects import histogram
from segsmith.datasets.palette import VOID
from segsmith.datasets.records import DataError, Problem, Record, Sample
from segsmith.errors import SegsmithError
from segsmith.files import Conversion

UNSAFE = {"bad_file", "duplicate_class", "duplicate_id", "too_many_classes"}
"""Problems after which it is unknown which label belongs to which image."""


@dataclass(frozen=True)
class ImportedDataset:
    """The usable records of a dataset.

    `skipped` names every file left out or repaired, and why; `conversions` counts the images that are not
    used as they are stored.
    """

    root: Path
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    skipped: tuple[Problem, ...]
    has_label_maps: bool
    knows_background: bool = True
    conversions: Mapping[Conversion, int] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of usable images."""
        names = sorted({record.split for record in self.records})
        return {name: sum(record.split == name for record in self.records) for name in names}


def import_dataset(root: Path, split: str | None = None) -> ImportedDataset:
    """Open a dataset in any format with one file per image: VOC, COCO, a folder per class and others.

    Every image (of one split, or all) is read once. An image is skipped and named if it is missing, corrupt, of
    another size than its label map, or has an undefined index, an unlisted class or an unusable name. Raises
    `SegsmithError` where skipping is not safe: ambiguous classes or ids, a damaged list, no usable image.
    """
    data = open_dataset(root)
    if data.format == "webdataset":
        raise SegsmithError(
            f"{root} holds WebDataset shards, which allow no access to single images.",
            "Unpack them, or name the dataset in another format.",
        )
    for problem in data.problems:
        if problem.kind in UNSAFE:
            raise SegsmithError(f"{root}: {problem.where}: {problem.text}.", "Fix that file.")
    for name in data.classes:
        if unusable := class_name_problem(name):
            raise SegsmithError(f"{root}: the class name {name!r} {unusable}.", "Rename that class.")
    records, skipped = [], list(data.problems)
    conversions: Counter[Conversion] = Counter()
    for record in data:
        if split is not None and record.split != split:
            continue
        try:
            sample = _checked(record, data.classes)
        except DataError as error:
            skipped.append(error.problem)
        else:
            records.append(record)
            skipped += sample.problems
            conversions.update(sample.conversions)
    if not records:
        have = ", ".join(sorted({r.split for r in data if r.split})) or "none"
        reason = f" The first of {len(skipped)} problems: {skipped[0]}." if skipped else ""
        raise SegsmithError(
            f"{root} has no usable image{f' in split {split!r}' if split else ''}.{reason}",
            f"Splits of this dataset: {have}.",
        )
    return ImportedDataset(
        root,
        data.classes,
        tuple(records),
        tuple(skipped),
        data.has_label_maps,
        data.knows_background,
        conversions,
    )


def _checked(record: Record, classes: Sequence[str]) -> Sample:
    if problem := name_problem(record.id):
        raise DataError("bad_name", record.where, f"the id {record.id!r} {problem}")
    sample = record.load()
    for name in record.labels or ():
        if name not in classes:
            raise DataError("unknown_class", record.where, f"is labelled {name!r}, which is not listed")
    if sample.label_map is None:
        return sample
    if sample.label_map.shape != sample.image.shape[:2]:
        text = f"the image is {sample.image.shape[:2]} pixels (H, W), its mask {sample.label_map.shape}"
        raise DataError("wrong_size", record.where, text)
    undefined = np.flatnonzero(histogram(sample.label_map)[len(classes) + 1 : VOID]) + len(classes) + 1
    if undefined.size:
        text = f"the mask holds {undefined.tolist()}, but there are {len(classes)} classes"
        raise DataError("undefined_index", record.where, text)
    return sample


def match_classes(theirs: Sequence[str], ours: Sequence[str]) -> dict[str, str]:
    """Their names -> ours, of those equal but for case, spaces, hyphens and underscores.

    So VOC's "pottedplant" is "potted plant". Raises `SegsmithError` when two names of one side become equal,
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
    """A split as the evaluation of a segmenter reads it, its label maps in the indices of `classes`.

    A pixel of a class that is not in `classes` is background, as it is for a segmenter that does not know
    the class; `ignored_classes` names those.
    """

    def __init__(self, root: Path, split: str, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.source = import_dataset(root, split)
        if not self.source.has_label_maps:
            raise SegsmithError(
                f"{root} has image labels only.",
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
        return len(self.source.records)

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of every image."""
        return [self.raw(i)[1].shape[:2] for i in range(len(self))]

    def raw(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """(H, W, 3) image and (H, W) label map."""
        sample = self.source.records[index].load()
        assert sample.label_map is not None
        return sample.image, self._table[sample.label_map]
