"""A foreign dataset as the real images of an `augment` run: read, checked, and copied into the run folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segsmith.config import check_class_names
from segsmith.datasets.imports import ImportedDataset, import_dataset
from segsmith.datasets.objects import present_classes
from segsmith.datasets.palette import voc_palette
from segsmith.datasets.records import DataError, Record
from segsmith.datasets.splits import split_by_group
from segsmith.errors import SegsmithError
from segsmith.files import PART, conversion_notes, png_bytes
from segsmith.ids import make_id
from segsmith.memory.real_images import LIST, RealImage, RealSet

MIN_IMAGES = 2


@dataclass(frozen=True)
class Survey:
    """A dataset that was read and checked; nothing of it is copied yet."""

    source: ImportedDataset
    real: RealSet


def survey(dataset: Path, run: Path, shares: tuple[float, float, float], seed: int) -> Survey:
    """Read a dataset in any format of `import_dataset`; `keep` will copy it to ``run/real``.

    Splits are kept where they can be recognised; images outside train, val and test are divided by `shares`.
    Raises `SegsmithError` for what cannot be used: class names that no prompt can hold, no labels, one image.
    """
    source = import_dataset(dataset)
    try:
        if check_class_names(source.classes) != source.classes:
            raise ValueError("a class name begins or ends with a space, or holds two in a row")
    except ValueError as error:
        raise SegsmithError(f"{dataset}: {error}.", "Rename the class in the dataset.") from None
    source = replace(source, records=_each_once(source.records))
    labels = [_labels(record, source.classes) for record in source.records]
    if not any(labels):
        raise SegsmithError(
            f"No image of {dataset} shows or names a class, so there is nothing to learn prompts from.",
            "Label some images, or start from a class list with `segsmith build`.",
        )
    ids = _ids(source.records)
    splits = _splits(ids, source.records, labels, shares, seed)
    images = tuple(
        RealImage(
            id=name,
            original=record.id,
            split=splits[name],
            labels=found,
            file="",
            sha256="",
            masked=source.has_label_maps,
        )
        for name, record, found in zip(ids, source.records, labels, strict=True)
    )
    if sum(image.split == "train" for image in images) < MIN_IMAGES:
        raise SegsmithError(
            f"{dataset} has {len(images)} usable image{'s' * (len(images) > 1)}, too few to learn from.",
            "Name a dataset with more images in split train, or use `segsmith build`.",
        )
    skipped = (*map(str, source.skipped), *conversion_notes(source.conversions))
    return Survey(source, RealSet(run / "real", source.classes, images, skipped))


def keep(found: Survey) -> RealSet:
    """Copy images and label maps to ``real/``, completely or not at all.

    JPEG and PNG are copied byte for byte; other formats, and images that `open_image` converts, become PNG.
    """
    folder = found.real.root
    if (folder / LIST).exists():
        kept = RealSet.open(folder)
        assert kept is not None
        return kept
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=PART))
    try:
        for part in ("images", "masks"):
            (staging / part).mkdir()
        images = [
            _copy(image, record, staging)
            for image, record in zip(found.real.images, found.source.records, strict=True)
        ]
        real = replace(found.real, images=tuple(images))
        (staging / LIST).write_text(real.text, "utf-8")
        staging.chmod(0o755)
        os.sync()  # one for all files is cheaper than one for each
        os.rename(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return real


def _copy(image: RealImage, record: Record, staging: Path) -> RealImage:
    try:
        sample = record.load()
    except DataError as error:
        text = f"{error.problem}; it could be read a moment ago"
        raise SegsmithError(f"{text}.", "Rerun the command.") from None
    data = sample.jpeg or sample.png
    file = f"images/{image.id}{'.jpg' if sample.jpeg else '.png'}"
    (staging / file).write_bytes(data)
    mask_sha256 = ""
    if sample.label_map is not None:
        mask = png_bytes(np.ascontiguousarray(sample.label_map), voc_palette())
        mask_sha256 = hashlib.sha256(mask).hexdigest()
        (staging / "masks" / f"{image.id}.png").write_bytes(mask)
    return replace(image, file=file, sha256=hashlib.sha256(data).hexdigest(), mask_sha256=mask_sha256)


def _each_once(records: Sequence[Record]) -> tuple[Record, ...]:
    """Lists may overlap (VOC's train and trainval): train, val and test go first, then the first list of an image."""
    ranked = sorted(records, key=lambda record: not _standard(record.split))
    first = {record.image_path or id(record): record for record in reversed(ranked)}
    return tuple(record for record in records if first[record.image_path or id(record)] is record)


def _labels(record: Record, classes: Sequence[str]) -> tuple[str, ...]:
    """The stated labels, else those that the label map shows; in class order."""
    if record.labels is not None:
        return tuple(name for name in classes if name in record.labels)
    label_map = record.load().label_map
    if label_map is None:
        return ()
    return tuple(classes[i - 1] for i in present_classes(label_map))


def _ids(records: Iterable[Record]) -> list[str]:
    """Ids made of the images' own; where two would be the same, a hash tells them apart."""
    ids: dict[str, None] = {}
    for record in records:
        name = "real-" + re.sub(r"[^A-Za-z0-9_]+", "-", record.id).strip("-")[:60]
        if name in ids or name == "real-":
            name = f"{name}-{make_id('r', record.split, record.id)[2:]}"
        ids[name] = None
    return list(ids)


def _splits(
    ids: Sequence[str],
    records: Sequence[Record],
    labels: Sequence[tuple[str, ...]],
    shares: tuple[float, float, float],
    seed: int,
) -> dict[str, str]:
    """Id -> train, val or test: as the dataset states ("train2017" is train), else by `shares`."""
    splits = {name: _standard(record.split) for name, record in zip(ids, records, strict=True)}
    loose = {name: found for name, found in zip(ids, labels, strict=True) if not splits[name]}
    for split, members in split_by_group({name: name for name in loose}, loose, shares, seed).items():
        splits |= dict.fromkeys(members, split)
    return splits


def _standard(split: str) -> str:
    """train, val or test; "" for any other split (trainval, none)."""
    if split.startswith("trainval"):
        return ""
    return next((name for name in ("train", "val", "test") if split.lower().startswith(name)), "")
