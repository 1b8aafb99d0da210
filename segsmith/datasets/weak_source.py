"""A foreign dataset as weak labels: what is usable of it, and everything a person should be told about the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.imports import ImportedDataset, import_dataset
from segsmith.datasets.labelled_dataset import Item, Problem
from segsmith.datasets.weak_labels import WeakKind, kind_of, present_classes
from segsmith.errors import SegsmithError
from segsmith.types import IGNORE

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class WeakSource:
    """Split train with weak labels, and whatever other splits there are with their own labels.

    `skipped` are the problems of files left out or mended; `empty` the training images on which nothing is
    labelled, `never` the classes that no training image shows; `image_labels` those of the training images.
    """

    classes: tuple[str, ...]
    kind: WeakKind
    splits: Mapping[str, tuple[Item, ...]]
    skipped: tuple[Problem, ...]
    empty: tuple[str, ...]
    never: tuple[str, ...]
    image_labels: Mapping[str, tuple[str, ...]]
    zero_is_drawn: bool

    def pairs(self, split: str) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
        """(id, image, label map) of each picture; in split train 255 where nobody drew."""
        for item in self.splits[split]:
            image, label_map = item.load()
            if label_map is None:
                label_map = np.full(image.shape[:2], IGNORE, np.uint8)
            weak = split == "train" and not self.zero_is_drawn
            yield item.id, image, undrawn(label_map) if weak else label_map


def undrawn(label_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The map with 255 for 0: nobody said that these pixels are background."""
    return np.where(label_map == 0, IGNORE, label_map).astype(np.uint8)


def open_weak(root: Path, kind: WeakKind | None, zero_is_drawn: bool = True) -> WeakSource:
    """Read a dataset of any format that segsmith knows, and check that its labels are of `kind` (None: any).

    A COCO file that does not say which pixels are unknown has drawn no background, whatever `zero_is_drawn`
    says. Files that cannot be used are skipped and named, as in `import_dataset`. Raises `SegsmithError` where
    that is not safe: no split to train on, ids that clash, dense masks, or labels of a kind that cannot be meant.
    """
    found = import_dataset(root)
    zero_is_drawn = zero_is_drawn and found.knows_background
    splits = _splits(found)
    train = splits["train"]
    for items in splits.values():
        _refuse_clashes(items)
    pictures: dict[str, tuple[int, ...]] = {}
    seen = kind_of(_watched(train, zero_is_drawn, pictures))
    labels = {
        item.id: tuple(
            sorted({*(item.labels or ()), *(found.classes[i - 1] for i in pictures[item.id])},
                   key=found.classes.index)
        )
        for item in train
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
    )


def _splits(found: ImportedDataset) -> dict[str, tuple[Item, ...]]:
    """Items under train, val and test; "train2017" is train, and a dataset without splits is all train."""
    if set(found.splits) == {""}:
        return {"train": found.items}
    splits = {name: tuple(item for item in found.items if item.split.startswith(name)) for name in SPLITS}
    if not splits["train"]:
        raise SegsmithError(
            f"{found.root} has no split train, only {', '.join(sorted(found.splits))}.",
            "List the images to train on in ImageSets/Segmentation/train.txt (VOC) or "
            "annotations/instances_train.json (COCO).",
        )
    return {name: items for name, items in splits.items() if items}


def _watched(
    items: tuple[Item, ...], zero_is_drawn: bool, pictures: dict[str, tuple[int, ...]]
) -> Iterator[NDArray[np.uint8]]:
    """The label maps one after the other; notes the classes of each picture in passing."""
    for item in items:
        label_map = item.load()[1]
        pictures[item.id] = () if label_map is None else present_classes(label_map)
        if label_map is not None:
            yield label_map if zero_is_drawn else undrawn(label_map)


def _agreed(
    root: Path, asked: WeakKind | None, seen: WeakKind | None, labels: Mapping[str, tuple[str, ...]]
) -> WeakKind:
    if not any(labels.values()):
        raise SegsmithError(
            f"No class is labelled in split train of {root}: every mask is 255, and no image label is stated.",
            "Draw at least a point on each object, add labels.csv (image_id, classes), or start from a class "
            "list with `segsmith build`.",
        )
    if seen is None:
        raise SegsmithError(
            f"The masks in split train of {root} label every pixel: there is nothing to refine.",
            "Type --zero-is-undrawn if index 0 means that nobody drew there; `segsmith weaken` makes weak labels.",
        )
    if asked is not None and (asked == "image") != (seen == "image"):
        there = "no pixel is labelled" if seen == "image" else f"the labels look like {seen}"
        raise SegsmithError(
            f"--weak is {asked}, but in split train of {root} {there}.", f"Type --weak {seen}."
        )
    return asked or seen


def _refuse_clashes(items: tuple[Item, ...]) -> None:
    ids = set()
    for item in items:
        path = PurePosixPath(item.id)
        if path.is_absolute() or ".." in path.parts:
            raise SegsmithError(f"{item.where}: the id {item.id!r} leaves the dataset.", "Rename that image.")
        if item.id in ids:
            raise SegsmithError(f"{item.where}: two images have the id {item.id!r}.", "Rename one of them.")
        ids.add(item.id)
