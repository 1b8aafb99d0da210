"""COCO: one JSON file a split, masks as RLE through pycocotools.

Every connected part of a class is an annotation (``iscrowd`` 0), with the area and box of its own pixels.
COCO has no word for pixels nobody knows: they are kept as an RLE under ``void`` in the image's record, which
readers that do not know it pass over, so that a label map comes back exactly.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
)
from segsmith.datasets.objects import number_objects
from segsmith.datasets.palette import VOID
from segsmith.datasets.records import Collection, Record, Sample
from segsmith.datasets.splits import SPLITS
from segsmith.datasets.staging import Sink

FILES = """- `<split>/`: the pictures. `annotations/instances_<split>.json`: COCO annotations, masks as RLE.
- Every connected part of a class is one annotation; touching objects of a class are one.
- `images[].void` is an RLE of the pixels nobody knows (255), `images[].segsmith` the origin of the picture."""
PREFIX = "annotations/instances_"
BOX_SLACK = 2.0
"""Pixels by which a box may differ from its mask; polygons are rounded when they are drawn."""


def write(sink: Sink, data: Collection) -> None:
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
        sample = data.read(record)
        sink.put(f"{record.split}/{record.id}.png", sample.png)
        file = files[record.split]
        file["images"].append(_image(number, record, sample))
        for annotation in _annotations(sample.label_map):
            annotation |= {"id": len(file["annotations"]) + 1, "image_id": number}
            file["annotations"].append(annotation)
    for split, file in files.items():
        sink.put(f"{PREFIX}{split}.json", json.dumps(file, ensure_ascii=False).encode())
    sink.put("README.md", data.readme(FILES))


def _image(number: int, record: Record, sample: Sample) -> dict[str, Any]:
    height, width = sample.size
    return {
        "id": number,
        "file_name": f"{record.id}.png",
        "height": height,
        "width": width,
        "void": _encode(sample.label_map == VOID),
        "segsmith": record.provenance(),
    }


def _annotations(label_map: NDArray[np.uint8]) -> Iterator[dict[str, Any]]:
    from pycocotools import mask as rle

    numbers = number_objects(label_map)
    for number in range(1, int(numbers.max(initial=0)) + 1):
        pixels = numbers == number
        encoded = _encode(pixels)
        yield {
            "category_id": int(label_map[pixels][0]),
            "segmentation": encoded,
            "area": int(rle.area(encoded)),
            "bbox": [float(v) for v in rle.toBbox(encoded)],
            "iscrowd": 0,
        }


def _encode(pixels: NDArray[np.bool_]) -> dict[str, Any]:
    from pycocotools import mask as rle

    encoded = rle.encode(np.asfortranarray(pixels, np.uint8))
    return {"size": [int(v) for v in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


# -- reading --------------------------------------------------------------------------------------------


def recognises(root: Path) -> bool:
    """Annotation files that name images and annotations."""
    return any(_files(root))


def _files(root: Path) -> list[Path]:
    return sorted((root / "annotations").glob("instances_*.json")) or [
        p for p in sorted(root.glob("*.json")) + sorted(root.glob("*/_annotations.coco.json")) if _is_coco(p)
    ]


def _is_coco(path: Path) -> bool:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def read(root: Path) -> LabelledDataset:
    """Read with pycocotools. Where classes overlap in a foreign file the pixel is unknown (255).

    Class names of all files are joined by name; category ids never leave the file that defines them.
    """
    problems: list[Problem] = []
    opened = [(path, *_open(path, problems)) for path in _files(root)]
    names: list[str] = []
    for _, content, _ in opened:
        names += [c["name"] for c in content["categories"] if c["name"] not in names]
    if not names:
        raise DataError("no_classes", "categories", "no annotation file names a category")
    items: list[Item] = []
    for path, content, api in opened:
        split = (
            path.stem.removeprefix("instances_") if path.stem.startswith("instances_") else path.parent.name
        )
        _check(path, content, problems)
        index_of = {c["id"]: names.index(c["name"]) + 1 for c in content["categories"]}
        for image in content["images"]:
            found = _image_file(root, path, split, image["file_name"])
            extra = image.get("segsmith")
            labels = tuple(extra["classes"]) if isinstance(extra, Mapping) and "classes" in extra else None
            where = f"{path.name}: {image['file_name']}"
            load = partial(_load, api, image, index_of, found, where)
            items.append(Item(Path(image["file_name"]).stem, split, where, load, labels, found))
    return LabelledDataset(
        "coco",
        root,
        tuple(names),
        items,
        problems,
        exact_images=lossless(items),
        knows_background=all("void" in image for _, content, _ in opened for image in content["images"]),
    )


def _image_file(root: Path, annotations: Path, split: str, name: str) -> Path:
    places = [root / split, root / "images" / split, root / "images", root, annotations.parent]
    return next((p / name for p in places if (p / name).is_file()), places[0] / name)


def _open(path: Path, problems: list[Problem]) -> tuple[dict[str, Any], Any]:
    """The JSON, cut down to what is sound, and pycocotools' index of it."""
    from pycocotools.coco import COCO

    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("bad_file", path.name, f"is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError("bad_file", path.name, "is not a JSON object")
    needed: dict[str, dict[str, type]] = {
        "images": {"id": int, "file_name": str},
        "annotations": {"id": int, "image_id": int, "category_id": int},
        "categories": {"id": int, "name": str},
    }
    for part, fields in needed.items():
        rows = content.get(part)
        if not isinstance(rows, list):
            raise DataError("bad_file", path.name, f"has no list {part!r}")
        sound = [
            r for r in rows if isinstance(r, dict) and all(isinstance(r.get(k), t) for k, t in fields.items())
        ]
        if len(sound) < len(rows):
            text = f"{len(rows) - len(sound)} of {part!r} lack one of {', '.join(fields)}"
            problems.append(Problem("bad_file", path.name, text))
        content[part] = sound
    api = COCO()
    api.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return content, api


def _check(path: Path, content: Mapping[str, Any], problems: list[Problem]) -> None:
    """What is wrong in the tables themselves."""

    def add(kind: str, text: str) -> None:
        problems.append(Problem(kind, path.name, text))

    for part, kind in (
        ("images", "duplicate_id"),
        ("annotations", "duplicate_id"),
        ("categories", "duplicate_class"),
    ):
        for value in _repeated([row["id"] for row in content[part]]):
            add(kind, f"id {value} is used twice in {part}")
    for name in _repeated([c["name"] for c in content["categories"]]):
        add("duplicate_class", f"category {name!r} is named twice")
    images = {image["id"]: image for image in content["images"]}
    categories = {c["id"] for c in content["categories"]}
    for a in content["annotations"]:
        if a["image_id"] not in images:
            add(
                "unknown_image", f"annotation {a['id']} belongs to image {a['image_id']}, which is not listed"
            )
        if a["category_id"] not in categories:
            add("unknown_class", f"annotation {a['id']} has category {a['category_id']}, which is not listed")
        if problem := _geometry(a, images.get(a["image_id"], {})):
            add(problem[0], f"annotation {a['id']} {problem[1]}")


def _geometry(a: Mapping[str, Any], image: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong with the box and area of an annotation, seen beside its mask."""
    box = a.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)):
        return "bad_box", f"has box {box}, not four numbers"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "bad_box", f"has an empty box {box}"
    if (
        x < -BOX_SLACK
        or y < -BOX_SLACK
        or (
            "width" in image
            and (x + width > image["width"] + BOX_SLACK or y + height > image["height"] + BOX_SLACK)
        )
    ):
        return "bad_box", f"has box {box}, which leaves the image"
    pixels = _rle_of(a, image)
    if pixels is None:
        return "bad_mask", "has no mask that pycocotools reads"
    if _leaves(a, image):
        return "bad_mask", "has a polygon that leaves the image; it is cut at the edge"
    from pycocotools import mask as rle

    area, tight = float(rle.area(pixels)), rle.toBbox(pixels)
    if area == 0:
        return "bad_mask", "has a mask without a pixel"
    # An annotator may draw a crowd's box as he likes.
    if not a.get("iscrowd") and np.abs(_corners(box) - _corners(tight)).max() > BOX_SLACK:
        return "bad_box", f"has box {box}, but its mask lies in {[float(v) for v in tight]}"
    stated = a.get("area")
    slack = 0.5 if isinstance(a["segmentation"], Mapping) else 4 + 0.15 * area + width + height
    if not isinstance(stated, int | float) or abs(stated - area) > slack:
        return "bad_area", f"has area {stated}, but its mask has {area:.0f} pixels"
    return None


def _leaves(a: Mapping[str, Any], image: Mapping[str, Any]) -> bool:
    """Is a corner of one of its polygons outside the image?"""
    polygons = a["segmentation"] if isinstance(a["segmentation"], list) else []
    for polygon in polygons:
        xs, ys = polygon[::2], polygon[1::2]
        if min(xs) < -BOX_SLACK or min(ys) < -BOX_SLACK:
            return True
        if max(xs) > image["width"] + BOX_SLACK or max(ys) > image["height"] + BOX_SLACK:
            return True
    return False


def _corners(box: Sequence[float]) -> NDArray[np.float64]:
    x, y, width, height = box
    return np.array([x, y, x + width, y + height], np.float64)


def _rle_of(a: Mapping[str, Any], image: Mapping[str, Any]) -> Any:
    """The mask as compressed RLE; None where it is none."""
    from pycocotools import mask as rle

    shape, height, width = a.get("segmentation"), image.get("height"), image.get("width")
    try:
        if isinstance(shape, list) and shape and isinstance(height, int) and isinstance(width, int):
            return rle.merge(rle.frPyObjects(shape, height, width))
        if isinstance(shape, dict) and isinstance(shape["counts"], list):
            return rle.frPyObjects(shape, *shape["size"])
        return shape if isinstance(shape, dict) and rle.decode(shape) is not None else None
    except Exception:  # noqa: BLE001  pycocotools raises bare Exception and errors of its C code
        return None


def _load(api: Any, image: Mapping[str, Any], index_of: Mapping[int, int], path: Path, where: str) -> Pixels:
    pixels = rgb(open_picture(path))
    stated = (image.get("height"), image.get("width"))
    if stated != pixels.shape[:2]:
        raise DataError("wrong_size", where, f"is {pixels.shape[:2]} pixels (H, W), stated as {stated}")
    label_map = np.zeros(pixels.shape[:2], np.uint8)
    for a in api.imgToAnns[image["id"]]:
        if a["category_id"] not in index_of:
            raise DataError("unknown_class", where, f"annotation {a['id']} has an unlisted category")
        mask = _decode(_rle_of(a, image), where, f"annotation {a['id']}", pixels.shape[:2])
        index = index_of[a["category_id"]]
        clash = mask & (label_map != 0) & (label_map != index)
        label_map[mask] = index
        label_map[clash] = VOID
    if image.get("void") is not None:
        label_map[_decode(image["void"], where, "void", pixels.shape[:2])] = VOID
    return pixels, label_map


def _decode(encoded: Any, where: str, what: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    from pycocotools import mask as rle

    if encoded is None:
        raise DataError("bad_mask", where, f"{what} has no mask that pycocotools reads")
    pixels: NDArray[np.bool_] = rle.decode(encoded).astype(bool)
    if pixels.shape != shape:
        raise DataError("wrong_size", where, f"{what} is a mask of {pixels.shape}, the image is {shape}")
    return pixels


def _repeated(values: Sequence[Any]) -> list[Any]:
    return [value for value, n in Counter(values).items() if n > 1]
