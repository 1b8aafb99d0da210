"""COCO: one JSON file per split.

In ``instances_<split>.json`` an annotation is an object: its outlines as polygons that give back its pixels exactly
(`segsmith.datasets.outlines`), its area and its box. Specks and unknown pixels (255) are ``iscrowd`` regions of every
class that the image is labelled with, because COCO has no other way to say "do not count this". In
``stuff_<split>.json`` an annotation is a class: all its pixels as RLE, and nothing is left out.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
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
    is_number,
    leaves_image,
    parse,
)
from segsmith.datasets.formats.voc import speck_notes
from segsmith.datasets.mask_objects import MaskObjects, Region, region_of
from segsmith.datasets.objects import present_classes
from segsmith.datasets.palette import VOID
from segsmith.datasets.records import DataError, LabelledDataset, Problem, Record, Sample, lossless
from segsmith.datasets.run_dataset import RunDataset
from segsmith.datasets.splits import SPLITS
from segsmith.datasets.staging import Sink
from segsmith.datasets.writing import Writer, Written
from segsmith.files import MAX_IMAGE_BYTES, MAX_PIXELS

FILES = """- `images/<split>/`: the images, byte for byte as the run stored them.
- `annotations/instances_<split>.json`: one annotation for each object, its mask as polygons. Nearby pieces of a class
  are one object; touching objects of a class are one, too.
- Unknown pixels (255) are regions with `iscrowd` 1 and `unknown` true, for each class of the image. So are
  specks: objects of fewer than 25 pixels, or 1/10,000 of a larger image.
- `images[].segsmith` is the origin of the image."""
STUFF_FILES = """- `images/<split>/`: the images, byte for byte as the run stored them.
- `annotations/stuff_<split>.json`: one annotation for each class of an image, with all its pixels as RLE.
- Unknown pixels (255) are regions with `iscrowd` 1 and `unknown` true, for each class of the image.
- `images[].segsmith` is the origin of the image."""
INSTANCES, STUFF = "instances", "stuff"
STYLES = (f"{INSTANCES}_", f"{STUFF}_")
NEEDED: Mapping[str, Mapping[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}
"""Lists of an annotation file, and what each entry must state."""
BOX_SLACK = 2.0
"""Pixels by which a box may differ from its mask; polygons are rounded when they are drawn."""

Table = dict[str, list[dict[str, Any]]]


Entry = tuple[dict[str, Any], list[str], int]
"""What an image adds to the annotation file of its split: itself, its annotations; and its number of specks."""


def _write_one(style: str, sink: Sink, data: RunDataset, record: Record) -> Entry:
    files = data.read(record)
    name = f"{record.id}{files.suffix}"
    files.store_image(sink, f"images/{record.split}/{name}")
    found = data.objects(files)
    height, width = found.size
    image = {"file_name": name, "height": height, "width": width, "segsmith": record.provenance()}
    present = [data.classes.index(label) + 1 for label in record.labels or ()]
    if style == STUFF:
        return image, class_annotations(files.label_map, present, len(data.classes)), 0
    return image, object_annotations(found, present, len(data.classes)), found.specks


def _finish(sink: Sink, data: RunDataset, written: Written) -> list[str]:
    specks = _write_annotations(sink, data, written, INSTANCES)
    sink.put("README.md", data.readme(FILES))
    return speck_notes(specks, "are unknown regions")


def _finish_stuff(sink: Sink, data: RunDataset, written: Written) -> list[str]:
    _write_annotations(sink, data, written, STUFF)
    sink.put("README.md", data.readme(STUFF_FILES))
    return []


WRITER = Writer(partial(_write_one, INSTANCES), _finish)
"""``images/<split>/<id>`` and ``annotations/instances_<split>.json``."""
STUFF_WRITER = Writer(partial(_write_one, STUFF), _finish_stuff)
"""``images/<split>/<id>`` and ``annotations/stuff_<split>.json``."""


def _write_annotations(sink: Sink, data: RunDataset, written: Written, style: str) -> int:
    """Write the annotation files; returns the number of specks."""
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(data.classes, 1)]
    specks = 0
    with ExitStack() as stack:
        tables = {
            split: stack.enter_context(_AnnotationFile(sink, f"annotations/{style}_{split}.json", categories))
            for split in SPLITS
        }
        for number, (record, (image, annotations, found)) in enumerate(written, 1):
            tables[record.split].add(number, image, annotations)
            specks += found
    return specks


class _AnnotationFile:
    """Writes an annotation file as its images come; annotations wait in a temporary file until all are known."""

    def __init__(self, sink: Sink, name: str, categories: Sequence[Mapping[str, Any]]) -> None:
        self._sink = sink
        self._name = name
        self._categories = categories
        self._images = 0
        self._annotations = 0

    def __enter__(self) -> _AnnotationFile:
        self._file = self._sink.path(self._name).open("w", encoding="utf-8")
        self._waiting = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self._sink.root)
        about = {"description": "made by segsmith; see README.md"}
        self._file.write(
            f'{{"info": {json.dumps(about)}, "categories": {_json(self._categories)}, "images": ['
        )
        return self

    def add(self, number: int, image: Mapping[str, Any], annotations: Sequence[str]) -> None:
        """Append an image, whose id is `number`, and its annotations."""
        self._file.write(",\n" * bool(self._images) + _json({"id": number, **image}))
        self._images += 1
        for annotation in annotations:
            self._waiting.write(",\n" * bool(self._annotations))
            self._annotations += 1
            self._waiting.write(f'{{"id": {self._annotations}, "image_id": {number}, {annotation}}}')

    def __exit__(self, error: object, *_: object) -> None:
        with self._file, self._waiting:
            if error is None:
                self._file.write('],\n"annotations": [')
                self._waiting.seek(0)
                shutil.copyfileobj(self._waiting, self._file)
                self._file.write("]}\n")
        if error is None:
            self._sink.adopt(self._name)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def object_annotations(found: MaskObjects, present: Sequence[int], classes: int) -> list[str]:
    """The annotations of a mask: its objects, then its unknown pixels and specks.

    Each is the members of a JSON object, without braces and ids.

    `present` are the indices of the classes that the image is labelled with, of `classes` in all.
    """
    annotations = [
        _annotation(place.index, region) for place, region in zip(found.objects, found.regions, strict=True)
    ]
    return annotations + _unknown(found.unknown_region, {*present, *found.present}, classes)


def class_annotations(label_map: NDArray[np.uint8], present: Sequence[int], classes: int) -> list[str]:
    """One annotation for each class of an (H, W) label map, and those of its unknown pixels; no braces and ids."""
    drawn = present_classes(label_map)
    regions = [(index, region_of(label_map == index)) for index in drawn]
    annotations = [_annotation(index, region) for index, region in regions if region]
    return annotations + _unknown(region_of(label_map == VOID), {*present, *drawn}, classes)


def _unknown(region: Region | None, shown: Collection[int], classes: int) -> list[str]:
    """Unknown pixels as a region of each class that they may show: those of `shown`, or else all."""
    if region is None:
        return []
    indices = sorted(shown) or range(1, classes + 1)
    return [_annotation(index, region, '"iscrowd": 1, "unknown": true') for index in indices]


def _annotation(index: int, region: Region, crowd: str = '"iscrowd": 0') -> str:
    x, y, width, height = region.box
    return (
        f'"category_id": {index}, "segmentation": {region.segmentation}, "area": {region.area}, '
        f'"bbox": [{x}.0, {y}.0, {width}.0, {height}.0], {crowd}'
    )


# -- reading --------------------------------------------------------------------------------------------


def recognises(root: Path) -> bool:
    """Annotation files that name images and annotations."""
    return any(_annotation_files(DatasetFiles(root)))


def _annotation_files(files: DatasetFiles) -> list[Path]:
    listed = files.files("annotations", ".json")
    # Of two styles of the same objects only one can be read.
    named = next(
        (found for style in STYLES if (found := [p for p in listed if p.name.startswith(style)])), []
    )
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
        style, _, rest = path.stem.partition("_")
        split = rest if f"{style}_" in STYLES else path.parent.name
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
    images = [image for _, table in tables for image in table["images"]]
    return LabelledDataset(
        "coco",
        root,
        tuple(names),
        records,
        problems,
        exact_images=lossless(records),
        knows_background=all(image.keys() & {"void", "segsmith"} for image in images),
        without_specks=all(
            "segsmith" in image and "void" not in image
            for path, table in tables
            for image in table["images"]
            if path.name.startswith(f"{INSTANCES}_")
        ),
    )


def _image_file(files: DatasetFiles, annotations: Path, split: str, name: str) -> Path:
    root = files.root
    places = [root / "images" / split, root / split, root / "images", root, annotations.parent]
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
            unknown = a.get("iscrowd") == 1 and a.get("unknown") is True
            canvas.paint(runs, VOID if unknown else index_of[a["category_id"]])
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
