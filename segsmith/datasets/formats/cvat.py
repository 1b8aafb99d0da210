"""CVAT "Segmentation mask 1.1" (docs.cvat.ai, format-smask): VOC's folders, masks painted in colours.

``labelmap.txt`` gives every colour a name, the unknown pixels' (index 255) too: without it CVAT refuses the
upload with "Undeclared label". ``labels.json`` is what CVAT's label constructor takes under "Raw".
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.labelled_dataset import (
    DataError,
    Item,
    LabelledDataset,
    Pixels,
    Problem,
    lossless,
    open_picture,
    rgb,
    stray_masks,
)
from segsmith.datasets.objects import object_map
from segsmith.datasets.palette import VOID, voc_palette
from segsmith.datasets.records import Collection, metadata_lines, read_metadata
from segsmith.datasets.splits import SPLITS
from segsmith.datasets.staging import Sink
from segsmith.datasets.voc_layout import CLASSES, IMAGES, OBJECTS, SETS
from segsmith.files import png_bytes

LABELMAP = "labelmap.txt"
FILES = """Zip the content of this folder and upload it as "Segmentation mask 1.1"; create the labels of the
project before, by pasting `labels.json` into the label constructor ("Raw").

- `JPEGImages/`: the pictures. `SegmentationClass/`, `SegmentationObject/`: masks in the colours of `labelmap.txt`,
  and each connected part of a class in a colour of its own.
- `ImageSets/Segmentation/`: names of each split. `metadata.jsonl`: where each picture comes from."""


def write(sink: Sink, data: Collection) -> None:
    """Write the dataset; unknown pixels get the label "ignored"."""
    palette = voc_palette()
    for record in data.records:
        sample = data.read(record)
        sink.put(f"{IMAGES}/{record.id}.png", sample.png)
        sink.put(f"{CLASSES}/{record.id}.png", png_bytes(palette[sample.label_map]))
        sink.put(f"{OBJECTS}/{record.id}.png", png_bytes(palette[object_map(sample.label_map)]))
    for split in SPLITS:
        if names := [r.id for r in data.records if r.split == split]:
            sink.put(f"{SETS}/{split}.txt", "".join(f"{name}\n" for name in names).encode())
    labels = {
        **dict(enumerate(("background", *data.classes))),
        VOID: "ignored" if "ignored" not in data.classes else "ignored 255",
    }
    lines = ["# label:color_rgb:parts:actions"]
    lines += [f"{name}:{','.join(str(v) for v in palette[index])}::" for index, name in labels.items()]
    sink.put(LABELMAP, ("\n".join(lines) + "\n").encode())
    raw = [
        {"name": name, "color": "#" + bytes(palette[index]).hex(), "type": "mask", "attributes": []}
        for index, name in labels.items()
        if index
    ]
    sink.put("labels.json", json.dumps(raw, indent=1).encode())
    sink.put("metadata.jsonl", metadata_lines(data))
    sink.put("README.md", data.readme(FILES))


def recognises(root: Path) -> bool:
    """A label map beside VOC's image sets."""
    return (root / LABELMAP).exists() and (root / SETS).is_dir()


def read(root: Path) -> LabelledDataset:
    """Read as the documentation describes: a mask is a picture of colours, each of which the label map names."""
    classes, table = _labelmap(root)
    problems: list[Problem] = []
    labels = read_metadata(root / "metadata.jsonl")
    items = []
    listed = set()
    for path in sorted((root / SETS).glob("*.txt")):
        for name in filter(None, (line.strip() for line in path.read_text("utf-8").splitlines())):
            listed.add(name)
            image = next((p for s in (".png", ".jpg") if (p := root / IMAGES / f"{name}{s}").exists()), None)
            load = partial(_load, root, name, image, table)
            items.append(Item(name, path.stem, f"{path.name}: {name}", load, labels.get(name), image))
    problems += stray_masks(root, CLASSES, listed)
    return LabelledDataset("cvat", root, classes, items, problems, exact_images=lossless(items))


def _labelmap(root: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Class names in their order, and packed colour -> index; VOC's colour of 255 is unknown."""
    names: list[str] = []
    table: dict[int, int] = {}
    void = _pack(voc_palette()[VOID])
    for number, line in enumerate((root / LABELMAP).read_text("utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{LABELMAP} line {number}"
        try:
            name, colour, _, _ = line.split(":")
            packed = _pack(np.array([int(v) for v in colour.split(",")], np.uint8))
        except (ValueError, OverflowError, IndexError):
            raise DataError("bad_file", where, f"is not name:r,g,b:parts:actions ({line!r})") from None
        if packed in table:
            raise DataError("duplicate_class", where, f"{name!r} has the colour of another label")
        if packed == void or name == "ignored":
            table[packed] = VOID
        elif name == "background":
            table[packed] = 0
        else:
            names.append(name)
            table[packed] = len(names)
    if not names:
        raise DataError("no_classes", LABELMAP, "names no class")
    return tuple(names), table


def _pack(colours: NDArray[np.uint8]) -> int:
    red, green, blue = (int(v) for v in colours)
    return red << 16 | green << 8 | blue


def _load(root: Path, name: str, image: Path | None, table: dict[int, int]) -> Pixels:
    mask_path = root / CLASSES / f"{name}.png"
    mask = rgb(open_picture(mask_path, "corrupt_mask")).astype(np.int64)
    packed, inverse = np.unique(mask @ (1 << 16, 1 << 8, 1), return_inverse=True)
    for colour in packed:
        if int(colour) not in table:
            red, green, blue = int(colour) >> 16, int(colour) >> 8 & 255, int(colour) & 255
            raise DataError("undefined_index", mask_path.name, f"colour {red},{green},{blue} is in no label")
    label_map = np.array([table[int(c)] for c in packed], np.uint8)[inverse].reshape(mask.shape[:2])
    if not (root / OBJECTS / f"{name}.png").exists():
        raise DataError(
            "missing_file", f"{OBJECTS}/{name}.png", "CVAT needs an object mask beside each class mask"
        )
    objects = rgb(open_picture(root / OBJECTS / f"{name}.png", "corrupt_mask"))
    if objects.shape != mask.shape:
        raise DataError(
            "wrong_size", f"{OBJECTS}/{name}.png", f"is {objects.shape[:2]}, its class mask {mask.shape[:2]}"
        )
    if image is None:
        raise DataError("missing_file", f"{IMAGES}/{name}.png", "the file is not there")
    return rgb(open_picture(image)), label_map
