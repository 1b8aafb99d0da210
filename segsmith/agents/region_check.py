"""Does a region show the class it was made for? CLIP looks at each cut-out once more.

A label may be wrong though its picture was accepted, and then SAM outlines some other thing under its name. On
the cut-out alone CLIP tells such regions from right ones far better than the relabelling ViT's probability of the
picture (area under the ROC curve 0.94 against 0.56, simulator). No such step is in the papers; it is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from segsmith.agents.judge.agent import directions
from segsmith.memory.ledger import Ledger
from segsmith.protocols import ImageTextEncoder
from segsmith.segmentation.image_ops import crop_object
from segsmith.segmentation.masks import Outlined
from segsmith.types import Image

MIN_REGIONS = 30
"""Fewer say too little about what is usual: then no region is doubted."""
VIEW_PX = 128
"""Side of the views in pixels; the encoder scales them to what it wants."""


class RegionCheck:
    """Gives regions a probability of showing their class.

    Cosines are centred by their median over the regions of a run's first pictures, as the judge centres those of
    whole pictures: what every cut-out has in common says nothing. The centre is kept in the ledger,
    so that a run that goes on after a stop makes the same masks.
    """

    def __init__(
        self,
        encoder: ImageTextEncoder,
        ledger: Ledger,
        classes: Sequence[str],
        synonyms: Callable[[str], tuple[str, ...]],
    ) -> None:
        self._encoder = encoder
        self._ledger = ledger
        self._texts = directions(encoder, classes, synonyms)

    def calibrate(self, pictures: Iterable[tuple[Image, Outlined]]) -> None:
        """Measure what is usual, once a run."""
        if self._ledger.region_centre is not None:
            return
        cosines = [self._cosines(image, found) for image, found in pictures]
        rows = np.concatenate(cosines) if cosines else np.zeros((0, len(self._texts)))
        centre = np.median(rows, axis=0).tolist() if len(rows) >= MIN_REGIONS else []
        self._ledger.region_centre = centre

    def beliefs(self, image: Image, found: Outlined) -> list[float] | None:
        """For each region the probability of its class among all classes and backgrounds; None if uncalibrated."""
        centre = self._ledger.region_centre
        if not centre:
            return None
        values = (self._cosines(image, found) - np.array(centre)) * self._encoder.logit_scale
        shares = np.exp(values - values.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return [float(row[region.class_index]) for row, region in zip(shares, found.regions, strict=True)]

    def _cosines(self, image: Image, found: Outlined) -> NDArray[np.float64]:
        """(R, C + B): mean cosine of each region's two views with every text."""
        if not found.regions:
            return np.zeros((0, len(self._texts)))
        views = [view for region in found.regions for view in crop_object(image, region.mask, VIEW_PX)]
        cosines = self._encoder.embed_images(views) @ self._texts.T
        return np.asarray(cosines.reshape(len(found.regions), 2, -1).mean(axis=1), np.float64)
