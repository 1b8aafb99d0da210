"""The second judge of `augment`: a classifier trained on the real images scores every generated one.

CLIP knows the name of a class; the real images show what the class looks like in this dataset. IAA filters with a
model that the paper does not name; ours is the relabelling ViT's patch head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from segsmith.files import StoredImages
from segsmith.memory.ledger import LabelRow, Ledger
from segsmith.memory.real_images import RealSet
from segsmith.memory.run_folder import RunFolder
from segsmith.protocols import PatchClassifier
from segsmith.types import Image

CHUNK = 64
MIN_IMAGES = 3
"""Fewest real images with and without a class from which its skill is measured."""
MAX_TEACHERS = 1_500
"""Most real images that the classifier is trained on (ours); those of rare classes are kept."""


class RealClassifier:
    """Scores generated images for the classes that it recognises on held-out real images; it ignores the others.

    `classifier` opens the model. `min_skill` is the area under the ROC curve that a class must reach.
    """

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

    def classify(self) -> None:
        """Score every drawn image that has no score yet; the ledger stores the result as labels of source "real"."""
        todo = self._ledger.unlabelled("real")
        for start in range(0, len(todo), CHUNK):
            rows = todo[start : start + CHUNK]
            shares = self._score([self._run.read_image(row) for row in rows])
            named = [{c: float(p) for c, p in zip(self._real.classes, line, strict=True) if c in self.skill}
                     for line in shares]  # fmt: skip
            self._ledger.add_labels(
                LabelRow(row.id, "real", tuple(c for c, p in scores.items() if p >= 0.5), scores)
                for row, scores in zip(rows, named, strict=True)
            )

    @cached_property
    def skill(self) -> dict[str, float]:
        """Class -> area under the ROC curve on held-out real images, of the classes it may judge."""
        images, labels, groups = self._training_data
        # The maps of the patches are not needed here.
        shares = self._classifier().out_of_fold(images, labels, groups, lambda *_: None).probabilities
        areas = {
            name: roc_area(shares[:, i], labels[:, i] > 0.5) for i, name in enumerate(self._real.classes)
        }
        skill = {name: area for name, area in areas.items() if area is not None and area >= self._min_skill}
        self._ledger.log("real_judge", images=len(images), skill={n: a for n, a in areas.items() if a})
        return skill

    @cached_property
    def _score(self) -> Callable[[Sequence[Image]], NDArray[np.float32]]:
        images, labels, _ = self._training_data
        return self._classifier().taught(images, labels)

    @cached_property
    def _training_data(self) -> tuple[Sequence[Image], NDArray[np.float32], list[str]]:
        teachers = self._real.teachers(MAX_TEACHERS)
        images = StoredImages([partial(self._real.read, item) for item in teachers])
        return images, self._real.targets(teachers), [item.id for item in teachers]


def roc_area(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve, in [0, 1]; ties count half. None with fewer than `MIN_IMAGES` of either kind."""
    above, below = scores[positive], scores[~positive]
    if min(len(above), len(below)) < MIN_IMAGES:
        return None
    difference = above[:, None] - below[None, :]
    return float(np.mean(difference > 0) + np.mean(difference == 0) / 2)
