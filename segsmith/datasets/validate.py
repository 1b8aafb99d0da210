"""Reading a dataset back: what in it breaks training, and whether it is what the run holds."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from segsmith.datasets.detect import detect
from segsmith.datasets.formats.voc import JPEG_QUALITY
from segsmith.datasets.labelled_dataset import DataError, Item, LabelledDataset, Problem
from segsmith.datasets.near_duplicates import NearDuplicates
from segsmith.datasets.palette import VOID
from segsmith.datasets.records import Collection, Record, Sample
from segsmith.datasets.staging import MANIFEST
from segsmith.files import sha256_of

KINDS = {
    "bad_file": "a list or table cannot be parsed, or lacks what it must hold",
    "no_classes": "nothing says what the class indices mean",
    "duplicate_class": "two classes have one name, id or colour",
    "unknown_class": "a label names a class that is not listed",
    "empty_class": "a listed class has no pixel and no image",
    "untrained_class": "a class is tested but never trained",
    "no_images": "the dataset has no image",
    "empty_split": "a split that is trained or validated on has no image",
    "bad_split": "a list of a split contradicts the others",
    "duplicate_id": "one id is used twice",
    "split_leak": "one image is in two splits",
    "near_duplicate": "two splits hold pictures that look the same",
    "missing_file": "a file that is named is not there",
    "stray_file": "a file that nothing names",
    "corrupt_image": "a picture cannot be decoded",
    "corrupt_mask": "a mask cannot be decoded",
    "corrupt_shard": "a shard is cut short or damaged",
    "colour_mask": "a mask that a reader would take for colours, or that holds no indices",
    "wrong_size": "image, mask and what is stated of them differ in size",
    "undefined_index": "a mask holds an index or colour of no class",
    "all_unknown": "a mask knows no pixel, so its loss is not a number",
    "unknown_image": "an annotation of an image that is not listed",
    "bad_box": "a box is empty, leaves the image, or does not enclose its mask",
    "bad_area": "a stated area is not that of the mask",
    "bad_mask": "a mask of an annotation is empty or unreadable",
    "changed_file": "a file is not as it was exported",
    "other_classes": "other classes, or another order, than the run's",
    "lost_image": "the run exports an image that is not here",
    "foreign_image": "an image that the run does not export",
    "other_split": "an image is in another split than in the run",
    "other_labels": "other image labels than the run's",
    "other_mask": "another mask than the run's",
    "other_image": "another picture than the run's",
}
"""Every kind of problem, and what it means."""

JPEG_LEVELS = 16
"""Grey levels by which two JPEG decoders may differ."""


@dataclass
class Validation:
    """What a dataset holds, and everything wrong with it."""

    format: str
    classes: tuple[str, ...] = ()
    images: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def validate(root: Path, original: Collection | None = None) -> Validation:
    """Read every image and label of a dataset, in any format of `FORMATS`.

    With `original`, what a run exports, classes, splits, labels and every pixel are compared as well; JPEG
    pictures are compared with the same picture saved as JPEG. Raises `SegsmithError` only where `root` is
    no dataset at all.
    """
    form = detect(root)
    found = Validation(form.name)
    found.problems += _changed_files(root)
    try:
        data = form.read(root)
    except DataError as error:
        found.problems.append(error.problem)
        return found
    found.classes = data.classes
    found.problems += data.problems
    found.problems += _class_names(data)
    tally = _Tally(data, original)
    for item in data:
        found.problems += tally.check(item)
    found.problems += tally.close()
    found.images = tally.images
    found.splits = dict(tally.splits)
    return found


class _Tally:
    """What is known of the images seen so far; pixels are let go one image at a time."""

    def __init__(self, data: LabelledDataset, original: Collection | None) -> None:
        self.images = 0
        self.splits: Counter[str] = Counter()
        self._data = data
        self._original = original
        self._records = {} if original is None else {r.id: r for r in original.records}
        self._home: dict[str, str] = {}
        self._shown: dict[str, set[int]] = {}
        self._near = NearDuplicates()

    def check(self, item: Item) -> Iterator[Problem]:
        """All that is wrong with one image."""
        self.images += 1
        self.splits[item.split] += 1
        known = self._home.setdefault(item.id, item.split)
        if known != item.split:
            yield Problem("split_leak", item.where, f"{item.id} is in {known} and in {item.split}")
        elif item.id in self._shown:
            yield Problem("duplicate_id", item.where, f"{item.id} is there twice")
        shown = self._shown.setdefault(item.id, set())
        yield from self._labels(item, shown)
        try:
            image, label_map = item.load()
        except DataError as error:
            yield error.problem
            return
        yield from self._near.add(item.split, item.where, image)
        if label_map is not None:
            yield from self._label_map(item, image, label_map, shown)
        if self._original is not None:
            yield from self._compare(self._original, item, image, label_map)

    def close(self) -> Iterator[Problem]:
        """What shows only when all images are known."""
        if not self.images:
            yield Problem("no_images", ".", "there is no image")
            return
        classes = self._data.classes
        trained: set[int] = set()
        everywhere: set[int] = set()
        for image_id, split in self._home.items():
            everywhere |= self._shown[image_id]
            if split == "train":
                trained |= self._shown[image_id]
        for index, name in enumerate(classes, 1):
            if index not in everywhere:
                yield Problem("empty_class", name, "no image shows it")
            elif "train" in self.splits and index not in trained:
                yield Problem("untrained_class", name, "is in another split but not in train")
        for record in self._records.values():
            if record.id not in self._home:
                yield Problem("lost_image", record.id, f"the run has it in {record.split}")
        if self._original is not None and self._original.classes != classes:
            yield Problem("other_classes", ", ".join(classes), f"run: {', '.join(self._original.classes)}")

    def _labels(self, item: Item, shown: set[int]) -> Iterator[Problem]:
        for name in item.labels or ():
            if name not in self._data.classes:
                yield Problem("unknown_class", item.where, f"is labelled {name!r}, which is not listed")
            elif not self._data.has_label_maps:
                shown.add(self._data.classes.index(name) + 1)

    def _label_map(
        self, item: Item, image: NDArray[np.uint8], label_map: NDArray[np.uint8], shown: set[int]
    ) -> Iterator[Problem]:
        if label_map.shape != image.shape[:2]:
            text = f"the image is {image.shape[:2]} pixels (H, W), its mask {label_map.shape}"
            yield Problem("wrong_size", item.where, text)
        values = set(np.flatnonzero(np.bincount(label_map.ravel(), minlength=256)).tolist())
        undefined = sorted(v for v in values - {VOID} if v > len(self._data.classes))
        if undefined:
            text = f"the mask holds {undefined}, but there are {len(self._data.classes)} classes"
            yield Problem("undefined_index", item.where, text)
        if values == {VOID}:
            yield Problem("all_unknown", item.where, "the mask is 255 everywhere")
        shown |= values - {0, VOID}

    def _compare(
        self, original: Collection, item: Item, image: NDArray[np.uint8], label_map: NDArray[np.uint8] | None
    ) -> Iterator[Problem]:
        record = self._records.get(item.id)
        if record is None:
            yield Problem("foreign_image", item.where, "the run does not export it")
            return
        yield from _compare_tables(item, record)
        sample = original.read(record)
        if label_map is not None and not np.array_equal(label_map, sample.label_map):
            wrong = "its size" if label_map.shape != sample.label_map.shape else _count(label_map, sample)
            yield Problem("other_mask", item.where, f"differs from the run's in {wrong}")
        if not _same_picture(image, sample, exact=self._data.exact_images):
            yield Problem("other_image", item.where, "is not the picture of the run")


def _compare_tables(item: Item, record: Record) -> Iterator[Problem]:
    if item.split != record.split:
        yield Problem("other_split", item.where, f"is in {item.split}, in the run in {record.split}")
    if item.labels is not None and set(item.labels) != set(record.labels):
        text = f"is labelled {', '.join(item.labels)}; in the run {', '.join(record.labels)}"
        yield Problem("other_labels", item.where, text)


def _count(label_map: NDArray[np.uint8], sample: Sample) -> str:
    return f"{int((label_map != sample.label_map).sum())} pixels"


def _same_picture(image: NDArray[np.uint8], sample: Sample, *, exact: bool) -> bool:
    if exact:
        return np.array_equal(image, sample.image)
    jpeg = io.BytesIO()
    PILImage.fromarray(sample.image).save(jpeg, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    with PILImage.open(jpeg) as picture:
        expected = np.asarray(picture.convert("RGB")).astype(np.int16)
    return image.shape == expected.shape and int(np.abs(image - expected).max(initial=0)) <= JPEG_LEVELS


def _class_names(data: LabelledDataset) -> Iterator[Problem]:
    """Names that differ in case or spaces alone; exact repetitions are the readers' to find."""
    folded: dict[str, str] = {}
    for name in data.classes:
        other = folded.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            yield Problem("duplicate_class", name, f"differs from {other!r} in case or spaces alone")


def _changed_files(root: Path) -> Iterator[Problem]:
    """Files of an export that are no longer what the manifest says."""
    try:
        files: Mapping[str, str] = json.loads((root / MANIFEST).read_text("utf-8"))["files"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Problem("bad_file", MANIFEST, f"is no list of files ({error})")
        return
    for name, expected in files.items():
        path = root / name
        if not path.is_file():
            yield Problem("missing_file", name, f"is in {MANIFEST} but not in the folder")
        elif sha256_of(path) != expected:
            yield Problem("changed_file", name, "is not as it was exported")
