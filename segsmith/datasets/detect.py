"""The formats that segsmith writes and reads: a format is a writer, a reader, and a way to recognise it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segsmith.datasets.formats import (
    coco,
    cvat,
    fiftyone,
    folder,
    huggingface,
    label_studio,
    voc,
    webdataset,
    yolo,
)
from segsmith.datasets.near_misses import reject_near_miss
from segsmith.datasets.records import DataError, LabelledDataset
from segsmith.datasets.writing import Writer
from segsmith.errors import SegsmithError


@dataclass(frozen=True)
class Format:
    """`write` fills a folder; `read` opens one.

    `version` goes up when the files change, so that an export by an older segsmith is written again.
    `read` raises `DataError` if nothing can be read at all. A format without `write` is only imported.
    """

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], LabelledDataset]
    write: Writer | None = None
    version: int = 1


FORMATS = {
    f.name: f
    for f in (
        Format("voc", voc.recognises, voc.read, voc.WRITER, version=4),
        Format("voc2012", voc.recognises, voc.read, voc.DEVKIT_WRITER),
        Format("coco", coco.recognises, coco.read, coco.WRITER, version=3),
        Format("coco-stuff", coco.recognises, coco.read, coco.STUFF_WRITER),
        Format("yolo", yolo.recognises, yolo.read, yolo.WRITER, version=2),
        Format("cvat", cvat.recognises, cvat.read, cvat.WRITER, version=2),
        Format("webdataset", webdataset.recognises, webdataset.read, webdataset.WRITER, version=2),
        Format("hf", huggingface.recognises, huggingface.read, huggingface.WRITER, version=2),
        Format("fiftyone", fiftyone.recognises, fiftyone.read, fiftyone.WRITER),
        Format("label-studio", label_studio.recognises, label_studio.read, label_studio.WRITER),
        Format("folders", folder.recognises, folder.read),
    )
}
"""In the order in which `detect` tries them."""

EXPORTS = tuple(name for name, form in FORMATS.items() if form.write is not None)


def detect(root: Path) -> Format:
    """The format of a dataset folder, or `SegsmithError` that says what was looked for.

    A folder of images per class is tried last, after the layouts that look like one and are not.
    """
    if not root.is_dir():
        raise SegsmithError(f"{root} is not a folder.", "Name the root folder of a dataset.")
    for form in FORMATS.values():
        if form.name == "folders":
            reject_near_miss(root)
        if form.recognises(root):
            return form
    raise SegsmithError(
        f"{root} is not a dataset in a format that segsmith reads.",
        "Name the folder that holds ImageSets/Segmentation (VOC, CVAT), annotations/*.json (COCO), data.yaml "
        "(Ultralytics), *.tar (WebDataset), */metadata.jsonl (Hugging Face), mask_targets.json (FiftyOne), "
        "tasks.json (Label Studio, exported by segsmith), or a folder of images per class.",
    )


def open_dataset(root: Path) -> LabelledDataset:
    """A dataset of any format; `SegsmithError` that names the file if nothing can be read of it."""
    try:
        return detect(root).read(root)
    except DataError as error:
        raise SegsmithError(
            f"{root}: {error.problem.where}: {error.problem.text}.", "Fix that file."
        ) from None
