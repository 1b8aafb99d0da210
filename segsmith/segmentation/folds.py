"""Which images a relabelling model is trained on, and which it scores: cross-validation over groups. Pure."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Indices = NDArray[np.int64]

MAX_TAUGHT = 4096
"""Maximum number of images that the models of the folds are trained on (ours)."""


@dataclass(frozen=True)
class Folds:
    """A plan of cross-validation. Indices are those of the images; a batch goes through the model as a whole."""

    held_out: tuple[tuple[Indices, ...], ...]
    """Fold -> batches of the images that its model scores. Each image is in one batch of one fold."""
    taught: tuple[Indices, ...]
    """Batches of the images that models are trained on."""
    all_taught: bool
    """Whether these are all images. They are then in the batches of `held_out`, so that what was computed of an image
    for training can be used again when it is scored."""

    @property
    def order(self) -> Indices:
        """The images of `taught` in one array; "rows" are positions in it."""
        return np.concatenate(self.taught)

    def kept(self, fold: int) -> Indices:
        """Rows that the model of a fold is trained on, none of which it scores.

        With a single group there are no such rows, and all are returned.
        """
        order = self.order
        scored = np.isin(order, np.concatenate(self.held_out[fold]))
        rows = np.flatnonzero(~scored) if not scored.all() else np.arange(len(order))
        return rows[np.argsort(order[rows], kind="stable")]


def plan_folds(
    labels: NDArray[np.float32], groups: Sequence[str], folds: int, batch_size: int, seed: int
) -> Folds:
    """At most `folds` folds of similar size for N images; images of one group are in one fold.

    Of more than `MAX_TAUGHT` images, a sample with equal numbers of all classes is taught. `labels` is (N, C). A
    single group gets a warning, because its images are scored by a model that was trained on them.
    """
    if len(set(groups)) == 1:
        logger.warning(
            "There is only one group: the relabelling model is trained on the images that it relabels."
        )
    held_out = tuple(
        tuple(np.array_split(fold, math.ceil(len(fold) / batch_size)))
        for fold in group_folds(groups, folds, seed)
    )
    if len(labels) <= MAX_TAUGHT:
        return Folds(held_out, tuple(batch for fold in held_out for batch in fold), True)
    taught = sample_by_class(labels, MAX_TAUGHT, seed)
    return Folds(held_out, tuple(np.split(taught, range(batch_size, len(taught), batch_size))), False)


def sample_by_class(labels: NDArray[np.float32], at_most: int, seed: int) -> NDArray[np.int64]:
    """Sorted rows of (N, C) labels, at most `at_most`: the same number of every class, as far as there are."""
    if len(labels) <= at_most:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    shown = labels[order] > 0.5
    # How many images of its rarest class come before an image; images without a class come last.
    turn = np.where(shown, shown.cumsum(0), len(labels) + 1).min(1)
    return np.sort(order[np.argsort(turn, kind="stable")[:at_most]])


def group_folds(groups: Sequence[str], folds: int, seed: int) -> list[NDArray[np.int64]]:
    """Indices held out by each fold: each index once, each group in one fold, folds of similar size.

    There are at most as many folds as groups.
    """
    names, inverse, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]
    load = np.zeros(min(folds, len(names)))
    fold_of = np.zeros(len(names), int)
    for name in order:
        fold_of[name] = int(load.argmin())
        load[fold_of[name]] += counts[name]
    return [np.flatnonzero(fold_of[inverse] == fold) for fold in range(len(load))]
