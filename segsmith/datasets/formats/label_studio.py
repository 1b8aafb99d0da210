"""Label Studio: images, tasks with brush labels, and the same masks as PNGs of 0 and 255.

``tasks.json`` is one file because Label Studio imports one. It names images by their path below the export's folder,
which Label Studio must be allowed to serve (README.md of the export). Unknown pixels have a label of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.dataset_files import DatasetFiles, header_of, labels_in, name_problem, sample_of
from segsmith.datasets.formats import brush_rle
from segsmith.datasets.palette import VOID, voc_palette
from segsmith.datasets.records import DataError, LabelledDataset, Problem, Record, Sample, lossless
from segsmith.datasets.run_dataset import RunDataset
from segsmith.datasets.staging import Sink
from segsmith.datasets.writing import Writer, Written
from segsmith.files import MAX_IMAGE_BYTES, png_bytes

TASKS, CLASSES, LABELLING = "tasks.json", "classes.txt", "labelling.xml"
SERVED = "/data/local-files/?d="
"""Path of Label Studio's server under which it serves local files."""
UNKNOWN = "unknown (255)"
FROM, TO = "label", "image"
FILES = """- `tasks.json`: one task for each image, with a brush label for each class it shows. `labelling.xml`: the
  labelling interface of the project. `classes.txt`: the classes.
- `images/`: the images. `masks/`: the brush labels as PNG, 255 where the class is, 0 elsewhere; the number in a name
  is the class, 255 stands for unknown pixels.

Start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT set
to this folder. Create a project, paste `labelling.xml` into Settings, Labeling Interface, Code; add the folder
`images` as a source storage of type "Local files" without syncing it, and import `tasks.json`."""


def _write_one(sink: Sink, data: RunDataset, record: Record) -> str:
    """Store the image and its masks; returns its task."""
    files = data.read(record)
    image = f"images/{record.id}{files.suffix}"
    files.store_image(sink, image)
    found = []
    for index in np.unique(files.label_map).tolist():
        if index:
            mask = files.label_map == index
            sink.put(_mask(record.id, index), png_bytes(mask * np.uint8(255)))
            name = UNKNOWN if index == VOID else data.classes[index - 1]
            found.append(_brush(f"{record.id}-{index}", name, mask))
    stated = {"image": SERVED + quote(image), **record.provenance()}
    return json.dumps({"data": stated, "annotations": [{"result": found}]}, ensure_ascii=False)


def _finish(sink: Sink, data: RunDataset, written: Written) -> list[str]:
    """Tasks are written one after the other, so that they are never all in memory."""
    with sink.path(TASKS).open("w", encoding="utf-8") as file:
        for number, (_, task) in enumerate(written):
            file.write(("[\n" if number == 0 else ",\n") + task)
        file.write("\n]\n")
    sink.adopt(TASKS)
    sink.put(CLASSES, "".join(f"{name}\n" for name in data.classes).encode())
    sink.put(LABELLING, _labelling(data.classes).encode())
    sink.put("metadata.jsonl", data.metadata_lines())
    sink.put("README.md", data.readme(FILES))
    return []


WRITER = Writer(_write_one, _finish)


def _mask(image_id: str, index: int) -> str:
    return f"masks/{image_id}-{index}.png"


def _brush(region: str, name: str, mask: NDArray[np.bool_]) -> dict[str, Any]:
    height, width = mask.shape
    code = list(brush_rle.encode(mask))
    return {
        "id": region,
        "from_name": FROM,
        "to_name": TO,
        "type": "brushlabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": code, "brushlabels": [name]},
    }


def _labelling(classes: tuple[str, ...]) -> str:
    palette = voc_palette()
    named = [*enumerate(classes, 1), (VOID, UNKNOWN)]
    labels = "".join(
        f'    <Label value={quoteattr(name)} background="#{bytes(palette[index]).hex()}"/>\n'
        for index, name in named
    )
    return (
        f'<View>\n  <Image name="{TO}" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="{FROM}" toName="{TO}">\n{labels}  </BrushLabels>\n</View>\n'
    )


def recognises(root: Path) -> bool:
    """Tasks beside the labelling interface."""
    return (root / TASKS).exists() and (root / LABELLING).exists()


def read(root: Path) -> LabelledDataset:
    """Read what `write` wrote: the brush labels of each task, which must be the masks in its PNGs."""
    files = DatasetFiles(root)
    classes = tuple(files.lines(CLASSES))
    if not classes:
        raise DataError("no_classes", CLASSES, "names no class")
    if len(classes) >= VOID:
        raise DataError("too_many_classes", CLASSES, f"names more than {VOID - 1} classes")
    problems = [
        Problem("duplicate_class", CLASSES, f"{name!r} is named twice")
        for name in sorted({n for n in classes if classes.count(n) > 1})
    ]
    tasks = files.json(TASKS)
    if not isinstance(tasks, list):
        raise DataError("bad_file", TASKS, "is not a list of tasks")
    records, named = [], set()
    for number, task in enumerate(tasks, 1):
        try:
            record = _record(files, classes, task, f"{TASKS} task {number}")
        except DataError as error:
            problems.append(error.problem)
            continue
        records.append(record)
        with suppress(DataError):  # which loading the record reports
            named |= {path for path, _ in _regions(record.id, classes, task)}
    problems += [
        Problem("stray_file", f"masks/{path.name}", "is the mask of no brush label")
        for path in files.files("masks", ".png")
        if f"masks/{path.name}" not in named
    ]
    return LabelledDataset("label-studio", root, classes, records, problems, exact_images=lossless(records))


def _record(files: DatasetFiles, classes: tuple[str, ...], task: Any, where: str) -> Record:
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict) or not all(isinstance(data.get(k), str) for k in ("image", "id", "split")):
        raise DataError("bad_file", where, "has no data with the texts image, id and split")
    if not data["image"].startswith(SERVED):
        raise DataError("missing_file", where, f"its image is not below {SERVED}")
    if problem := name_problem(data["id"]):
        raise DataError("bad_name", where, f"the id {data['id'][:100]!r} {problem}")
    image = unquote(data["image"].removeprefix(SERVED))
    where = f"{where} ({data['id']})"
    load = partial(_load, files, classes, task, data["id"], image, where)
    path = files.path(image)
    return Record(data["id"], data["split"], where, load, labels_in(data.get("classes")), path)


def _regions(image_id: str, classes: tuple[str, ...], task: Any) -> Iterator[tuple[str, tuple[int, Any]]]:
    """(mask file, (index, region)) of each brush label. Raises `DataError`."""
    try:
        for region in task["annotations"][0]["result"]:
            (name,) = region["value"]["brushlabels"]
            if name != UNKNOWN and name not in classes:
                raise DataError("unknown_class", image_id, f"a brush label is {str(name)[:100]!r}")
            index = VOID if name == UNKNOWN else classes.index(name) + 1
            yield _mask(image_id, index), (index, region)
    except (LookupError, TypeError, ValueError):
        raise DataError("bad_file", image_id, "its annotation is not a list of brush labels") from None


def _load(
    files: DatasetFiles, classes: tuple[str, ...], task: Any, image_id: str, image: str, where: str
) -> Sample:
    data = files.read(image, MAX_IMAGE_BYTES, "corrupt_image")
    size = header_of(data, image, "corrupt_image").size
    label_map = np.zeros(size, np.uint8)
    for path, (index, region) in _regions(image_id, classes, task):
        if (region.get("original_height"), region.get("original_width")) != size:
            raise DataError("wrong_size", where, f"a brush label is not of {size} pixels (H, W)")
        try:
            code = region["value"]["rle"]
            mask = brush_rle.decode(bytes(code if isinstance(code, list) else [-1]), size)
        except (LookupError, TypeError, ValueError) as error:
            raise DataError("bad_mask", where, f"the brush label of index {index}: {error}") from None
        found = files.index_map(path).indices
        if found.shape != size:
            raise DataError("wrong_size", path, f"is not of {size} pixels (H, W)")
        if not np.array_equal(found, mask * np.uint8(255)):
            raise DataError("bad_mask", path, f"is not the brush label in {TASKS}, in values 0 and 255")
        if label_map[mask].any():
            raise DataError("bad_mask", where, "two brush labels overlap")
        label_map[mask] = index
    return sample_of(data, label_map, image)
