"""A folder of images per class: image labels, no masks. With or without a level of splits above."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from segsmith.datasets.dataset_files import DatasetFiles
from segsmith.datasets.records import IMAGE_SUFFIXES, LabelledDataset, Problem, Record

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def recognises(root: Path) -> bool:
    """Sub-folders that directly hold images, with or without split folders above."""
    return bool(_class_folders(DatasetFiles(root)))


def read(root: Path) -> LabelledDataset:
    """Each image has one label, the name of its folder; class order is alphabetical."""
    files = DatasetFiles(root)
    folders = _class_folders(files)
    classes = tuple(sorted({path.name for _, path in folders}))
    problems: list[Problem] = []
    records = []
    for split, folder in folders:
        for path in files.files(folder):
            where = files.where(path)
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                problems.append(Problem("stray_file", where, "is not an image"))
                continue
            # Two classes may each have a 1.jpg.
            name = f"{folder.name}/{path.stem}"
            records.append(Record(name, split, where, partial(files.sample, path), (folder.name,), path))
    return LabelledDataset(
        "folders", root, classes, records, problems, has_label_maps=False, exact_images=False
    )


def _class_folders(files: DatasetFiles) -> list[tuple[str, Path]]:
    """(split, folder) of every class folder."""
    children = _folders(files, files.root)
    splits = [p for p in children if p.name in SPLIT_NAMES]
    if splits and len(splits) == len(children):
        return [(SPLIT_NAMES[split.name], p) for split in splits for p in _folders(files, split)]
    return [("", p) for p in children if files.files(p, *IMAGE_SUFFIXES)]


def _folders(files: DatasetFiles, parent: Path) -> list[Path]:
    return [p for p in sorted(parent.iterdir()) if not p.name.startswith(".") and files.is_dir(p)]
