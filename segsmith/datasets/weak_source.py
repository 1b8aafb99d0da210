"""A foreign dataset as weak labels: its usable images, and what the user should know of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.imports import ImportedDataset, import_dataset
from segsmith.datasets.objects import histogram, present_classes
from segsmith.datasets.records import Problem, Record
from segsmith.datasets.weak_labels import WeakKind, kind_of
from segsmith.errors import SegsmithError
from segsmith.files import Conversion
from segsmith.types import IGNORE

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class WeakSource:
    """Split train with weak labels, and the other splits with their own labels.

    `background` is whether index 0 is a class of the data: it is drawn, or the labels cannot say where it is (image
    labels, or 0 that means undrawn). In masks that mark undrawn pixels as 255 and hold no 0, every pixel belongs
    to a class. `skipped` are the problems of files left out or repaired; `empty` the training images on which
    nothing is labelled, `never` the classes that no training image shows; `image_labels` the classes of the
    training images by id; `conversions` counts the images that are not used as they are stored.
    """

    classes: tuple[str, ...]
    kind: WeakKind
    splits: Mapping[str, tuple[Record, ...]]
    skipped: tuple[Problem, ...]
    empty: tuple[str, ...]
    never: tuple[str, ...]
    image_labels: Mapping[str, tuple[str, ...]]
    zero_is_drawn: bool
    background: bool
    conversions: Mapping[Conversion, int] = field(default_factory=dict)

    def pairs(self, split: str) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
        """(id, image, label map) of each image; in split train, pixels without a label are 255."""
        for record in self.splits[split]:
            sample = record.load()
            label_map = sample.label_map
            if label_map is None:
                label_map = np.full(sample.image.shape[:2], IGNORE, np.uint8)
            weak = split == "train" and not self.zero_is_drawn
            yield record.id, sample.image, undrawn(label_map) if weak else label_map


def undrawn(label_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The map with 255 for 0: these pixels are not known to be background."""
    return np.where(label_map == 0, IGNORE, label_map).astype(np.uint8)


def open_weak(root: Path, kind: WeakKind | None, zero_is_drawn: bool = True) -> WeakSource:
    """Read a dataset of any format that segsmith knows, and check that its labels are of `kind` (None: any).

    A COCO file that does not state which pixels are unknown labels no background, whatever `zero_is_drawn`
    says. Files that cannot be used are skipped and named, as in `import_dataset`. Raises `SegsmithError` where
    that is not safe: no split to train on, ids that clash, dense masks, or labels of another kind than `kind`.
    """
    found = import_dataset(root)
    zero_is_drawn = zero_is_drawn and found.knows_background
    splits = _splits(found)
    train = splits["train"]
    for records in splits.values():
        _refuse_clashes(records)
    shown_in: dict[str, tuple[int, ...]] = {}
    drawn_values: set[int] = set()
    seen = kind_of(_label_maps(train, zero_is_drawn, shown_in, drawn_values))
    labels = {
        record.id: tuple(
            sorted({*(record.labels or ()), *(found.classes[i - 1] for i in shown_in[record.id])},
                   key=found.classes.index)
        )
        for record in train
    }  # fmt: skip
    kind = _agreed(root, kind, seen, labels)
    shown = {name for names in labels.values() for name in names}
    return WeakSource(
        found.classes,
        kind,
        splits,
        found.skipped,
        tuple(name for name, names in labels.items() if not names),
        tuple(name for name in found.classes if name not in shown),
        labels,
        zero_is_drawn,
        not zero_is_drawn or kind == "image" or 0 in drawn_values,
        found.conversions,
    )


def _splits(found: ImportedDataset) -> dict[str, tuple[Record, ...]]:
    """Records of train, val and test; "train2017" is train, and a dataset without splits is all train."""
    if set(found.splits) == {""}:
        return {"train": found.records}
    splits = {name: tuple(r for r in found.records if r.split.startswith(name)) for name in SPLITS}
    if not splits["train"]:
        raise SegsmithError(
            f"{found.root} has no split train, only {', '.join(sorted(found.splits))}.",
            "List the images to train on in ImageSets/Segmentation/train.txt (VOC) or "
            "annotations/instances_train.json (COCO).",
        )
    return {name: records for name, records in splits.items() if records}


def _label_maps(
    records: tuple[Record, ...],
    zero_is_drawn: bool,
    shown_in: dict[str, tuple[int, ...]],
    drawn_values: set[int],
) -> Iterator[NDArray[np.uint8]]:
    """The label maps one by one; `shown_in` collects the classes of each image, `drawn_values` all values."""
    for record in records:
        label_map = record.load().label_map
        shown_in[record.id] = () if label_map is None else present_classes(label_map)
        if label_map is not None:
            drawn = label_map if zero_is_drawn else undrawn(label_map)
            drawn_values.update(np.flatnonzero(histogram(drawn)).tolist())
            yield drawn


def _agreed(
    root: Path, asked: WeakKind | None, seen: WeakKind | None, labels: Mapping[str, tuple[str, ...]]
) -> WeakKind:
    if not any(labels.values()):
        raise SegsmithError(
            f"No class is labelled in split train of {root}: every mask is 255, and there are no image labels.",
            "Draw at least a point on each object, add labels.csv (image_id, classes), or start from a class "
            "list with `segsmith build`.",
        )
    if seen is None:
        raise SegsmithError(
            f"The masks in split train of {root} label every pixel, so there is nothing to refine.",
            'Type --zero-is-undrawn if index 0 means "not labelled"; `segsmith weaken` makes weak labels.',
        )
    if asked is not None and (asked == "image") != (seen == "image"):
        there = "no pixel is labelled" if seen == "image" else f"the labels look like {seen}"
        raise SegsmithError(
            f"--weak is {asked}, but in split train of {root} {there}.", f"Type --weak {seen}."
        )
    return asked or seen


def _refuse_clashes(records: tuple[Record, ...]) -> None:
    ids = set()
    for record in records:
        if record.id in ids:
            raise SegsmithError(
                f"{record.where}: two images have the id {record.id!r}.", "Rename one of them."
            )
        ids.add(record.id)
