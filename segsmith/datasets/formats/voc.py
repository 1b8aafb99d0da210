"""PASCAL VOC segmentation: JPEGs, palette PNGs of classes and of objects, and image sets."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from os.path import islink
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from segsmith.datasets.dataset_files import DatasetFiles
from segsmith.datasets.mask_objects import MaskObjects
from segsmith.datasets.records import (
    IMAGE_SUFFIXES,
    DataError,
    LabelledDataset,
    Problem,
    Record,
    Sample,
    lossless,
)
from segsmith.datasets.run_dataset import RunDataset, StoredFiles
from segsmith.datasets.splits import SPLITS
from segsmith.datasets.staging import Sink
from segsmith.datasets.voc_layout import (
    CLASS_NAMES,
    CLASSES,
    IMAGES,
    LABELMAP,
    LABELS,
    OBJECTS,
    SETS,
    VocLayout,
    image_labels,
    labelmap_text,
)
from segsmith.datasets.writing import Writer, Written
from segsmith.files import read_image

JPEG_QUALITY = 95
MAIN = "ImageSets/Main"
ANNOTATIONS = "Annotations"
DEVKIT = "VOCdevkit/VOC2012"
DEVKIT_2007 = "VOCdevkit/VOC2007"
LISTS = """- `SegmentationClass/<id>.png`: palette PNG of class indices; 0 is background, 255 is unknown (ignore it).
- `SegmentationObject/<id>.png`: palette PNG of object numbers; 255 is unknown, or part of a speck.
- `Annotations/<id>.xml`: the box of each object, in the order of the object numbers, in VOC's coordinates (from 1,
  the last pixel included). Nearby pieces of a class are one object; objects of fewer than 25 pixels, or 1/10,000 of a
  larger image, are specks and have no box.
- `ImageSets/Segmentation/`, `ImageSets/Main/`: ids of train, val, test and trainval.
- `classes.txt`: line n is index n. `labelmap.txt`: the colours of the classes, for datumaro.
- `labels.csv`: for each image its classes (separated by `|`), prompt, split, seed, image model, scores,
  and whether it is real or generated (`source`)."""
FILES = f"""- `JPEGImages/<id>`: the images, byte for byte as the run stored them.
{LISTS}"""
DEVKIT_FILES = f"""Everything is in `{DEVKIT}`, as torchvision expects it:
`torchvision.datasets.VOCSegmentation(<this folder>, year="2012", image_set="train")`. For `image_set="test"`
torchvision wants `year="2007"`, so `{DEVKIT_2007}` is a link to the same files.

- `JPEGImages/<id>.jpg`: the images (JPEG; those that were stored in another format with quality {JPEG_QUALITY}).
{LISTS}"""
SUFFIXES = (".jpg", ".png", ".jpeg", ".webp")

SEARCHED = 500
"""Annotation files that are searched for the names of objects."""
MAX_XML_BYTES = 1 << 20

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Indices 1 to 20 of the VOC 2007 to 2012 challenges, which are distributed without a list of names."""


StoreImage = Callable[[StoredFiles, Sink, str], str]
"""Stores an image under a path without suffix, and returns the suffix."""


def _stored_image(files: StoredFiles, sink: Sink, stem: str) -> str:
    files.store_image(sink, f"{stem}{files.suffix}")
    return files.suffix


def _jpeg_image(files: StoredFiles, sink: Sink, stem: str) -> str:
    if files.suffix in (".jpg", ".jpeg"):
        files.store_image(sink, f"{stem}.jpg")
    else:
        sink.put(f"{stem}.jpg", jpeg_bytes(read_image(files.image)))
    return ".jpg"


def _write_one(
    folder: str,
    store_image: StoreImage,
    sink: Sink,
    data: RunDataset,
    record: Record,
) -> int:
    """Store the files of an image below `folder`, "" or a path that ends with "/"; returns its number of specks."""
    files = data.read(record)
    found = data.objects(files)
    suffix = store_image(files, sink, f"{folder}{IMAGES}/{record.id}")
    mask = files.palette_mask
    sink.put(f"{folder}{CLASSES}/{record.id}.png", mask, files.mask_sha256 if mask is files.mask else "")
    sink.put(f"{folder}{OBJECTS}/{record.id}.png", found.numbers)
    xml = _annotation(f"{record.id}{suffix}", found, data.classes)
    sink.put(f"{folder}{ANNOTATIONS}/{record.id}.xml", xml)
    return found.specks


def _finish(sink: Sink, data: RunDataset, written: Written) -> list[str]:
    """Write the lists; ``labels.csv`` holds image labels and provenance."""
    notes = _write_lists(sink, data, written, "")
    sink.put("README.md", data.readme(FILES))
    return notes


def _finish_devkit(sink: Sink, data: RunDataset, written: Written) -> list[str]:
    notes = _write_lists(sink, data, written, f"{DEVKIT}/")
    sink.link(DEVKIT_2007, Path(DEVKIT).name)
    sink.put("README.md", data.readme(DEVKIT_FILES))
    return notes


WRITER = Writer(partial(_write_one, "", _stored_image), _finish)
DEVKIT_WRITER = Writer(partial(_write_one, f"{DEVKIT}/", _jpeg_image), _finish_devkit)
"""With JPEG images, and in the folders of the VOC 2012 development kit, which torchvision reads."""


def _write_lists(sink: Sink, data: RunDataset, written: Written, folder: str) -> list[str]:
    def put(name: str, content: bytes) -> None:
        sink.put(f"{folder}{name}", content)

    layout = VocLayout(put, SPLITS)
    specks = 0
    for record, count in written:
        layout.list(record.split, record.id)
        specks += count
    layout.finish(data.classes)
    for name, members in layout.lists.items():
        put(f"{MAIN}/{name}.txt", "".join(f"{member}\n" for member in members).encode())
    put(LABELMAP, labelmap_text(data.classes).encode())
    put(LABELS, _labels_csv(data).encode())
    return speck_notes(specks, "have no box")


def speck_notes(specks: int, what: str) -> list[str]:
    """What an export says of its specks."""
    return (
        [f"{specks} specks (objects of fewer than 25 pixels, or 1/10,000 of a larger image) {what}."]
        if specks
        else []
    )


def _annotation(file_name: str, found: MaskObjects, classes: Sequence[str]) -> bytes:
    """The XML of an image: the box of each object, whose pixels are counted from 1, the last one included."""
    size, objects = found.size, []
    for instance in found.objects:
        x, y, width, height = instance.box
        objects.append(
            f"<object><name>{escape(classes[instance.index - 1])}</name><pose>Unspecified</pose>"
            "<truncated>0</truncated><difficult>0</difficult>"
            f"<bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox>"
            "</object>\n"
        )
    return (
        f"<annotation><folder>JPEGImages</folder><filename>{file_name}</filename>"
        f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
        f"<segmented>1</segmented>\n{''.join(objects)}</annotation>\n"
    ).encode()


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
    """Image sets and index masks, here or in the folder of a development kit, but no CVAT dataset."""
    root = _below_devkit(root)
    return (root / SETS).is_dir() and ((root / CLASS_NAMES).exists() or not (root / LABELMAP).exists())


def _below_devkit(root: Path) -> Path:
    """The folder that holds ``ImageSets``: `root`, or the one of a development kit in it."""
    return root / DEVKIT if not (root / SETS).is_dir() and (root / DEVKIT / SETS).is_dir() else root


def read(root: Path) -> LabelledDataset:
    """Read image sets, classes and image labels; of images JPEG is preferred to PNG."""
    root = _below_devkit(root)
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
    usable = (path for path in paths if files.is_file(path))
    return next(usable, next((path for path in paths if islink(files.root / path)), paths[0]))


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
        for path in files.files(ANNOTATIONS, ".xml")[:SEARCHED]
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
