"""The dataset that a run exports: its accepted, masked images, with their splits and origins."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.config import Config
from segsmith.datasets.dataset_rows import dataset_rows
from segsmith.datasets.mask_objects import MaskObjects, ObjectCache, Stamp, find_objects
from segsmith.datasets.palette import VOID, voc_palette
from segsmith.datasets.png_chunks import grey_png, has_palette
from segsmith.datasets.records import Origin, Record, Sample, Scores
from segsmith.datasets.splits import SPLITS, split_by_group
from segsmith.datasets.staging import Sink
from segsmith.errors import SegsmithError
from segsmith.files import open_image, png_bytes, read_header, read_index_map, read_whole, sha256_of
from segsmith.memory.ledger import Ledger
from segsmith.memory.real_images import RealSet
from segsmith.memory.run_folder import RunFolder

REDO = "Restore the file from a copy, or build again into another folder with --out."


@dataclass(frozen=True)
class StoredFiles:
    """One image of a run and its mask, as stored, checked to be those that the run wrote."""

    name: str
    path: str
    """Of the image's file."""
    image_sha256: str
    mask_path: str
    mask_sha256: str
    content: tuple[bytes, bytes] | None = None
    """Of image and mask, where they had to be read to be checked."""

    @property
    def suffix(self) -> str:
        """Of the image's file, such as ".png"."""
        return os.path.splitext(self.path)[1]

    @property
    def image(self) -> bytes:
        """The bytes of the image."""
        return read_whole(self.path) if self.content is None else self.content[0]

    @cached_property
    def mask(self) -> bytes:
        """The bytes of the mask."""
        return read_whole(self.mask_path) if self.content is None else self.content[1]

    def store_image(self, sink: Sink, name: str) -> None:
        """Store the image in an export under a name; it is not read where it need not be checked."""
        if self.content is None:
            sink.copy(name, self.path, self.image_sha256)
        else:
            sink.put(name, self.image, self.image_sha256)

    @cached_property
    def label_map(self) -> NDArray[np.uint8]:
        """(H, W) uint8: 0 background, i the i-th class, 255 unknown."""
        try:
            return read_index_map(self.mask)
        except OSError as error:
            raise SegsmithError(f"The mask of {self.name} cannot be read: {error}.", REDO) from None

    @property
    def grey_mask(self) -> bytes:
        """The mask as grey PNG, whose values no reader mistakes for colours."""
        return grey_png(self.mask)

    @property
    def palette_mask(self) -> bytes:
        """The mask as PNG with VOC's palette: as stored where it has that palette."""
        palette = voc_palette()
        return self.mask if has_palette(self.mask, palette.tobytes()) else png_bytes(self.label_map, palette)


@dataclass(frozen=True)
class StoredImage:
    """Files of one image of a run."""

    image: str
    """Path of its file."""
    mask: str
    """Path of its file."""
    sha256: str
    """Of the image; "" where the ledger does not state it."""
    mask_sha256: str = ""
    """Of the mask; "" where the ledger does not state it."""

    def read(self, name: str, classes: int, cache: ObjectCache | None = None) -> StoredFiles:
        """Both files; `SegsmithError` when one is missing, damaged, another one, or does not fit.

        Files whose hashes the ledger knows are what the run wrote, so they are not decoded to be checked. Those that
        have not changed since an earlier export checked them, which `cache` knows, are neither hashed nor read here.
        """
        stated = bool(self.sha256 and self.mask_sha256)
        stamp = None
        try:
            if stated and cache is not None:
                stamp = Stamp.of({self.image: self.sha256, self.mask: self.mask_sha256})
                if cache.is_verified(name, stamp):
                    return StoredFiles(name, self.image, self.sha256, self.mask, self.mask_sha256)
            data, mask = read_whole(self.image), read_whole(self.mask)
        except FileNotFoundError as error:
            raise _missing(error.filename) from None
        except OSError as error:
            raise SegsmithError(f"Image {name} or its mask cannot be read: {error}.", REDO) from None
        found = hashlib.sha256(data).hexdigest(), hashlib.sha256(mask).hexdigest()
        self._check(name, *found)
        files = StoredFiles(name, self.image, found[0], self.mask, found[1], (data, mask))
        if not stated:
            self._check_pixels(files, classes)
        if cache is not None and stamp is not None:
            cache.add_verified(name, stamp)
        return files

    def load(self, name: str, classes: int) -> Sample:
        """Image and mask; errors as of `read`."""
        files = self.read(name, classes)
        self._check_pixels(files, classes)
        return Sample(files.image, files.label_map)

    def hashes(self) -> tuple[str, str]:
        """SHA-256 of the image and of the mask, as the ledger states them, else of the files."""
        try:
            return self.sha256 or sha256_of(Path(self.image)), self.mask_sha256 or sha256_of(Path(self.mask))
        except FileNotFoundError as error:
            raise _missing(error.filename) from None

    def _check(self, name: str, image: str, mask: str) -> None:
        if self.sha256 not in ("", image):
            raise SegsmithError(f"Image {name} is not the file that the run drew.", REDO)
        if self.mask_sha256 not in ("", mask):
            raise SegsmithError(f"The mask of {name} is not the file that the run made.", REDO)

    def _check_pixels(self, files: StoredFiles, classes: int) -> None:
        name, label_map = files.name, files.label_map
        try:
            size = read_header(files.image).size
            if not self.sha256:
                open_image(files.image)  # nothing else tells whether the file is whole
        except OSError as error:
            raise SegsmithError(f"Image {name} cannot be read: {error}.", REDO) from None
        if label_map.shape != size:
            raise SegsmithError(f"Image {name} is {size} pixels (H, W), its mask {label_map.shape}.", REDO)
        check_indices(name, label_map[(label_map > classes) & (label_map != VOID)].tolist(), classes)


def check_indices(name: str, present: Sequence[int], classes: int) -> None:
    """Raise `SegsmithError` for a mask of image `name` with an index that none of `classes` has."""
    if undefined := [index for index in present if index > classes]:
        raise SegsmithError(f"The mask of {name} holds index {undefined[0]}, which no class has.", REDO)


@dataclass(frozen=True)
class RunDataset:
    """All that an export writes; `Record.load` reads one image at a time and raises `SegsmithError`.

    `card` is the text of the README, without its section on files. `cache` holds objects found by earlier exports.
    """

    classes: tuple[str, ...]
    records: tuple[Record, ...]
    stored: Mapping[str, StoredImage]
    card: str = ""
    cache: ObjectCache | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Number of images in each split."""
        return {split: sum(r.split == split for r in self.records) for split in SPLITS}

    def read(self, record: Record) -> StoredFiles:
        """The stored bytes of an image and its mask; errors as of `StoredImage.read`."""
        return self.stored[record.id].read(record.id, len(self.classes), self.cache)

    def objects(self, files: StoredFiles) -> MaskObjects:
        """The objects of a mask, from the cache where it has them. Raises `SegsmithError` for one of no class."""
        found = None if self.cache is None else self.cache.get(files.mask_sha256)
        if found is None:
            found = find_objects(files.label_map)
            if self.cache is not None:
                self.cache.add(files.mask_sha256, found)
        check_indices(files.name, found.present, len(self.classes))
        return found

    def readme(self, files: str) -> bytes:
        """The card, with a section on the files of a format."""
        return f"{self.card}\n## Files\n\n{files}\n".encode()

    def metadata_lines(self) -> bytes:
        """The provenance of every image, one JSON object a line."""
        return "".join(json.dumps(r.provenance(), ensure_ascii=False) + "\n" for r in self.records).encode()

    def digest(self, form: str) -> str:
        """SHA-256 of all that decides an export in the format `form`, "name-version"."""
        digest = hashlib.sha256(json.dumps([form, self.classes, self.card]).encode())
        for record in self.records:
            image, mask = self.stored[record.id].hashes()
            digest.update(json.dumps([record.provenance(), image, mask]).encode())
        return digest.hexdigest()


def collect(run: RunFolder, ledger: Ledger, config: Config, *, fetch: bool = True) -> RunDataset:
    """Accepted, masked images in the order they were drawn; splits keep prompt families together.

    A run that enlarges a dataset has the real images first, in their own splits, and all generated ones in
    train, so that val and test hold real images only. Image labels are the relabeller's, else CLIP's, else
    the prompt's. Files that are in the run's store alone are fetched, unless others read them. Raises
    `SegsmithError` when there is no image to export.
    """
    drafts: list[tuple[str, tuple[str, ...], Origin, StoredImage]] = []
    names: dict[tuple[str, ...], tuple[str, ...]] = {}
    for rows in dataset_rows(ledger):
        if fetch:
            run.fetch((row.image.id for row in rows), masks=True)
        for row in rows:
            image, prompt = row.image, row.prompt
            scores = Scores(row.verdict.scores, names)
            origin = Origin(prompt.text, prompt.id, row.family, image.seed, image.backend, scores)
            paths = run.image_file(image.id, fetch=fetch), run.mask_file(image.id, fetch=fetch)
            drafts.append((image.id, row.labels, origin, StoredImage(*paths, image.sha256, row.mask_sha256)))
    if not drafts:
        raise SegsmithError(
            "No image is both accepted and masked yet, so there is nothing to export.",
            "Rerun the same `segsmith build` command to resume the run.",
        )
    real = RealSet.open(run.real)
    split_of: dict[str, str] = {}
    if real is None:
        groups = {name: origin.family for name, _, origin, _ in drafts}
        labels = {name: classes for name, classes, _, _ in drafts}
        for split, ids in split_by_group(groups, labels, config.splits, config.seed).items():
            split_of |= dict.fromkeys(ids, split)
    records, stored = _real_records(real, config.classes)
    for name, classes, origin, files in drafts:
        stored[name] = files
        records.append(_record(name, split_of.get(name, "train"), classes, origin, files, config.classes))
    return RunDataset(config.classes, tuple(records), stored)


def _real_records(
    real: RealSet | None, classes: tuple[str, ...]
) -> tuple[list[Record], dict[str, StoredImage]]:
    """The images that a run enlarges, with their own labels and label maps."""
    records: list[Record] = []
    stored: dict[str, StoredImage] = {}
    for item in real.images if real is not None else ():
        assert real is not None
        if real.mask(item).exists():
            origin = Origin(family=item.id, source="real", original=item.original)
            paths = str(real.image(item)), str(real.mask(item))
            files = StoredImage(*paths, item.sha256, item.mask_sha256)
            stored[item.id] = files
            records.append(_record(item.id, item.split, item.labels, origin, files, classes))
    return records, stored


def _record(
    name: str,
    split: str,
    labels: tuple[str, ...],
    origin: Origin,
    files: StoredImage,
    classes: tuple[str, ...],
) -> Record:
    load = partial(files.load, name, len(classes))
    return Record(name, split, name, load, labels, origin=origin)


def _missing(path: object) -> SegsmithError:
    return SegsmithError(f"{path} is in the run's ledger but not in its folder.", REDO)
