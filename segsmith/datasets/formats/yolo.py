"""Ultralytics semantic segmentation with PNG masks (docs.ultralytics.com/datasets/semantic).

``images/<split>/``, ``masks/<split>/`` of the same stems, and ``data.yaml`` whose ``masks_dir`` replaces
"images" in a path. Masks are grey PNGs of class indices, background is class 0, 255 is ignored.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import yaml

from segsmith.datasets.labelled_dataset import (
    IMAGE_SUFFIXES,
    DataError,
    Item,
    LabelledDataset,
    Pixels,
    Problem,
    indices,
    lossless,
    open_picture,
    rgb,
)
from segsmith.datasets.records import Collection, metadata_lines, read_metadata
from segsmith.datasets.splits import SPLITS
from segsmith.datasets.staging import Sink

BACKGROUND = "background"
FILES = """- `data.yaml`: what Ultralytics is given: `yolo semantic train data=data.yaml model=yolo26n-sem.pt`.
- `images/<split>/`, `masks/<split>/`: pictures, and grey PNGs of class indices.
- `metadata.jsonl`: where each picture comes from."""


def write(sink: Sink, data: Collection) -> None:
    """Write the dataset. ``path`` is left out of the YAML: Ultralytics then takes the YAML's own folder."""
    for record in data.records:
        sample = data.read(record)
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
    sink.put("metadata.jsonl", metadata_lines(data))
    sink.put("README.md", data.readme(FILES))


def recognises(root: Path) -> bool:
    """A data.yaml."""
    return (root / "data.yaml").exists()


def read(root: Path) -> LabelledDataset:
    """Read as the documentation describes; Ultralytics itself (AGPL, with its own torch stack) is not needed."""
    problems: list[Problem] = []
    try:
        description = yaml.safe_load((root / "data.yaml").read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError("bad_file", "data.yaml", f"is not YAML ({error})") from None
    if not isinstance(description, dict):
        raise DataError("bad_file", "data.yaml", "is not a mapping")
    names = _names(description, problems)
    masks_dir = description.get("masks_dir")
    if not isinstance(masks_dir, str):
        raise DataError("bad_file", "data.yaml", "has no masks_dir; polygon labels are not read")
    labels = read_metadata(root / "metadata.jsonl")
    items = []
    for split in SPLITS:
        folder = description.get(split)
        if folder is None and split == "test":
            continue
        if not isinstance(folder, str) or not (root / folder).is_dir():
            problems.append(
                Problem("missing_file", "data.yaml", f"{split} is {folder!r}, which is no folder here")
            )
            continue
        images = [p for p in sorted((root / folder).rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            problems.append(Problem("empty_split", folder, f"{split} has no image; Ultralytics needs one"))
        known = set()
        for path in images:
            mask = _mask_of(root, path, masks_dir)
            known.add(mask)
            where = str(path.relative_to(root))
            load = partial(_load, path, mask)
            items.append(Item(path.stem, split, where, load, labels.get(path.stem), path))
        stray = set((root / folder.replace("images", masks_dir, 1)).rglob("*.png")) - known
        problems += [
            Problem("stray_file", str(p.relative_to(root)), "is a mask without image") for p in sorted(stray)
        ]
    return LabelledDataset("yolo", root, names[1:], items, problems, exact_images=lossless(items))


def _names(description: dict[str, Any], problems: list[Problem]) -> tuple[str, ...]:
    names = description.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise DataError("no_classes", "data.yaml", "names is no list or mapping of class names")
    if sorted(names) != list(range(len(names))):
        raise DataError(
            "unknown_class", "data.yaml", f"the ids in names are {sorted(names)}, not 0, 1, 2 ..."
        )
    ordered = tuple(names[i] for i in range(len(names)))
    problems += [
        Problem("duplicate_class", "data.yaml", f"{name!r} is named twice")
        for name in sorted({n for n in ordered if ordered.count(n) > 1})
    ]
    if ordered[0] != BACKGROUND:
        raise DataError(
            "no_classes", "data.yaml", f"class 0 is {ordered[0]!r}; segsmith needs background there"
        )
    return ordered


def _mask_of(root: Path, image: Path, masks_dir: str) -> Path:
    parts = list(image.relative_to(root).parts)
    if "images" in parts:
        parts[parts.index("images")] = masks_dir
    return (root / Path(*parts)).with_suffix(".png")


def _load(image: Path, mask: Path) -> Pixels:
    picture = open_picture(mask, "corrupt_mask")
    if picture.mode == "P":
        # OpenCV, which Ultralytics reads with, turns a palette into colours.
        raise DataError("colour_mask", mask.name, "is a palette picture; Ultralytics needs grey values")
    return rgb(open_picture(image)), indices(picture, mask.name)
