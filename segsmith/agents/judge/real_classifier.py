"""The second judge of `augment`: a classifier that learnt from the real images looks at every generated one.

CLIP knows what a class is called, the real images show what it looks like in this dataset. IAA filters with a model
it does not name; ours is the relabelling ViT's patch head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from segsmith.files import read_image
from segsmith.memory.ledger import LabelRow, Ledger
from segsmith.memory.real_images import RealSet
from segsmith.memory.run_folder import RunFolder
from segsmith.protocols import PatchClassifier
from segsmith.types import Image

CHUNK = 64
MIN_IMAGES = 3
"""Real images with a class, and without it, under which nobody can say how well the class was learnt."""
MAX_TEACHERS = 1_500
"""Real images that the classifier learns from at most (ours); those of rare classes are kept."""


class RealOpinion:
    """Gives its probabilities for the classes it proved to know on real images it had not seen; else it abstains."""

    def __init__(
        self,
        classifier: Callable[[], PatchClassifier],
        ledger: Ledger,
        run: RunFolder,
        real: RealSet,
        min_skill: float,
    ) -> None:
        self._classifier = classifier
        self._ledger = ledger
        self._run = run
        self._real = real
        self._min_skill = min_skill

    def give(self) -> None:
        """Look at every drawn picture it has not seen; the ledger keeps what it finds, as labels of source "real"."""
        seen = self._ledger.labels("real")
        todo = [row for row in self._ledger.images() if row.id not in seen]
        for start in range(0, len(todo), CHUNK):
            rows = todo[start : start + CHUNK]
            shares = self._score([read_image(self._run.image(row.id)) for row in rows])
            named = [{c: float(p) for c, p in zip(self._real.classes, line, strict=True) if c in self.skill}
                     for line in shares]  # fmt: skip
            self._ledger.add_labels(
                LabelRow(row.id, "real", tuple(c for c, p in scores.items() if p >= 0.5), scores)
                for row, scores in zip(rows, named, strict=True)
            )

    @cached_property
    def skill(self) -> dict[str, float]:
        """Class -> area under the ROC curve on held-out real images, of the classes it may judge."""
        images, labels, groups = self._lesson
        shares = self._classifier().out_of_fold(images, labels, groups).probabilities
        areas = {
            name: roc_area(shares[:, i], labels[:, i] > 0.5) for i, name in enumerate(self._real.classes)
        }
        skill = {name: area for name, area in areas.items() if area is not None and area >= self._min_skill}
        self._ledger.log("real_judge", images=len(images), skill={n: a for n, a in areas.items() if a})
        return skill

    @cached_property
    def _score(self) -> Callable[[Sequence[Image]], NDArray[np.float32]]:
        images, labels, _ = self._lesson
        return self._classifier().taught(images, labels)

    @cached_property
    def _lesson(self) -> tuple[list[Image], NDArray[np.float32], list[str]]:
        teachers = self._real.teachers(MAX_TEACHERS)
        images = [self._real.read(item) for item in teachers]
        return images, self._real.targets(teachers), [item.id for item in teachers]


def roc_area(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> float | None:
    """Chance that a positive outscores a negative, ties counting half; None with under `MIN_IMAGES` of either."""
    above, below = scores[positive], scores[~positive]
    if min(len(above), len(below)) < MIN_IMAGES:
        return None
    difference = above[:, None] - below[None, :]
    return float(np.mean(difference > 0) + np.mean(difference == 0) / 2)
