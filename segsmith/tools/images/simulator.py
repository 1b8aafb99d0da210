"""An image model with known truth: it draws a prompt as a scene of `segsmith.world`, with faults at set rates.

It replaces a diffusion model offline. `Simulator.truth` gives the exact faults and masks, for evaluation only:
agents are typed against `ImageBackend`, which has no such method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from segsmith.config import FaultRates
from segsmith.datasets.voc_layout import write_voc
from segsmith.errors import SegsmithError
from segsmith.protocols import unwatched
from segsmith.types import SEEDS_PER_PROMPT, SIMULATOR, Drawn, Gate, Image, ImageRequest
from segsmith.world.language import ObjectSpec, SceneSpec, parse
from segsmith.world.nouns import find_noun, suggest
from segsmith.world.scene import Scene, compose, random_spec
from segsmith.world.sprites import BUILD_STYLE, TEST_STYLE, VALIDATION_STYLE, Style

Fault = Literal["wrong", "extra", "missing", "blur", "duplicate"]
BLUR_SIGMA_PX = 1.8


@dataclass(frozen=True)
class Drawing:
    """An image with its ground truth."""

    scene: Scene
    """Exact instance mask and objects; its image is not blurred."""
    image: Image
    faults: tuple[Fault, ...]


class Simulator:
    """An `ImageBackend` that draws sprite scenes. The first noun of a prompt is its target."""

    def __init__(self, faults: FaultRates, pool: Sequence[str], size: int = 128) -> None:
        self.name = f"{SIMULATOR}/1"
        self.usd_per_image = 0.0
        self._faults = faults
        self._pool = tuple(dict.fromkeys(noun.name for c in pool if (noun := find_noun(c))))
        self._size = size

    def draw(
        self,
        requests: Sequence[ImageRequest],
        gate: Gate | None = None,  # unused: a scene is composed at once, so there is no preview
        on_step: Callable[[float], None] = unwatched,
    ) -> Iterator[Drawn]:
        for index, request in enumerate(requests):
            yield Drawn(index, self.truth(request).image)
            on_step((index + 1) / len(requests))

    def close(self) -> None:
        """Do nothing; the simulator holds no resources."""

    def truth(self, request: ImageRequest) -> Drawing:
        """What `draw` returns for this request, with its mask and faults. For evaluation only."""
        spec = parse(request.prompt)
        rng = np.random.default_rng([request.seed, 0])
        # One draw per kind, in a fixed order, so that changing one rate does not change the other faults.
        hit = {kind: bool(rng.random() < getattr(self._faults, kind)) for kind in FaultRates.model_fields}
        if hit["duplicate"] and request.seed % SEEDS_PER_PROMPT:
            before = self.truth(replace(request, seed=request.seed - 1))
            return replace(before, faults=(*before.faults, "duplicate"))
        faults: list[Fault] = []
        if spec.objects and hit["wrong"] and (other := self._other_than(spec, rng)):
            spec = _with_objects(spec, (replace(spec.objects[0], noun=other), *spec.objects[1:]))
            faults.append("wrong")
        elif spec.objects and hit["missing"]:
            spec = _with_objects(spec, spec.objects[1:])
            faults.append("missing")
        if hit["extra"] and (other := self._other_than(spec, rng)):
            spec = _with_objects(spec, (*spec.objects, ObjectSpec(other)))
            faults.append("extra")
        scene = compose(spec, request.seed, style=BUILD_STYLE, size=self._size)
        image = scene.image
        if hit["blur"]:
            image = ndimage.gaussian_filter(image, (BLUR_SIGMA_PX, BLUR_SIGMA_PX, 0))
            faults.append("blur")
        return Drawing(scene, image, tuple(faults))

    def _other_than(self, spec: SceneSpec, rng: np.random.Generator) -> str | None:
        there = {item.noun for item in spec.objects}
        choices = [noun for noun in self._pool if noun not in there]
        return str(rng.choice(choices)) if choices else None


def unseen_scenes(
    classes: Sequence[str], count: int, seed: int, size: int, style: Style = VALIDATION_STYLE
) -> Iterator[Scene]:
    """`count` scenes of one to three of the classes, by default in a sprite style that no build draws."""
    nouns = [noun.name for c in classes if (noun := find_noun(c))]
    for index in range(count):
        rng = np.random.default_rng([seed, index, 1])
        yield compose(random_spec(nouns, rng), seed + index, style=style, size=size)


def write_test_set(folder: Path, classes: Sequence[str], count: int, seed: int, size: int) -> Path:
    """`count` scenes in the test style in VOC layout as split ``test``; an existing folder is left unchanged."""
    if not folder.exists():
        scenes = unseen_scenes(classes, count, seed, size, TEST_STYLE)
        pairs = ((f"real-{i:05d}", scene.image, scene.class_mask(classes)) for i, scene in enumerate(scenes))
        write_voc(folder, classes, {"test": pairs})
    return folder


def check_drawable(classes: Sequence[str]) -> None:
    """Raise `SegsmithError` for a class without a sprite, or for two classes with the same sprite."""
    seen: dict[str, str] = {}
    for name in classes:
        noun = find_noun(name)
        if noun is None:
            near = ", ".join(suggest(name))
            raise SegsmithError(
                f"The simulator has no sprite for class {name!r}.",
                f"{f'Did you mean one of: {near}? ' if near else ''}`segsmith nouns` lists everything it can draw.",
            )
        if noun.name in seen:
            raise SegsmithError(
                f"Classes {seen[noun.name]!r} and {name!r} are the same sprite in the simulator.",
                "Name only one of them.",
            )
        seen[noun.name] = name


def untaught(classes: Sequence[str]) -> list[str]:
    """The classes that the packaged mini CLIP was not trained on, and therefore can hardly judge."""
    taught = set(
        (resources.files("segsmith") / "checkpoints/mini_clip/nouns.txt").read_text("utf-8").splitlines()
    )
    return [name for name in classes if (noun := find_noun(name)) is not None and noun.name not in taught]


def synonyms(class_name: str) -> tuple[str, ...]:
    """Synonyms of a class, starting with itself; only itself if no sprite exists for it."""
    noun = find_noun(class_name)
    return (class_name,) if noun is None else tuple(dict.fromkeys((class_name, noun.name, *noun.synonyms)))


def _with_objects(spec: SceneSpec, objects: tuple[ObjectSpec, ...]) -> SceneSpec:
    return replace(spec, objects=objects)
