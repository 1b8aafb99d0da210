"""Reading a dataset back: what in it breaks training, and whether it is what the run holds."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy.fft import dctn

from segsmith.datasets.dataset_files import DatasetFiles, class_name_problem, name_problem
from segsmith.datasets.detect import detect
from segsmith.datasets.foreign_readers import compare, digest, find_reader
from segsmith.datasets.formats.voc import jpeg_bytes
from segsmith.datasets.instances import without_specks
from segsmith.datasets.objects import histogram
from segsmith.datasets.palette import VOID
from segsmith.datasets.records import DataError, LabelledDataset, Problem, Record, Sample
from segsmith.datasets.run_dataset import RunDataset
from segsmith.datasets.staging import MANIFEST
from segsmith.files import Conversion, read_image, sha256_of

KINDS = {
    "bad_file": "a list or table cannot be parsed, or lacks what it must hold",
    "no_classes": "nothing states what the class indices mean",
    "too_many_classes": "more classes than an 8-bit mask can hold",
    "duplicate_class": "two classes have one name, id or colour",
    "unknown_class": "a label names a class that is not listed",
    "background_class": "background is listed as a class, but index 0 is background already",
    "empty_class": "a listed class has no pixel and no image",
    "untrained_class": "a class is tested but never trained",
    "no_images": "the dataset has no image",
    "empty_split": "a split that is trained or validated on has no image",
    "bad_split": "a list of a split contradicts the others",
    "bad_name": "a name that a list, a path or a terminal cannot hold",
    "outside_path": "a path or a symbolic link leads out of the dataset's folder",
    "duplicate_id": "one id is used twice",
    "split_leak": "one image is in two splits",
    "near_duplicate": "two splits hold images that look the same",
    "missing_file": "a file that is named does not exist",
    "stray_file": "a file that nothing names",
    "corrupt_image": "an image cannot be decoded, or is in a format or of a size that is not read",
    "corrupt_mask": "a mask cannot be decoded, or is in a format or of a size that is not read",
    "corrupt_shard": "a shard is cut short or damaged",
    "colour_mask": "a mask that a reader would take for colours, or that holds no 8-bit indices",
    "wrong_size": "image, mask and what is stated of them differ in size",
    "undefined_index": "a mask holds an index or colour of no class",
    "all_unknown": "every pixel of a mask is 255, so its loss is not a number",
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
    "other_image": "another image than the run's",
    "other_reading": "a library that reads this format reads something else than segsmith",
}
"""Every kind of problem, and what it means."""

BACKGROUND = "background"

JPEG_LEVELS = 16
"""Grey levels by which two JPEG decoders may differ."""

HASH_BITS = 4
"""Bits by which the perceptual hashes of near duplicates may differ."""
THUMBNAIL = 16
THUMBNAIL_LEVELS = 8.0
"""Mean difference of two thumbnails, in grey levels, up to which they show the same image (ours)."""
CANDIDATES = 64
"""Images of one band that are compared; blank images would otherwise all be compared with each other."""


@dataclass
class Validation:
    """What a dataset holds, and everything wrong with it.

    `conversions` counts the images that segsmith does not use as they are stored. `also_read_by` names the library
    that read the same, "" where none was used.
    """

    format: str
    classes: tuple[str, ...] = ()
    images: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    conversions: Counter[Conversion] = field(default_factory=Counter)
    also_read_by: str = ""


def validate(root: Path, original: RunDataset | None = None) -> Validation:
    """Read every image and label of a dataset, in any format of `FORMATS`.

    With `original`, what a run exports, classes, splits, labels and every pixel are compared as well; JPEG
    images are compared with the original saved as JPEG. If nothing is wrong then, the library that users read this
    format with reads it, too, where it is installed (`foreign_readers`). Raises `SegsmithError` only if `root` is not
    a dataset at all.
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
    for record in data:
        found.problems += tally.check(record)
    found.problems += tally.close()
    found.images = tally.images
    found.splits = dict(tally.splits)
    found.conversions = tally.conversions
    reader = None if original is None or found.problems else find_reader(root, data.format)
    if reader is not None:
        found.problems += compare(reader, root, data, found.splits, tally.digests)
        found.also_read_by = "" if found.problems else reader.library
    return found


class _Tally:
    """What is known of the images seen so far; pixels are kept one image at a time."""

    def __init__(self, data: LabelledDataset, original: RunDataset | None) -> None:
        self.images = 0
        self.splits: Counter[str] = Counter()
        self.conversions: Counter[Conversion] = Counter()
        self.digests: dict[str, bytes] = {}
        """Image id -> `digest` of its label map, for a second reading; only beside a run."""
        self._data = data
        self._original = original
        self._records = {} if original is None else {r.id: r for r in original.records}
        self._home: dict[str, str] = {}
        self._shown: dict[str, set[int]] = {}
        self._near = _NearDuplicates()

    def check(self, record: Record) -> Iterator[Problem]:
        """All that is wrong with one image."""
        self.images += 1
        self.splits[record.split] += 1
        if problem := name_problem(record.id):
            yield Problem("bad_name", record.where, f"the id {record.id!r} {problem}")
        known = self._home.setdefault(record.id, record.split)
        if known != record.split:
            yield Problem("split_leak", record.where, f"{record.id} is in {known} and in {record.split}")
        elif record.id in self._shown:
            yield Problem("duplicate_id", record.where, f"{record.id} is there twice")
        shown = self._shown.setdefault(record.id, set())
        yield from self._labels(record, shown)
        try:
            sample = record.load()
        except DataError as error:
            yield error.problem
            return
        yield from sample.problems
        self.conversions.update(sample.conversions)
        yield from self._near.add(record.split, record.where, sample.image)
        if sample.label_map is not None:
            if self._original is not None:
                self.digests[record.id] = digest(sample.label_map)
            yield from self._label_map(record, sample.image, sample.label_map, shown)
        if record.id in self._records:
            yield from self._compare(record, sample, self._records[record.id])
        elif self._original is not None:
            yield Problem("foreign_image", record.where, "the run does not export it")

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

    def _labels(self, record: Record, shown: set[int]) -> Iterator[Problem]:
        for name in record.labels or ():
            if name not in self._data.classes:
                yield Problem("unknown_class", record.where, f"is labelled {name!r}, which is not listed")
            elif not self._data.has_label_maps:
                shown.add(self._data.classes.index(name) + 1)

    def _label_map(
        self, record: Record, image: NDArray[np.uint8], label_map: NDArray[np.uint8], shown: set[int]
    ) -> Iterator[Problem]:
        if label_map.shape != image.shape[:2]:
            text = f"the image is {image.shape[:2]} pixels (H, W), its mask {label_map.shape}"
            yield Problem("wrong_size", record.where, text)
        values = set(np.flatnonzero(histogram(label_map)).tolist())
        undefined = sorted(v for v in values - {VOID} if v > len(self._data.classes))
        if undefined:
            text = f"the mask holds {undefined}, but there are {len(self._data.classes)} classes"
            yield Problem("undefined_index", record.where, text)
        if values == {VOID}:
            yield Problem("all_unknown", record.where, "the mask is 255 everywhere")
        shown |= values - {0, VOID}

    def _compare(self, record: Record, sample: Sample, of_run: Record) -> Iterator[Problem]:
        if record.split != of_run.split:
            text = f"is in {record.split}, in the run in {of_run.split}"
            yield Problem("other_split", record.where, text)
        if record.labels is not None and set(record.labels) != set(of_run.labels or ()):
            text = f"is labelled {', '.join(record.labels)}; in the run {', '.join(of_run.labels or ())}"
            yield Problem("other_labels", record.where, text)
        original = of_run.load()
        found, expected = sample.label_map, original.label_map
        if expected is not None and self._data.without_specks:
            expected = without_specks(expected)
        if found is not None and expected is not None and not np.array_equal(found, expected):
            same_size = found.shape == expected.shape
            differing = f"{int((found != expected).sum())} pixels" if same_size else "its size"
            yield Problem("other_mask", record.where, f"differs from the run's in {differing}")
        if sample.data != original.data and not _same_image(
            sample.image, original.image, exact=self._data.exact_images
        ):
            yield Problem("other_image", record.where, "is not the image of the run")


def _same_image(found: NDArray[np.uint8], original: NDArray[np.uint8], *, exact: bool) -> bool:
    if exact:
        return np.array_equal(found, original)
    expected = read_image(jpeg_bytes(original)).astype(np.int16)
    return found.shape == expected.shape and int(np.abs(found - expected).max(initial=0)) <= JPEG_LEVELS


def _class_names(data: LabelledDataset) -> Iterator[Problem]:
    """Unusable names, and names that differ in case or spaces only; readers find exact repetitions."""
    folded: dict[str, str] = {}
    for index, name in enumerate(data.classes, 1):
        if data.has_label_maps and name.strip(" _").casefold() == BACKGROUND:
            text = (
                f"class {index} is {name!r}; index 0 is background in every mask, so each class may be shifted by "
                "one: remove it from the list, and check the indices in the masks"
            )
            yield Problem("background_class", name, text)
        if problem := class_name_problem(name):
            yield Problem("bad_name", name, f"the class name {name!r} {problem}")
        other = folded.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            yield Problem("duplicate_class", name, f"differs from {other!r} in case or spaces only")


def _changed_files(root: Path) -> Iterator[Problem]:
    """Files of an export that are no longer what the manifest says."""
    files = DatasetFiles(root)
    if not (root / MANIFEST).exists():
        return
    try:
        manifest = files.json(MANIFEST)
    except DataError as error:
        yield error.problem
        return
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(listed, dict):
        yield Problem("bad_file", MANIFEST, "is not a list of files")
        return
    for name, expected in listed.items():
        try:
            path = files.path(name)
        except DataError as error:
            yield error.problem
            continue
        if not files.is_file(name):
            yield Problem("missing_file", name, f"is in {MANIFEST} but not in the folder")
        elif sha256_of(path) != expected:
            yield Problem("changed_file", name, "is not as it was exported")


# -- near duplicates ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    split: str
    where: str
    hash: int
    thumbnail: NDArray[np.uint8]


class _NearDuplicates:
    """Finds images that look like one of another split, by a perceptual hash and then by a thumbnail.

    The hash says which of the lowest 8 x 8 frequencies of the brightness are above their median (Zauner 2010),
    so it survives resizing and compression. It is cut into one band more than the bits that may differ, so
    that the hashes of near duplicates share a band.
    """

    def __init__(self) -> None:
        # Of each band only the last images are compared, so memory does not grow with the dataset.
        self._bands: dict[tuple[int, int], deque[_Seen]] = defaultdict(lambda: deque(maxlen=CANDIDATES))

    def add(self, split: str, where: str, image: NDArray[np.uint8]) -> Iterator[Problem]:
        """Remember an (H, W, 3) image; name the first earlier one of another split that looks like it."""
        seen = _describe(split, where, image)
        bands = list(enumerate(_bands(seen.hash)))
        before = (other for band in bands for other in self._bands[band])
        partner = next((other for other in before if other.split != split and _alike(seen, other)), None)
        if partner is not None:
            yield Problem("near_duplicate", where, f"{split} looks like {partner.where} of {partner.split}")
        for band in bands:
            self._bands[band].append(seen)


def _describe(split: str, where: str, image: NDArray[np.uint8]) -> _Seen:
    whole = PILImage.fromarray(image)
    grey = np.asarray(whole.convert("L").resize((32, 32), PILImage.Resampling.BOX), np.float32)
    waves = dctn(grey, norm="ortho")[:8, :8].ravel()
    waves[0] = 0  # overall brightness says nothing
    bits = np.packbits(waves > np.median(waves))
    small = whole.resize((THUMBNAIL, THUMBNAIL), PILImage.Resampling.BOX)
    return _Seen(split, where, int.from_bytes(bits.tobytes(), "big"), np.asarray(small))


def _bands(hash_: int) -> list[int]:
    width = 64 // (HASH_BITS + 1) + 1
    return [hash_ >> (band * width) & ((1 << width) - 1) for band in range(HASH_BITS + 1)]


def _alike(a: _Seen, b: _Seen) -> bool:
    if (a.hash ^ b.hash).bit_count() > HASH_BITS:
        return False
    return float(np.abs(a.thumbnail.astype(np.int16) - b.thumbnail).mean()) <= THUMBNAIL_LEVELS
