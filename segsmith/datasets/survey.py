"""A foreign dataset as the real half of an `augment` run: read, checked, and copied into the run folder."""

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
from segsmith.datasets.labelled_dataset import DataError, Item
from segsmith.datasets.palette import VOID, voc_palette
from segsmith.datasets.splits import split_by_group
from segsmith.errors import SegsmithError
from segsmith.files import PART, png_bytes
from segsmith.ids import make_id
from segsmith.memory.real_images import LIST, RealImage, RealSet

KEPT_AS_THEY_ARE = (".jpg", ".jpeg", ".png")
MIN_IMAGES = 2


@dataclass(frozen=True)
class Survey:
    """A dataset that was looked through; nothing of it is copied yet."""

    source: ImportedDataset
    real: RealSet


def survey(dataset: Path, run: Path, shares: tuple[float, float, float], seed: int) -> Survey:
    """Look through a dataset in any format that `import_dataset` reads; its copy is to lie in ``run/real``.

    Splits are kept where they can be told; images outside train, val and test are divided by `shares`. Raises
    `SegsmithError` for what cannot be used: class names that no prompt can hold, no labels, one image.
    """
    source = import_dataset(dataset)
    try:
        if check_class_names(source.classes) != source.classes:
            raise ValueError("a class name begins or ends with a space, or holds two in a row")
    except ValueError as error:
        raise SegsmithError(f"{dataset}: {error}.", "Rename the class in the dataset.") from None
    source = replace(source, items=_each_once(source.items))
    labels = [_labels(item, source.classes) for item in source.items]
    if not any(labels):
        raise SegsmithError(
            f"No image of {dataset} shows or names a class, so there is nothing to learn prompts from.",
            "Label some images, or start from a class list with `segsmith build`.",
        )
    ids = _ids(source.items)
    splits = _splits(ids, source.items, labels, shares, seed)
    images = tuple(
        RealImage(
            id=name,
            original=item.id,
            split=splits[name],
            labels=found,
            file="",
            sha256="",
            masked=source.has_label_maps,
        )
        for name, item, found in zip(ids, source.items, labels, strict=True)
    )
    if sum(image.split == "train" for image in images) < MIN_IMAGES:
        raise SegsmithError(
            f"{dataset} has {len(images)} usable image{'s' * (len(images) > 1)}, too few to learn from.",
            "Name a dataset with more images in split train, or use `segsmith build`.",
        )
    skipped = tuple(map(str, source.skipped))
    return Survey(source, RealSet(run / "real", source.classes, images, skipped))


def keep(found: Survey) -> RealSet:
    """Copy images (JPEG and PNG byte for byte, others as PNG) and label maps to ``real/``, whole or not at all."""
    folder = found.real.root
    if (folder / LIST).exists():
        kept = RealSet.open(folder)
        assert kept is not None
        return kept
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=PART))
    try:
        for part in ("images", "masks"):
            (aside / part).mkdir()
        images = [
            _copy(image, item, aside)
            for image, item in zip(found.real.images, found.source.items, strict=True)
        ]
        real = replace(found.real, images=tuple(images))
        (aside / LIST).write_text(real.text, "utf-8")
        aside.chmod(0o755)
        os.sync()  # one for all files is cheaper than one for each
        os.rename(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return real


def _copy(image: RealImage, item: Item, aside: Path) -> RealImage:
    try:
        pixels, label_map = item.load()
    except DataError as error:
        raise SegsmithError(f"{error.problem} (it was sound a moment ago).", "Try again.") from None
    suffix = item.image_path.suffix.lower() if item.image_path else ""
    if item.image_path is not None and suffix in KEPT_AS_THEY_ARE:
        data = item.image_path.read_bytes()
    else:
        suffix, data = ".png", png_bytes(np.ascontiguousarray(pixels))
    file = f"images/{image.id}{'.png' if suffix == '.png' else '.jpg'}"
    (aside / file).write_bytes(data)
    if label_map is not None:
        (aside / "masks" / f"{image.id}.png").write_bytes(
            png_bytes(np.ascontiguousarray(label_map), voc_palette())
        )
    return replace(image, file=file, sha256=hashlib.sha256(data).hexdigest())


def _each_once(items: Sequence[Item]) -> tuple[Item, ...]:
    """Lists may overlap (VOC's train and trainval); an image stays where its split is told best, or told first."""
    ranked = sorted(items, key=lambda item: not _standard(item.split))
    first = {item.image_path or id(item): item for item in reversed(ranked)}
    return tuple(item for item in items if first[item.image_path or id(item)] is item)


def _labels(item: Item, classes: Sequence[str]) -> tuple[str, ...]:
    """Those stated, else those the label map shows; in class order."""
    if item.labels is not None:
        return tuple(name for name in classes if name in item.labels)
    _, label_map = item.load()
    if label_map is None:
        return ()
    return tuple(classes[i - 1] for i in np.unique(label_map) if i not in (0, VOID))


def _ids(items: Iterable[Item]) -> list[str]:
    """File names made of the images' own; where two would be the same, a hash tells them apart."""
    ids: list[str] = []
    for item in items:
        name = "real-" + re.sub(r"[^A-Za-z0-9_]+", "-", item.id).strip("-")[:60]
        ids.append(
            f"{name}-{make_id('r', item.split, item.id)[2:]}" if name in ids or name == "real-" else name
        )
    return ids


def _splits(
    ids: Sequence[str],
    items: Sequence[Item],
    labels: Sequence[tuple[str, ...]],
    shares: tuple[float, float, float],
    seed: int,
) -> dict[str, str]:
    """Id -> train, val or test: what the dataset says ("train2017" is train), else by `shares`."""
    splits = {name: _standard(item.split) for name, item in zip(ids, items, strict=True)}
    loose = {name: found for name, found in zip(ids, labels, strict=True) if not splits[name]}
    for split, members in split_by_group({name: name for name in loose}, loose, shares, seed).items():
        splits |= dict.fromkeys(members, split)
    return splits


def _standard(split: str) -> str:
    """train, val or test, or "" for a split that says neither (trainval, none)."""
    if split.startswith("trainval"):
        return ""
    return next((name for name in ("train", "val", "test") if split.lower().startswith(name)), "")
