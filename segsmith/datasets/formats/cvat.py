"""CVAT "Segmentation mask 1.1" (docs.cvat.ai, format-smask): VOC's folders, masks painted in colours.

``labelmap.txt`` names every colour, including that of unknown pixels (index 255): without it CVAT rejects the
upload with "Undeclared label". ``labels.json`` is what CVAT's label constructor takes under "Raw".
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.dataset_files import DatasetFiles, header_of
from segsmith.datasets.objects import object_map
from segsmith.datasets.palette import VOID, voc_palette
from segsmith.datasets.records import DataError, LabelledDataset, Problem, Record, Sample, lossless
from segsmith.datasets.run_dataset import RunDataset
from segsmith.datasets.splits import SPLITS
from segsmith.datasets.staging import Sink
from segsmith.datasets.voc_layout import (
    CLASSES,
    IMAGES,
    LABELMAP,
    OBJECTS,
    SETS,
    labelmap_names,
    labelmap_text,
)
from segsmith.datasets.writing import Writer, Written
from segsmith.files import MASK_FORMATS, MAX_IMAGE_BYTES, png_bytes

FILES = """Zip the content of this folder and upload it as "Segmentation mask 1.1"; create the labels of the
project first, by pasting `labels.json` into the label constructor ("Raw").

- `JPEGImages/`: the images. `SegmentationClass/`, `SegmentationObject/`: masks in the colours of `labelmap.txt`,
  and each connected part of a class in its own colour.
- `ImageSets/Segmentation/`: names of each split. `metadata.jsonl`: the origin of each image."""
SUFFIXES = (".png", ".jpg", ".webp")


def _write_one(sink: Sink, data: RunDataset, record: Record) -> None:
    palette, files = voc_palette(), data.read(record)
    files.store_image(sink, f"{IMAGES}/{record.id}{files.suffix}")
    sink.put(f"{CLASSES}/{record.id}.png", png_bytes(palette[files.label_map]))
    sink.put(f"{OBJECTS}/{record.id}.png", png_bytes(palette[object_map(files.label_map)]))


def _finish(sink: Sink, data: RunDataset, written: Written) -> list[str]:
    """Unknown pixels get the label "ignored"."""
    palette = voc_palette()
    for _ in written:
        pass
    for split in SPLITS:
        if names := [r.id for r in data.records if r.split == split]:
            sink.put(f"{SETS}/{split}.txt", "".join(f"{name}\n" for name in names).encode())
    sink.put(LABELMAP, labelmap_text(data.classes).encode())
    raw = [
        {"name": name, "color": "#" + bytes(palette[index]).hex(), "type": "mask", "attributes": []}
        for index, name in labelmap_names(data.classes).items()
        if index
    ]
    sink.put("labels.json", json.dumps(raw, indent=1).encode())
    sink.put("metadata.jsonl", data.metadata_lines())
    sink.put("README.md", data.readme(FILES))
    return []


WRITER = Writer(_write_one, _finish)


def recognises(root: Path) -> bool:
    """A label map beside VOC's image sets."""
    return (root / LABELMAP).exists() and (root / SETS).is_dir()


def read(root: Path) -> LabelledDataset:
    """Read as the documentation describes: a mask is an image of colours, each of which the label map names."""
    files = DatasetFiles(root)
    classes, table = _labelmap(files)
    problems: list[Problem] = []
    labels = files.metadata()
    records = []
    listed = set()
    for path in files.files(SETS, ".txt"):
        for name in files.lines(path):
            listed.add(name)
            paths = [f"{IMAGES}/{name}{suffix}" for suffix in SUFFIXES]
            image = next((p for p in paths if files.is_file(p)), paths[0])
            load = partial(_load, files, name, image, table)
            where = f"{path.name}: {name}"
            records.append(Record(name, path.stem, where, load, labels.get(name), root / image))
    problems += files.stray_masks(CLASSES, listed)
    return LabelledDataset("cvat", root, classes, records, problems, exact_images=lossless(records))


def _labelmap(files: DatasetFiles) -> tuple[tuple[str, ...], dict[int, int]]:
    """Class names in their order, and packed colour -> index; VOC's colour of 255 is unknown."""
    names: list[str] = []
    table: dict[int, int] = {}
    void = _pack(voc_palette()[VOID])
    for number, line in enumerate(files.text(LABELMAP).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{LABELMAP} line {number}"
        try:
            name, colour, _, _ = line.split(":")
            packed = _pack(np.array([int(v) for v in colour.split(",")], np.uint8))
        except (ValueError, OverflowError):
            raise DataError("bad_file", where, f"is not name:r,g,b:parts:actions ({line[:100]!r})") from None
        if packed in table:
            raise DataError("duplicate_class", where, f"{name!r} has the colour of another label")
        if packed == void or name == "ignored":
            table[packed] = VOID
        elif name == "background":
            table[packed] = 0
        elif len(names) == VOID - 1:
            raise DataError("too_many_classes", where, f"is one label more than {VOID - 1}")
        else:
            names.append(name)
            table[packed] = len(names)
    if not names:
        raise DataError("no_classes", LABELMAP, "names no class")
    return tuple(names), table


def _pack(colours: NDArray[np.uint8]) -> int:
    red, green, blue = (int(v) for v in colours)
    return red << 16 | green << 8 | blue


def _load(files: DatasetFiles, name: str, image: str, table: dict[int, int]) -> Sample:
    label_map = _label_map(files, f"{CLASSES}/{name}.png", table)
    objects = f"{OBJECTS}/{name}.png"
    data = files.read(objects, MAX_IMAGE_BYTES, "corrupt_mask")
    size = header_of(data, objects, "corrupt_mask").size
    if size != label_map.shape:
        raise DataError("wrong_size", objects, f"is {size} pixels (H, W), its class mask {label_map.shape}")
    return files.sample(image, lambda: label_map)


def _label_map(files: DatasetFiles, mask: str, table: dict[int, int]) -> NDArray[np.uint8]:
    """(H, W) uint8 of a mask in colours."""
    data = files.read(mask, MAX_IMAGE_BYTES, "corrupt_mask")
    try:
        sample = Sample(data, None).decode()
    except OSError as error:
        raise DataError("corrupt_mask", mask, str(error)) from None
    if sample.conversions or sample.format not in MASK_FORMATS:
        raise DataError("colour_mask", mask, "is not an 8-bit RGB image in a lossless format")
    label_map = np.empty(sample.image.shape[:2], np.uint8)
    # Row by row, since sorting packed colours takes eight bytes a pixel.
    for row, colours in zip(label_map, sample.image, strict=True):
        red, green, blue = colours.astype(np.uint32).T
        packed, inverse = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
        undefined = next((int(c) for c in packed if int(c) not in table), None)
        if undefined is not None:
            colour = ",".join(str(undefined >> shift & 255) for shift in (16, 8, 0))
            raise DataError("undefined_index", mask, f"colour {colour} is in no label")
        row[:] = np.array([table[int(c)] for c in packed], np.uint8)[inverse.ravel()]
    return label_map
