"""Datasets with weak labels: made from full ones to measure with, and refined with SAM to dense ones (SeSAM)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segsmith.errors import SegsmithError
from segsmith.memory.store import seed_of
from segsmith.segmentation.data import VocFolder
from segsmith.segmentation.masks import MaskSettings
from segsmith.segmentation.refine import plan_weak, refine_weak
from segsmith.segmentation.weak import WeakKind, weaken
from segsmith.tools.protocols import IGNORE, PointSegmenter
from segsmith.tools.test_world import Pair, write_voc

BATCH = 16
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Refined:
    """What `refine_dataset` did. Shares are of all pixels of split train; `how` counts its components by outcome."""

    images: int
    drawn_share: float
    known_share: float
    how: dict[str, int]


def weaken_dataset(root: Path, out: Path, kind: WeakKind, seed: int) -> float:
    """Copy a VOC-layout dataset with weak labels in split train; returns the share of its pixels still labelled.

    Splits val and test keep their full labels: they measure. Raises `SegsmithError` for an unusable dataset or
    an `out` that exists.
    """
    _refuse_existing(out)
    train, shares = VocFolder(root, "train"), []

    def weak_pairs() -> Iterator[Pair]:
        for name, (image, label_map) in _items(train):
            weak = weaken(label_map, kind, np.random.default_rng(seed_of("weaken", seed, name)))
            shares.append(float((weak != IGNORE).mean()))
            yield name, image, weak

    write_voc(out, train.classes, {"train": weak_pairs(), **_full_splits(root)})
    return float(np.mean(shares)) if shares else 0.0


def refine_dataset(
    root: Path,
    out: Path,
    segmenter: PointSegmenter,
    settings: MaskSettings,
    seed: int,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Refined:
    """Copy a VOC-layout dataset with split train's weak labels made dense (SeSAM, steps 1 to 3).

    Raises `SegsmithError` when nothing at all is drawn: then there is nothing to ask SAM with.
    """
    _refuse_existing(out)
    train = VocFolder(root, "train")
    drawn, known, how = [], [], Counter[str]()

    def dense_pairs() -> Iterator[Pair]:
        for start in range(0, len(train), BATCH):
            names = train.ids[start : start + BATCH]
            images, weak_maps = zip(*(train.raw(start + i) for i in range(len(names))), strict=True)
            plans = [
                plan_weak(weak, np.random.default_rng(seed_of("refine", seed, name)), settings)
                for name, weak in zip(names, weak_maps, strict=True)
            ]
            found = refine_weak(images, weak_maps, plans, segmenter, settings)
            for name, image, weak, (dense, counts) in zip(names, images, weak_maps, found, strict=True):
                drawn.append(float((weak != IGNORE).mean()))
                known.append(float((dense != IGNORE).mean()))
                how.update(counts)
                yield name, image, dense
            on_batch(min(start + BATCH, len(train)), len(train))

    if not any((label_map != IGNORE).any() for _, (_, label_map) in _items(train)):
        raise SegsmithError(
            f"No pixel of split train of {root} is labelled: every mask is 255 throughout.",
            "Draw at least a point on each object, or start from a class list with `segsmith build`.",
        )
    write_voc(out, train.classes, {"train": dense_pairs(), **_full_splits(root)})
    return Refined(len(train), float(np.mean(drawn)), float(np.mean(known)), dict(how))


def _items(data: VocFolder) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    return ((name, data.raw(index)) for index, name in enumerate(data.ids))


def _full_splits(root: Path) -> dict[str, Iterable[Pair]]:
    """The splits other than train that the dataset has, as they are."""
    there = [s for s in SPLITS[1:] if (root / "ImageSets" / "Segmentation" / f"{s}.txt").exists()]
    return {split: ((n, i, m) for n, (i, m) in _items(VocFolder(root, split))) for split in there}


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise SegsmithError(f"{out} exists already.", "Name a new folder with --out.")
