"""Ultralytics semantic segmentation with PNG masks (docs.ultralytics.com/datasets/semantic).

``images/<split>/``, ``masks/<split>/`` with the same stems, and ``data.yaml``, whose ``masks_dir`` replaces
"images" in a path. Masks are grey PNGs of class indices, background is class 0, 255 is ignored.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import yaml

from segsmith.datasets.dataset_files import DatasetFiles
from segsmith.datasets.palette import VOID
from segsmith.datasets.records import (
    IMAGE_SUFFIXES,
    DataError,
    LabelledDataset,
    Problem,
    Record,
    Sample,
    lossless,
)
from segsmith.datasets.run_dataset import RunDataset
from segsmith.datasets.splits import SPLITS
from segsmith.datasets.staging import Sink

BACKGROUND = "background"
FILES = """- `data.yaml`: the description for Ultralytics: `yolo semantic train data=data.yaml model=yolo26n-sem.pt`.
- `images/<split>/`, `masks/<split>/`: images, and grey PNGs of class indices.
- `metadata.jsonl`: the origin of each image."""


def write(sink: Sink, data: RunDataset) -> None:
    """Write the dataset. ``path`` is left out of the YAML: Ultralytics then takes the YAML's own folder."""
    for record in data.records:
        sample = record.load()
        sink.put(f"images/{record.split}/{record.id}.png", sample.png)
        sink.put(f"masks/{record.split}/{record.id}.png", sample.index_png)
    used = [split for split in SPLITS if data.counts[split] or split == "val"]
    sink.path("images/val/x")  # the YAML must name a val, even an empty one
    description = {
        **{split: f"images/{split}" for split in used},
        "masks_dir": "masks",
        "names": dict(enumerate((BACKGROUND, *data.classes))),
    }
    sink.put("data.yaml", yaml.safe_dump(description, sort_keys=False).encode())
    sink.put("metadata.jsonl", data.metadata_lines())
    sink.put("README.md", data.readme(FILES))


def recognises(root: Path) -> bool:
    """A data.yaml."""
    return (root / "data.yaml").exists()


def read(root: Path) -> LabelledDataset:
    """Read as the documentation describes; Ultralytics itself (AGPL, with its own torch stack) is not needed."""
    files = DatasetFiles(root)
    problems: list[Problem] = []
    description = files.yaml("data.yaml")
    if not isinstance(description, dict):
        raise DataError("bad_file", "data.yaml", "is not a mapping")
    names = _names(description, problems)
    masks_dir = description.get("masks_dir")
    if not isinstance(masks_dir, str):
        raise DataError("bad_file", "data.yaml", "has no masks_dir; polygon labels are not read")
    labels = files.metadata()
    records = []
    for split in SPLITS:
        folder = description.get(split)
        if folder is None and split == "test":
            continue
        if not isinstance(folder, str) or not files.is_dir(folder):
            problems.append(_no_folder(files, split, folder))
            continue
        images = files.walk(folder, *IMAGE_SUFFIXES)
        if not images:
            problems.append(Problem("empty_split", folder, f"{split} has no image; Ultralytics needs one"))
        known = set()
        for path in images:
            mask = _mask_of(files.root, path, masks_dir)
            known.add(mask)
            load = partial(_load, files, path, mask)
            where = files.where(path)
            records.append(Record(path.stem, split, where, load, labels.get(path.stem), path))
        masks = files.walk(folder.replace("images", masks_dir, 1), ".png")
        problems += [
            Problem("stray_file", files.where(p), "is a mask without an image")
            for p in masks
            if p not in known
        ]
    return LabelledDataset("yolo", root, names[1:], records, problems, exact_images=lossless(records))


def _no_folder(files: DatasetFiles, split: str, folder: object) -> Problem:
    try:
        files.path(str(folder))
    except DataError as error:
        return error.problem
    return Problem(
        "missing_file", "data.yaml", f"{split} is {str(folder)[:100]!r}, which is not a folder here"
    )


def _names(description: dict[Any, Any], problems: list[Problem]) -> tuple[str, ...]:
    names = description.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise DataError("no_classes", "data.yaml", "names is not a list or mapping of class names")
    if set(names) != set(range(len(names))):
        stated = ", ".join(str(key)[:20] for key in list(names)[:20])
        raise DataError("unknown_class", "data.yaml", f"the ids in names are {stated}, not 0, 1, 2 ...")
    if len(names) > VOID:
        raise DataError("too_many_classes", "data.yaml", f"names more than {VOID - 1} classes")
    ordered = tuple(names[i] for i in range(len(names)))
    problems += [
        Problem("duplicate_class", "data.yaml", f"{name!r} is named twice")
        for name in sorted({n for n in ordered if ordered.count(n) > 1})
    ]
    if ordered[0] != BACKGROUND:
        text = f"class 0 is {ordered[0][:100]!r}; segsmith needs background there"
        raise DataError("no_classes", "data.yaml", text)
    return ordered


def _mask_of(root: Path, image: Path, masks_dir: str) -> Path:
    parts = list(image.relative_to(root).parts)
    if "images" in parts:
        parts[parts.index("images")] = masks_dir
    return (root / Path(*parts)).with_suffix(".png")


def _load(files: DatasetFiles, image: Path, mask: Path) -> Sample:
    found = files.index_map(mask)
    if found.has_palette:
        # OpenCV, which Ultralytics reads with, turns a palette into colours.
        raise DataError("colour_mask", files.where(mask), "is a palette image; Ultralytics needs grey values")
    return files.sample(image, lambda: found.indices)
