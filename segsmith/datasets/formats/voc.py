"""PASCAL VOC segmentation: JPEGs, palette PNGs of classes and of objects, and image sets."""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from segsmith.datasets.dataset_files import DatasetFiles
from segsmith.datasets.objects import object_map
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
from segsmith.datasets.voc_layout import CLASS_NAMES, CLASSES, IMAGES, LABELS, SETS, VocLayout, image_labels

JPEG_QUALITY = 95
FILES = f"""- `JPEGImages/<id>.jpg`: the images (JPEG, quality {JPEG_QUALITY}).
- `SegmentationClass/<id>.png`: palette PNG of class indices; 0 is background, 255 is unknown (ignore it).
- `SegmentationObject/<id>.png`: each connected part of a class has a number; 255 is unknown.
- `ImageSets/Segmentation/`: ids of train, val, test and trainval. `classes.txt`: line n is index n.
- `labels.csv`: for each image its classes (separated by `|`), prompt, split, seed, image model, scores,
  and whether it is real or generated (`source`)."""
SUFFIXES = (".jpg", ".png", ".jpeg")

ANNOTATIONS = 500
"""Annotation files that are searched for the names of objects."""
MAX_XML_BYTES = 1 << 20

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Indices 1 to 20 of the VOC 2007 to 2012 challenges, which are distributed without a list of names."""


def write(sink: Sink, data: RunDataset) -> None:
    """Write the dataset; ``labels.csv`` holds image labels and provenance."""
    layout = VocLayout(sink.put, SPLITS)
    for record in data.records:
        sample = record.load()
        assert sample.label_map is not None
        jpeg = sample.jpeg or jpeg_bytes(sample.image)
        layout.add(record.split, record.id, (".jpg", jpeg), sample.label_map, object_map(sample.label_map))
    layout.finish(data.classes)
    sink.put(LABELS, _labels_csv(data).encode())
    sink.put("README.md", data.readme(FILES))


def jpeg_bytes(image: NDArray[np.uint8]) -> bytes:
    """The JPEG that an export holds in place of a generated (H, W, 3) image."""
    file = io.BytesIO()
    # Without chroma subsampling, which would smear colour across object borders at 128 px.
    PILImage.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def _labels_csv(data: RunDataset) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["image_id", "classes", "prompt", "split", "seed", "backend", "prompt_family", "scores"]
    writer.writerow([*columns, "source"])
    for r in data.records:
        assert r.origin is not None
        o = r.origin
        scores = "|".join(f"{name}={value}" for name, value in o.scores.items())
        labels = "|".join(r.labels or ())
        writer.writerow([r.id, labels, o.prompt, r.split, o.seed, o.backend, o.family, scores, o.source])
    return text.getvalue()


def recognises(root: Path) -> bool:
    """Image sets and index masks, but no CVAT label map."""
    return (root / SETS).is_dir() and not (root / "labelmap.txt").exists()


def read(root: Path) -> LabelledDataset:
    """Read image sets, classes and image labels; of images JPEG is preferred to PNG."""
    files = DatasetFiles(root)
    problems: list[Problem] = []
    classes = _classes(files, problems)
    sets = _image_sets(files, problems)
    try:
        labels = image_labels(files)
    except DataError as error:
        labels = {}
        problems.append(error.problem)
    records = []
    for split, names in sets.items():
        for name in names:
            image = _image_path(files, name)
            load = partial(_load, files, image, f"{CLASSES}/{name}.png")
            stated = labels[name].classes if name in labels else None
            records.append(Record(name, split, f"{SETS}/{split}.txt: {name}", load, stated, root / image))
    problems += files.stray_masks(CLASSES, {name for names in sets.values() for name in names})
    return LabelledDataset("voc", root, classes, records, problems, exact_images=lossless(records))


def _load(files: DatasetFiles, image: str, mask: str) -> Sample:
    return files.sample(image, lambda: files.index_map(mask).indices)


def _image_path(files: DatasetFiles, name: str) -> str:
    paths = [f"{IMAGES}/{name}{suffix}" for suffix in SUFFIXES]
    return next((path for path in paths if files.is_file(path)), paths[0])


def _image_sets(files: DatasetFiles, problems: list[Problem]) -> dict[str, list[str]]:
    """Split -> names, of the sets that do not merely join others."""
    sets = {}
    for path in files.files(SETS, ".txt"):
        try:
            sets[path.stem] = files.lines(path)
        except DataError as error:
            problems.append(error.problem)
    sets = _without_extensions(files, sets, problems)
    if {"train", "val"} <= sets.keys():
        joined = sets.pop("trainval", None)
        if joined is not None and sorted(joined) != sorted(sets["train"] + sets["val"]):
            problems.append(
                Problem("bad_split", f"{SETS}/trainval.txt", "does not hold the names of train and val")
            )
    if not sets:
        raise DataError("bad_file", SETS, "names no image set")
    return sets


def _without_extensions(
    files: DatasetFiles, sets: dict[str, list[str]], problems: list[Problem]
) -> dict[str, list[str]]:
    """The sets with "cat1.jpg" read as "cat1" where the folder says that it is meant; one problem for all."""
    stems: dict[str, list[str]] = {}
    examples: list[str] = []
    for split, names in sets.items():
        stems[split] = [_stem(files, name) for name in names]
        examples += [name for name, stem in zip(names, stems[split], strict=True) if name != stem]
    if examples:
        lists = ", ".join(f"{split}.txt" for split in sets if stems[split] != sets[split])
        text = f"name files, not ids: {len(examples)} lines end with an extension, such as {examples[0]!r}; they are "
        problems.append(Problem("bad_split", f"{SETS}: {lists}", f"{text}read without it"))
    return stems


def _stem(files: DatasetFiles, name: str) -> str:
    """The id that a line of a split list means: itself, unless it is a file name whose stem has a mask."""
    stem, dot, suffix = name.rpartition(".")
    if not dot or f".{suffix.lower()}" not in IMAGE_SUFFIXES or files.is_file(f"{CLASSES}/{name}.png"):
        return name
    return stem if files.is_file(f"{CLASSES}/{stem}.png") else name


def _classes(files: DatasetFiles, problems: list[Problem]) -> tuple[str, ...]:
    """From classes.txt; else VOC's own twenty, if the names of objects in Annotations agree."""
    if files.is_file(CLASS_NAMES):
        names = files.lines(CLASS_NAMES)
        if not names:
            raise DataError("bad_file", CLASS_NAMES, "names no class")
        problems.extend(
            Problem("duplicate_class", CLASS_NAMES, f"{name!r} is named twice")
            for name in sorted({n for n in names if names.count(n) > 1})
        )
        return tuple(names)
    found = {
        node.text or ""
        for path in files.files("Annotations", ".xml")[:ANNOTATIONS]
        for node in _objects(files, path)
    }
    if found and found <= set(VOC_CLASSES):
        return VOC_CLASSES
    raise DataError(
        "no_classes",
        CLASS_NAMES,
        "is missing, so the meaning of the indices is unknown; write one class a line, line i for index i",
    )


def _objects(files: DatasetFiles, path: Path) -> list[Any]:
    try:
        text = files.text(path, MAX_XML_BYTES)
        # A document type is where XML defines entities that expand to gigabytes.
        return [] if "<!" in text.replace("<!--", "") else ElementTree.fromstring(text).findall("object/name")
    except (DataError, ElementTree.ParseError, ValueError):
        return []
