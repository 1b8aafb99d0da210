"""Ultralytics: semantic segmentation with PNG masks, and instance segmentation with polygons.

``data.yaml`` is of the semantic task (docs.ultralytics.com/datasets/semantic): ``images/<split>/``, and
``masks/<split>/`` with the same stems, since ``masks_dir`` replaces "images" in a path. Masks are grey PNGs of class
indices, background is class 0, 255 is ignored. ``segment.yaml`` is of the segment task: ``labels/<split>/<id>.txt``
holds a polygon for each object, and class 0 is the first class.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import yaml

from segsmith.datasets.dataset_files import DatasetFiles
from segsmith.datasets.formats.voc import speck_notes
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
from segsmith.datasets.writing import Writer, Written

BACKGROUND = "background"
SEGMENT = "segment.yaml"
FILES = """- `data.yaml`: for the semantic task: `yolo semantic train data=data.yaml model=yolo26n-sem.pt`.
- `segment.yaml`: for the segment task: `yolo segment train data=segment.yaml model=yolo26n-seg.pt`. Class 0 is the
  first class; there is no background.
- `images/<split>/`: the images, byte for byte as the run stored them.
- `masks/<split>/`: grey PNGs of class indices: 0 is background, 255 unknown (ignored).
- `labels/<split>/<id>.txt`: one line for each object: class and polygon, relative to width and height. Nearby pieces
  of a class are one object; the line joins them, and holes, by slits without width, as Ultralytics' converters do.
- `segment-<split>.txt`: the images of the segment task. Polygons cannot say that a pixel is unknown, so an image that
  is labelled with a class of which it shows no object is left out. Specks (objects of fewer than 25 pixels, or
  1/10,000 of a larger image) have no polygon.
- `metadata.jsonl`: the origin of each image."""


def _write_one(sink: Sink, data: RunDataset, record: Record) -> tuple[str, int, bool]:
    """The image's path in the dataset, its specks, and whether each class that it is labelled with has a polygon."""
    files = data.read(record)
    image = f"images/{record.split}/{record.id}{files.suffix}"
    found = data.objects(files)
    files.store_image(sink, image)
    sink.put(f"masks/{record.split}/{record.id}.png", files.grey_mask)
    sink.put(f"labels/{record.split}/{record.id}.txt", found.lines)
    drawn = {data.classes[instance.index - 1] for instance in found.objects}
    return image, found.specks, drawn >= set(record.labels or ())


def _finish(sink: Sink, data: RunDataset, written: Written) -> list[str]:
    """``path`` is left out of the YAML: Ultralytics then takes the YAML's own folder."""
    used = [split for split in SPLITS if data.counts[split] or split == "val"]
    complete: dict[str, list[str]] = {split: [] for split in used}
    specks = 0
    for record, (image, found, is_complete) in written:
        specks += found
        if is_complete:
            complete[record.split].append(image)
    sink.path("images/val/x")  # the YAML must name a val, even an empty one
    semantic = {
        **{split: f"images/{split}" for split in used},
        "masks_dir": "masks",
        "names": dict(enumerate((BACKGROUND, *data.classes))),
    }
    segment = {
        **{split: f"segment-{split}.txt" for split in used},
        "names": dict(enumerate(data.classes)),
    }
    sink.put("data.yaml", yaml.safe_dump(semantic, sort_keys=False).encode())
    sink.put(SEGMENT, yaml.safe_dump(segment, sort_keys=False).encode())
    for split, images in complete.items():
        sink.put(f"segment-{split}.txt", "".join(f"./{image}\n" for image in images).encode())
    sink.put("metadata.jsonl", data.metadata_lines())
    sink.put("README.md", data.readme(FILES))
    left_out = len(data.records) - sum(map(len, complete.values()))
    notes = speck_notes(specks, "have no polygon")
    if left_out:
        notes.append(
            f"{left_out} images are left out of the segment task: a class they are labelled with is unknown."
        )
    return notes


WRITER = Writer(_write_one, _finish)


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
