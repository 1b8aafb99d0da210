"""PASCAL VOC segmentation: JPEGs, palette PNGs of classes and of objects, and image sets."""

from __future__ import annotations

import csv
import io
import tempfile
import weakref
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from segsmith.datasets.labelled_dataset import (
    DataError,
    Item,
    LabelledDataset,
    Pixels,
    Problem,
    indices,
    lossless,
    open_picture,
    rgb,
    stray_masks,
)
from segsmith.datasets.objects import object_map
from segsmith.datasets.records import Collection
from segsmith.datasets.splits import SPLITS
from segsmith.datasets.staging import Sink
from segsmith.datasets.voc_layout import CLASS_NAMES, CLASSES, IMAGES, SETS, VocLayout

JPEG_QUALITY = 95
FILES = f"""- `JPEGImages/<id>.jpg`: the pictures (JPEG, quality {JPEG_QUALITY}).
- `SegmentationClass/<id>.png`: palette PNG of class indices; 0 is background, 255 is unknown (ignore it).
- `SegmentationObject/<id>.png`: each connected part of a class has a number; 255 is unknown.
- `ImageSets/Segmentation/`: ids of train, val, test and trainval. `classes.txt`: line n is index n.
- `labels.csv`: classes of each image (separated by `|`), its prompt, split, seed, image model, scores,
  and whether it is real or generated (`source`)."""
SUFFIXES = (".jpg", ".png", ".jpeg")

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Indices 1 to 20 of the VOC 2007 to 2012 challenges, which ship without a list of names."""


def write(sink: Sink, data: Collection) -> None:
    """Write the dataset; ``labels.csv`` holds image labels and provenance."""
    layout = VocLayout(sink.put, SPLITS)
    for record in data.records:
        sample = data.read(record)
        layout.add(
            record.split,
            record.id,
            (".jpg", sample.jpeg or _jpeg(sample.image)),
            sample.label_map,
            object_map(sample.label_map),
        )
    layout.finish(data.classes)
    sink.put("labels.csv", _labels_csv(data).encode())
    sink.put("README.md", data.readme(FILES))


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    # Without chroma subsampling: at 128 px it would smear colour across object borders.
    PILImage.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def _labels_csv(data: Collection) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["image_id", "classes", "prompt", "split", "seed", "backend", "prompt_family", "scores"]
    writer.writerow([*columns, "source"])
    for r in data.records:
        scores = "|".join(f"{name}={value}" for name, value in r.scores.items())
        writer.writerow(
            [r.id, "|".join(r.labels), r.prompt.text, r.split, r.seed, r.backend, r.family, scores, r.source]
        )
    return text.getvalue()


def recognises(root: Path) -> bool:
    """Image sets and index masks, but no CVAT label map."""
    return (root / SETS).is_dir() and not (root / "labelmap.txt").exists()


def read(root: Path) -> LabelledDataset:
    """Read with torchvision's `VOCSegmentation`; pictures it cannot name (PNG) are opened with Pillow."""
    problems: list[Problem] = []
    classes = _classes(root, problems)
    sets = _image_sets(root, problems)
    labels = _labels(root)
    entries = [(split, name, _image_path(root, name)) for split, names in sets.items() for name in names]
    reader = _VocReader(root) if all(path.suffix == ".jpg" for *_, path in entries) else None
    items = []
    for split, names in sets.items():
        for position, name in enumerate(names):
            load = _loader(root, name, reader, split, position)
            path = _image_path(root, name)
            items.append(Item(name, split, f"{SETS}/{split}.txt: {name}", load, labels.get(name), path))
    listed = {name for names in sets.values() for name in names}
    problems += stray_masks(root, CLASSES, listed)
    return LabelledDataset("voc", root, classes, items, problems, exact_images=lossless(items))


class _VocReader:
    """torchvision finds a dataset only under VOCdevkit/VOC2007, so a link of that name points at it.

    The year 2007 is the one in which torchvision has a test set.
    """

    def __init__(self, root: Path) -> None:
        folder = tempfile.TemporaryDirectory(prefix="segsmith-voc-")
        weakref.finalize(self, folder.cleanup)
        self._base = Path(folder.name)
        (self._base / "VOCdevkit").mkdir()
        (self._base / "VOCdevkit" / "VOC2007").symlink_to(root.resolve(), target_is_directory=True)
        self._open: dict[str, Any] = {}

    def read(self, split: str, position: int) -> tuple[PILImage.Image, PILImage.Image]:
        from torchvision.datasets import VOCSegmentation

        if split not in self._open:
            self._open[split] = VOCSegmentation(str(self._base), year="2007", image_set=split)
        image, mask = self._open[split][position]
        mask.load()
        return image, mask


def _loader(root: Path, name: str, reader: _VocReader | None, split: str, position: int) -> Any:
    image_path, mask_path = _image_path(root, name), root / CLASSES / f"{name}.png"

    def load() -> Pixels:
        if reader is not None and split in (*SPLITS, "trainval"):
            try:
                image, mask = reader.read(split, position)
                return rgb(image), indices(mask, mask_path.name)
            except (OSError, SyntaxError, ValueError):
                pass  # say below which of the two files it is
        image, mask = open_picture(image_path), open_picture(mask_path, "corrupt_mask")
        return rgb(image), indices(mask, mask_path.name)

    return load


def _image_path(root: Path, name: str) -> Path:
    paths = [root / IMAGES / f"{name}{suffix}" for suffix in SUFFIXES]
    return next((path for path in paths if path.exists()), paths[0])


def _image_sets(root: Path, problems: list[Problem]) -> dict[str, list[str]]:
    """Split -> names, of the sets that do not merely join others."""
    sets = {}
    for path in sorted((root / SETS).glob("*.txt")):
        try:
            sets[path.stem] = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem("bad_file", f"{SETS}/{path.name}", f"cannot be read ({error})"))
    if {"train", "val"} <= sets.keys():
        joined = sets.pop("trainval", None)
        if joined is not None and sorted(joined) != sorted(sets["train"] + sets["val"]):
            problems.append(
                Problem("bad_split", f"{SETS}/trainval.txt", "does not hold the names of train and val")
            )
    if not sets:
        raise DataError("bad_file", SETS, "names no image set")
    return sets


def _classes(root: Path, problems: list[Problem]) -> tuple[str, ...]:
    """From classes.txt; else VOC's own twenty, if the object names in Annotations bear that out."""
    path = root / CLASS_NAMES
    if path.exists():
        try:
            names = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise DataError("bad_file", CLASS_NAMES, f"cannot be read ({error})") from None
        if not names:
            raise DataError("bad_file", CLASS_NAMES, "names no class")
        problems.extend(
            Problem("duplicate_class", CLASS_NAMES, f"{name!r} is named twice")
            for name in sorted({n for n in names if names.count(n) > 1})
        )
        return tuple(names)
    found = {
        node.text or ""
        for file in sorted((root / "Annotations").glob("*.xml"))[:500]
        for node in _objects(file)
    }
    if found and found <= set(VOC_CLASSES):
        return VOC_CLASSES
    raise DataError(
        "no_classes",
        CLASS_NAMES,
        "is missing, so nobody knows what the indices mean; write one class a line, line i for index i",
    )


def _objects(path: Path) -> list[Any]:
    try:
        return ElementTree.parse(path).getroot().findall("object/name")
    except (ElementTree.ParseError, OSError):
        return []


def _labels(root: Path) -> dict[str, tuple[str, ...]]:
    path = root / "labels.csv"
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {r["image_id"]: tuple(filter(None, r["classes"].split("|"))) for r in csv.DictReader(file)}
    except (KeyError, UnicodeDecodeError, csv.Error, AttributeError):
        return {}
