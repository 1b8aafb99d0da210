"""Stand-ins for the witnesses in the simulator: they know the truth and err at stated rates.

They make it possible to measure what combining witnesses gains before a real detector or VLM can be run. They are
kinder than real models: their errors are independent of one another, of the class, and of what confuses CLIP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from segsmith.ids import seed_of
from segsmith.tools.images.simulator import Drawing
from segsmith.types import Image, Sighting, Testimony
from segsmith.world.nouns import find_noun


@dataclass(frozen=True)
class WitnessErrors:
    """How often a stand-in errs; all in [0, 1]."""

    missed: float
    """Share of the classes that are there and not reported."""
    invented: float
    """Share of the classes that are absent and reported."""
    miscounted: float = 0.0
    """Share of the reported classes whose count is one too high or too low."""
    misplaced: float = 0.0
    """Standard deviation of the sides of a box, as a fraction of the object's width and height."""


DETECTOR_ERRORS = WitnessErrors(missed=0.15, invented=0.02, misplaced=0.05)
"""The score of an invented object is lower than that of most true ones (see `SimulatedDetector`); values ours."""
VLM_ERRORS = WitnessErrors(missed=0.15, invented=0.03, miscounted=0.1)
"""In the range that VLMs of 7 billion parameters report for yes/no questions about objects (POPE); values ours."""


ATTENTION_ERRORS = WitnessErrors(missed=0.25, invented=0.1)
"""Worse than a detector's: nothing taught the image model to tell what is there (ours)."""
ATTENTION_GRID = 16
"""Cells along the side of a map, as in the layers of Stable Diffusion that follow objects best."""
LEAK = 0.3
"""Attention of a class to the objects of other classes (ours)."""
ATTENTION_NOISE = 0.2
"""Largest noise of a cell (ours)."""


class _SimulatedWitness(ABC):
    """A `Witness` that knows what was drawn; a subclass says how it errs."""

    name: str
    usual_errors: WitnessErrors

    def __init__(
        self,
        classes: Sequence[str],
        truth: Callable[[str], Drawing],
        seed: int,
        errors: WitnessErrors | None = None,
    ) -> None:
        """`truth` gives what was drawn, by the image's id; without `errors` they are the `usual_errors`."""
        self._classes = tuple(classes)
        self._truth = truth
        self._seed = seed
        self._errors = errors or self.usual_errors

    def testify(self, images: Sequence[Image], ids: Sequence[str]) -> list[Testimony | None]:
        """See `Witness.testify`."""
        return [self._testify(image_id) for image_id in ids]

    @abstractmethod
    def _testify(self, image_id: str) -> Testimony: ...


class SimulatedDetector(_SimulatedWitness):
    """A `Witness` like an open-vocabulary detector: a box and a score for each object.

    Scores of true objects are spread evenly over [0.25, 0.95], those of invented ones over [0.1, 0.6].
    """

    name = "simulated-detector/1"
    usual_errors = DETECTOR_ERRORS

    def _testify(self, image_id: str) -> Testimony:
        rng = np.random.default_rng([seed_of(self._seed, image_id), 1])
        scene, errors = self._truth(image_id).scene, self._errors
        height, width = scene.instances.shape
        seen = []
        for name in self._classes:
            noun = find_noun(name)
            objects = [o for o in scene.objects if noun is not None and o.noun == noun.name and o.visible_px]
            missed, invented = rng.random() < errors.missed, rng.random() < errors.invented
            if objects and not missed:
                for item in objects:
                    box = np.array(item.bbox_xyxy) / [width, height, width, height]
                    sides = np.tile(box[2:] - box[:2], 2)
                    box = (box + rng.normal(0, errors.misplaced, 4) * sides).clip(0, 1)
                    seen.append(Sighting(name, float(rng.uniform(0.25, 0.95)), _box(box)))
            elif not objects and invented:
                corner, side = rng.uniform(0, 0.6, 2), rng.uniform(0.2, 0.4, 2)
                score = float(rng.uniform(0.1, 0.6))
                seen.append(Sighting(name, score, _box(np.concatenate([corner, corner + side]))))
        best = {
            name: max((s.score for s in seen if s.class_name == name), default=0.0) for name in self._classes
        }
        return Testimony(best, sightings=tuple(seen))


class SimulatedVlm(_SimulatedWitness):
    """A `Witness` like a VLM that answers yes or no for each class, and counts."""

    name = "simulated-vlm/1"
    usual_errors = VLM_ERRORS

    def _testify(self, image_id: str) -> Testimony:
        rng = np.random.default_rng([seed_of(self._seed, image_id), 2])
        scene, errors = self._truth(image_id).scene, self._errors
        counts = {}
        for name in self._classes:
            noun = find_noun(name)
            n = sum(noun is not None and o.noun == noun.name and o.visible_px > 0 for o in scene.objects)
            missed, invented, miscounted, more = rng.random(4) < [
                errors.missed, errors.invented, errors.miscounted, 0.5,
            ]  # fmt: skip
            if n and missed:
                n = 0
            elif not n and invented:
                n = 1
            elif n and miscounted:
                n = n + 1 if more else max(1, n - 1)
            counts[name] = int(n)
        return Testimony({name: float(n > 0) for name, n in counts.items()}, counts)


class SimulatedAttention(_SimulatedWitness):
    """A `Witness` like the attention of an image model: a coarse, blurred and noisy map for each class.

    A map also covers other objects (`LEAK`), as attention does. Scores of classes that are seen are spread evenly
    over [0.2, 0.9], those of invented ones over [0.1, 0.5], and all others over [0, 0.1). An invented class is seen
    on other objects, or anywhere.
    """

    name = "simulated-attention/1"
    usual_errors = ATTENTION_ERRORS

    def _testify(self, image_id: str) -> Testimony:
        rng = np.random.default_rng([seed_of(self._seed, image_id), 3])
        scene, errors = self._truth(image_id).scene, self._errors
        everything = _cells(scene.instances > 0)
        scores, maps = {}, {}
        for name in self._classes:
            noun = find_noun(name)
            drawn = [
                o.instance_id
                for o in scene.objects
                if noun is not None and o.noun == noun.name and o.visible_px
            ]
            missed, invented = rng.random() < errors.missed, rng.random() < errors.invented
            low, high = (0.2, 0.9) if drawn else (0.1, 0.5)
            seen = not missed if drawn else invented
            scores[name] = float(rng.uniform(low, high) if seen else rng.uniform(0, 0.1))
            noise = rng.random(everything.shape)
            if seen:
                there = _cells(np.isin(scene.instances, drawn)) if drawn else everything
                blurred = gaussian_filter(np.maximum(there, LEAK * everything), 1.0) + ATTENTION_NOISE * noise
                maps[name] = np.round(255 * blurred / blurred.max()).astype(np.uint8)
        return Testimony(scores, maps=maps)


STAND_INS: Mapping[str, type[_SimulatedWitness]] = {
    "detector": SimulatedDetector,
    "vlm": SimulatedVlm,
    "attention": SimulatedAttention,
}
"""Kind of witness -> its stand-in."""


def _cells(mask: np.ndarray) -> np.ndarray:
    """(ATTENTION_GRID, ATTENTION_GRID) the share of each cell that a (H, W) mask covers."""
    height, width = (side // ATTENTION_GRID * ATTENTION_GRID for side in mask.shape)
    blocks = mask[:height, :width].reshape(
        ATTENTION_GRID, height // ATTENTION_GRID, ATTENTION_GRID, width // ATTENTION_GRID
    )
    return np.asarray(blocks.mean(axis=(1, 3)))


def _box(values: np.ndarray) -> tuple[float, float, float, float]:
    """Two corners in any order as (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = map(float, values)
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
