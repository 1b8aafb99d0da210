"""COCO: one JSON file per split, masks as RLE or polygons.

Every connected part of a class is an annotation (``iscrowd`` 0), with the area and box of its own pixels.
COCO cannot state that a pixel is unknown: unknown pixels are kept as an RLE under ``void`` in the image's
entry, which other readers ignore, so that a label map comes back exactly.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.dataset_files import DatasetFiles, header_of, labels_in, sample_of
from segsmith.datasets.formats.coco_masks import (
    LabelCanvas,
    MaskError,
    Runs,
    encode,
    is_number,
    leaves_image,
    parse,
)
from segsmith.datasets.objects import number_objects
from segsmith.datasets.palette import VOID
from segsmith.datasets.records import DataError, LabelledDataset, Problem, Record, Sample, lossless
from segsmith.datasets.run_dataset import RunDataset
from segsmith.datasets.splits import SPLITS
from segsmith.datasets.staging import Sink
from segsmith.files import MAX_IMAGE_BYTES, MAX_PIXELS

FILES = """- `<split>/`: the images. `annotations/instances_<split>.json`: COCO annotations, masks as RLE.
- Every connected part of a class is one annotation; touching objects of a class are one.
- `images[].void` is an RLE of the unknown pixels (255), `images[].segsmith` the origin of the image."""
PREFIX = "annotations/instances_"
NEEDED: Mapping[str, Mapping[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}
"""Lists of an annotation file, and what each entry must state."""
BOX_SLACK = 2.0
"""Pixels by which a box may differ from its mask; polygons are rounded when they are drawn."""

Table = dict[str, list[dict[str, Any]]]


def write(sink: Sink, data: RunDataset) -> None:
    """``<split>/<id>.png`` and ``annotations/instances_<split>.json``."""
    files: dict[str, dict[str, Any]] = {
        split: {
            "info": {"description": "made by segsmith; see README.md"},
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": name} for i, name in enumerate(data.classes, 1)],
        }
        for split in SPLITS
    }
    for number, record in enumerate(data.records, 1):
        sample = record.load()
        label_map = sample.label_map
        assert label_map is not None
        sink.put(f"{record.split}/{record.id}.png", sample.png)
        file = files[record.split]
        file["images"].append(_image(number, record, label_map))
        for annotation in annotations_of(label_map):
            annotation |= {"id": len(file["annotations"]) + 1, "image_id": number}
            file["annotations"].append(annotation)
    for split, file in files.items():
        sink.put(f"{PREFIX}{split}.json", json.dumps(file, ensure_ascii=False).encode())
    sink.put("README.md", data.readme(FILES))


def _image(number: int, record: Record, label_map: NDArray[np.uint8]) -> dict[str, Any]:
    height, width = label_map.shape
    return {
        "id": number,
        "file_name": f"{record.id}.png",
        "height": height,
        "width": width,
        "void": encode(label_map == VOID),
        "segsmith": record.provenance(),
    }


def annotations_of(label_map: NDArray[np.uint8]) -> Iterator[dict[str, Any]]:
    """The annotations of an (H, W) label map, without ids."""
    numbers = number_objects(label_map)
    for number in range(1, int(numbers.max(initial=0)) + 1):
        pixels = numbers == number
        encoded = encode(pixels)
        runs = parse(encoded, (pixels.shape[0], pixels.shape[1]))
        yield {
            "category_id": int(label_map[pixels][0]),
            "segmentation": encoded,
            "area": runs.area,
            "bbox": [float(v) for v in runs.box],
            "iscrowd": 0,
        }


# -- reading --------------------------------------------------------------------------------------------


def recognises(root: Path) -> bool:
    """Annotation files that name images and annotations."""
    return any(_annotation_files(DatasetFiles(root)))


def _annotation_files(files: DatasetFiles) -> list[Path]:
    named = [p for p in files.files("annotations", ".json") if p.name.startswith("instances_")]
    others = files.files(".", ".json") + sorted(files.root.glob("*/_annotations.coco.json"))
    return named or [p for p in others if _is_coco(files, p)]


def _is_coco(files: DatasetFiles, path: Path) -> bool:
    try:
        content = files.json(path)
    except DataError:
        return False
    return isinstance(content, dict) and NEEDED.keys() <= content.keys()


def read(root: Path) -> LabelledDataset:
    """Read all annotation files. Where classes overlap in a foreign file the pixel is unknown (255).

    Classes of all files are joined by name; category ids never leave the file that defines them.
    """
    files = DatasetFiles(root)
    problems: list[Problem] = []
    tables = [(path, _open(files, path, problems)) for path in _annotation_files(files)]
    names = list(dict.fromkeys(c["name"] for _, table in tables for c in table["categories"]))
    if not names:
        raise DataError("no_classes", "categories", "no annotation file names a category")
    if len(names) >= VOID:
        raise DataError("too_many_classes", "categories", f"{len(names)} classes; a mask holds {VOID - 1}")
    records: list[Record] = []
    for path, table in tables:
        split = (
            path.stem.removeprefix("instances_") if path.stem.startswith("instances_") else path.parent.name
        )
        _check(path, table, problems)
        index_of = {c["id"]: names.index(c["name"]) + 1 for c in table["categories"]}
        annotations = defaultdict(list)
        for annotation in table["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
        for image in table["images"]:
            found = _image_file(files, path, split, image["file_name"])
            extra = image.get("segsmith")
            labels = labels_in(extra.get("classes")) if isinstance(extra, Mapping) else None
            where = f"{path.name}: {image['file_name']}"
            load = partial(_load, files, found, where, image, annotations[image["id"]], index_of)
            records.append(Record(Path(image["file_name"]).stem, split, where, load, labels, found))
    return LabelledDataset(
        "coco",
        root,
        tuple(names),
        records,
        problems,
        exact_images=lossless(records),
        knows_background=all("void" in image for _, table in tables for image in table["images"]),
    )


def _image_file(files: DatasetFiles, annotations: Path, split: str, name: str) -> Path:
    root = files.root
    places = [root / split, root / "images" / split, root / "images", root, annotations.parent]
    return next((p / name for p in places if files.is_file(p / name)), places[0] / name)


def _open(files: DatasetFiles, path: Path, problems: list[Problem]) -> Table:
    """The lists of an annotation file, without the entries that lack something."""
    where = files.where(path)
    content = files.json(path)
    if not isinstance(content, dict):
        raise DataError("bad_file", where, "is not a JSON object")
    table: Table = {}
    for part, fields in NEEDED.items():
        rows = content.get(part)
        if not isinstance(rows, list):
            raise DataError("bad_file", where, f"has no list {part!r}")
        table[part] = [
            r for r in rows if isinstance(r, dict) and all(isinstance(r.get(k), t) for k, t in fields.items())
        ]
        if len(table[part]) < len(rows):
            text = f"{len(rows) - len(table[part])} of {part!r} lack one of {', '.join(fields)}"
            problems.append(Problem("bad_file", where, text))
    return table


def _check(path: Path, table: Table, problems: list[Problem]) -> None:
    """What is wrong in the lists themselves."""

    def add(kind: str, text: str) -> None:
        problems.append(Problem(kind, path.name, text))

    for part, kind in (
        ("images", "duplicate_id"),
        ("annotations", "duplicate_id"),
        ("categories", "duplicate_class"),
    ):
        for value in _repeated([row["id"] for row in table[part]]):
            add(kind, f"id {value} is used twice in {part}")
    for name in _repeated([c["name"] for c in table["categories"]]):
        add("duplicate_class", f"category {name!r} is named twice")
    images = {image["id"] for image in table["images"]}
    categories = {c["id"] for c in table["categories"]}
    for a in table["annotations"]:
        if a["image_id"] not in images:
            add(
                "unknown_image", f"annotation {a['id']} belongs to image {a['image_id']}, which is not listed"
            )
        if a["category_id"] not in categories:
            add("unknown_class", f"annotation {a['id']} has category {a['category_id']}, which is not listed")


def _repeated(values: Sequence[Any]) -> list[Any]:
    return [value for value, n in Counter(values).items() if n > 1]


def _load(
    files: DatasetFiles,
    path: Path,
    where: str,
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    index_of: Mapping[int, int],
) -> Sample:
    size: tuple[Any, Any] = (image.get("height"), image.get("width"))
    if not all(type(side) is int and side > 0 for side in size) or math.prod(size) > MAX_PIXELS:
        raise DataError("wrong_size", where, f"is stated as {str(size)[:50]} pixels (H, W)")
    data = files.read(path, MAX_IMAGE_BYTES, "corrupt_image")
    found = header_of(data, where, "corrupt_image").size
    if found != size:
        raise DataError("wrong_size", where, f"is {found} pixels (H, W), stated as {size}")
    canvas, problems = LabelCanvas(found), list[Problem]()
    for a in annotations:
        if a["category_id"] not in index_of:
            raise DataError("unknown_class", where, f"annotation {a['id']} has an unlisted category")
        try:
            runs = parse(a.get("segmentation"), found)
            canvas.paint(runs, index_of[a["category_id"]])
        except MaskError as error:
            raise DataError("bad_mask", where, f"annotation {a['id']} {error}") from None
        if problem := _geometry(a, runs):
            problems.append(Problem(problem[0], where, f"annotation {a['id']} {problem[1]}"))
    label_map = canvas.label_map()
    if image.get("void") is not None:
        void = LabelCanvas(found)
        try:
            void.paint(parse(image["void"], found), VOID)
        except MaskError as error:
            raise DataError("bad_mask", where, f"void {error}") from None
        label_map[void.label_map() == VOID] = VOID
    return sample_of(data, label_map, where, tuple(problems))


def _geometry(a: Mapping[str, Any], runs: Runs) -> tuple[str, str] | None:
    """What is wrong with the box and area of an annotation, compared with its mask."""
    height, width = runs.size
    box = a.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(is_number(v) for v in box)):
        return "bad_box", f"has box {str(box)[:100]}, not four numbers"
    x, y, box_width, box_height = box
    if box_width <= 0 or box_height <= 0:
        return "bad_box", f"has an empty box {box}"
    if min(x, y) < -BOX_SLACK or x + box_width > width + BOX_SLACK or y + box_height > height + BOX_SLACK:
        return "bad_box", f"has box {box}, which leaves the image"
    if leaves_image(a["segmentation"], runs.size):
        return "bad_mask", "has a polygon that leaves the image; it is cut at the edge"
    area = runs.area
    if area == 0:
        return "bad_mask", "has a mask without a pixel"
    # The box of a crowd need not be tight.
    if not a.get("iscrowd") and np.abs(_corners(box) - _corners(runs.box)).max() > BOX_SLACK:
        return "bad_box", f"has box {box}, but its mask lies in {list(runs.box)}"
    stated: Any = a.get("area")
    slack = 0.5 if isinstance(a["segmentation"], Mapping) else 4 + 0.15 * area + box_width + box_height
    if not is_number(stated) or abs(stated - area) > slack:
        return "bad_area", f"has area {str(stated)[:50]}, but its mask has {area} pixels"
    return None


def _corners(box: Sequence[float]) -> NDArray[np.float64]:
    x, y, width, height = box
    return np.array([x, y, x + width, y + height], np.float64)
