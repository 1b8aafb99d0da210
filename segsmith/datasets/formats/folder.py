"""A folder of images per class: image labels, no masks. With or without a level of splits above."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from segsmith.datasets.labelled_dataset import (
    IMAGE_SUFFIXES,
    Item,
    LabelledDataset,
    Pixels,
    Problem,
    open_picture,
    rgb,
)

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def recognises(root: Path) -> bool:
    """Sub-folders with pictures right inside them, perhaps under split folders."""
    return bool(_class_folders(root))


def read(root: Path) -> LabelledDataset:
    """Each image has one label, the name of its folder; class order is alphabetical."""
    folders = _class_folders(root)
    classes = tuple(sorted({path.name for _, path in folders}))
    problems: list[Problem] = []
    items = []
    for split, folder in folders:
        for path in sorted(folder.iterdir()):
            where = str(path.relative_to(root))
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                problems.append(Problem("stray_file", where, "is no picture"))
                continue
            # Two classes may each have a 1.jpg.
            name = f"{folder.name}/{path.stem}"
            items.append(Item(name, split, where, partial(_load, path), (folder.name,), path))
    return LabelledDataset(
        "folders", root, classes, items, problems, has_label_maps=False, exact_images=False
    )


def _load(path: Path) -> Pixels:
    return rgb(open_picture(path)), None


def _class_folders(root: Path) -> list[tuple[str, Path]]:
    """(split, folder) of every class folder."""
    children = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    splits = [p for p in children if p.name in SPLIT_NAMES]
    if splits and len(splits) == len(children):
        return [
            (SPLIT_NAMES[split.name], p)
            for split in splits
            for p in sorted(split.iterdir())
            if p.is_dir() and not p.name.startswith(".")
        ]
    return [("", p) for p in children if any(f.suffix.lower() in IMAGE_SUFFIXES for f in p.iterdir())]
