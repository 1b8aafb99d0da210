"""Weak labels made from full ones, to measure what refines them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from segsmith.datasets.objects import present_classes
from segsmith.datasets.voc_folder import VocFolder
from segsmith.datasets.voc_layout import Pair, write_voc
from segsmith.datasets.weak_labels import KINDS, MIN_AREA_PX, WeakKind, weaken
from segsmith.errors import SegsmithError
from segsmith.files import local_folder
from segsmith.ids import seed_of
from segsmith.types import IGNORE
from segsmith.workflows.dense_labels import items_of, measuring_splits


def weaken_dataset(root: Path, out: Path, kind: WeakKind, seed: int, min_area_px: int | None = None) -> float:
    """Copy a dataset in VOC's layout with weak labels in split train; returns the share of its pixels still labelled.

    Splits val and test keep their full labels, because they are measured on. With kind "image", the classes of each
    training image go to ``labels.csv``. Components with fewer than `min_area_px` pixels
    (None: `MIN_AREA_PX`) are not drawn on. Raises `SegsmithError` for an unusable dataset or an `out` that exists.
    """
    if local_folder(out).exists():
        raise SegsmithError(f"{out} exists already.", "Name a new folder with --out.")
    train = VocFolder(root, "train")
    smallest = MIN_AREA_PX if min_area_px is None else min_area_px
    shares: list[float] = []
    labels: dict[str, list[str]] = {}

    def weak_pairs() -> Iterator[Pair]:
        for name, image, label_map in items_of(train):
            weak = weaken(label_map, kind, np.random.default_rng(seed_of("weaken", seed, name)), smallest)
            shares.append(float((weak != IGNORE).mean()))
            if kind == "image":
                labels[name] = [train.classes[i - 1] for i in present_classes(label_map)]
            yield name, image, weak

    try:
        write_voc(out, train.classes, {"train": weak_pairs(), **measuring_splits(root)}, labels)
    except OSError as error:
        reason = "it exists by now" if out.exists() else error.strerror
        raise SegsmithError(f"Cannot write to {out}: {reason}.", "Name a new folder with --out.") from None
    return float(np.mean(shares)) if shares else 0.0


def weak_kind(name: str, option: str) -> WeakKind:
    """The kind of weak label called `name`; for an unknown one a `SegsmithError` lists what `option` may be."""
    for kind in KINDS:
        if kind == name:
            return kind
    raise SegsmithError(
        f"There is no kind of weak label {name!r}.", f"Type {option} with one of: {', '.join(KINDS)}."
    )
