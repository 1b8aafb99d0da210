"""Training data of the mini CLIP: images with captions whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from foundry.mini_clip_text import article, empty_prompt, noun_prompt
from segsmith.world.language import (
    COLOURS,
    LIGHTS,
    PLACES,
    STATES,
    WEATHERS,
    ObjectSpec,
    SceneSpec,
    caption,
    usual_light,
    usual_places,
    usual_weather,
)
from segsmith.world.nouns import NOUNS, VOC_CLASSES
from segsmith.world.scene import compose
from segsmith.world.sprites import STYLES

GROUPS = frozenset(
    {"animal", "building", "device", "food", "furniture", "instrument", "person", "plant", "sport", "vehicle"}
)
"""Groups of nouns in the training; they include all classes of VOC."""
NOUN_NAMES = tuple(name for name, noun in NOUNS.items() if noun.group in GROUPS or name in VOC_CLASSES)
PLACE_NAMES, LIGHT_NAMES, WEATHER_NAMES = tuple(PLACES), tuple(LIGHTS), tuple(WEATHERS)
VOC_WEIGHT = 6.0
"""Probability of a VOC class relative to any other noun."""
OBJECT_COUNTS = (0.06, 0.64, 0.24, 0.06)
"""Share of images with 0, 1, 2 and 3 different nouns."""


@dataclass(frozen=True)
class Claims:
    """What a text states or an image shows: indices of nouns and attributes (-1: not stated)."""

    nouns: frozenset[int]
    place: int = -1
    light: int = -1
    weather: int = -1


@dataclass(frozen=True)
class Example:
    """One (size, size, 3) uint8 image, what it shows, and texts that are true of it.

    `box` (x0, y0, x1, y1) encloses all objects, as fractions of the side; without objects it is the whole image.
    """

    image: NDArray[np.uint8]
    box: tuple[float, float, float, float]
    shows: Claims
    texts: tuple[tuple[str, Claims], ...]


def draw_spec(rng: np.random.Generator, probabilities: NDArray[np.float64] | None = None) -> SceneSpec:
    """A random scene; half of the time its place is a likely one, otherwise any place, and the same for the light."""
    p = noun_probabilities() if probabilities is None else probabilities
    chosen = rng.choice(len(p), size=rng.choice(4, p=OBJECT_COUNTS), replace=False, p=p)
    nouns = [NOUN_NAMES[i] for i in chosen]
    usual = usual_places(NOUNS[nouns[0]]) if nouns else PLACE_NAMES
    place = _pick(usual if rng.random() < 0.5 else PLACE_NAMES, rng)
    light = usual_light(place, rng) if rng.random() < 0.5 else _pick(LIGHT_NAMES, rng)
    weather = usual_weather(place, rng)
    return SceneSpec(tuple(_object(noun, rng) for noun in nouns), place, light, weather)


def _object(noun: str, rng: np.random.Generator) -> ObjectSpec:
    count = int(rng.choice((1, 2, 3), p=(0.82, 0.12, 0.06)))
    colour = _pick(tuple(COLOURS), rng) if rng.random() < 0.08 else None
    state = _pick(tuple(STATES), rng) if rng.random() < 0.25 else None
    return ObjectSpec(noun, count, colour, state)


def draw_example(rng: np.random.Generator, probabilities: NDArray[np.float64], size: int = 128) -> Example:
    """An image in either style with three texts: a full caption, one with nouns only, and one in between.

    `shows` does not include objects that are hidden behind others.
    """
    spec = draw_spec(rng, probabilities)
    style = STYLES[int(rng.random() < 0.5)]
    scene = compose(spec, int(rng.integers(2**31)), style=style, size=size)
    seen = frozenset(NOUN_NAMES.index(item.noun) for item in scene.objects if item.visible_px > 0)
    place, light = PLACE_NAMES.index(spec.place), LIGHT_NAMES.index(spec.light)
    weather = WEATHER_NAMES.index(spec.weather)
    shows = Claims(seen, place, light, weather)
    full = (caption(spec, rng), Claims(frozenset(NOUN_NAMES.index(o.noun) for o in spec.objects)
            , place, light, weather))  # fmt: skip
    corners = np.array([item.bbox_xyxy for item in scene.objects] or [(0, 0, size, size)]) / size
    x0, y0 = corners[:, :2].min(0).tolist()
    x1, y1 = corners[:, 2:].max(0).tolist()
    return Example(scene.image, (x0, y0, x1, y1), shows, (full, _bare(spec, rng), _partial(spec, rng)))


def noun_probabilities() -> NDArray[np.float64]:
    """(N,) sampling probabilities of `NOUN_NAMES`."""
    weights = np.array([VOC_WEIGHT if name in VOC_CLASSES else 1.0 for name in NOUN_NAMES])
    return weights / weights.sum()


def _bare(spec: SceneSpec, rng: np.random.Generator) -> tuple[str, Claims]:
    if not spec.objects:
        return empty_prompt(rng), Claims(frozenset())
    said = list(rng.permutation([o.noun for o in spec.objects]))[: 1 + int(rng.random() < 0.5)]
    text = " and ".join([noun_prompt(said[0], rng), *(article(f"a {noun}") for noun in said[1:])])
    return text, Claims(frozenset(NOUN_NAMES.index(noun) for noun in said))


def _partial(spec: SceneSpec, rng: np.random.Generator) -> tuple[str, Claims]:
    place = PLACE_NAMES.index(spec.place)
    if not spec.objects:
        return empty_prompt(rng, (spec.place, *PLACES[spec.place])), Claims(frozenset(), place)
    text, claims = _bare(spec, rng)
    if rng.random() < 0.5:
        return article(f"{text} in a {spec.place}"), Claims(claims.nouns, place)
    light = _pick((spec.light, *LIGHTS[spec.light]), rng)
    return f"{text}, {light}", Claims(claims.nouns, -1, LIGHT_NAMES.index(spec.light))


class Pool:
    """A ring buffer of examples, in which new ones replace the oldest during training."""

    def __init__(self, size: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.probabilities = noun_probabilities()
        self.size = size
        self.examples: list[Example] = []
        self.drawn = 0

    def refresh(self, count: int) -> None:
        """Draw `count` new examples; each replaces the oldest one if the pool is full."""
        for _ in range(count):
            example = draw_example(self.rng, self.probabilities)
            if len(self.examples) < self.size:
                self.examples.append(example)
            else:
                self.examples[self.drawn % self.size] = example
            self.drawn += 1

    def batch(self, count: int) -> list[Example]:
        """`count` different examples."""
        chosen = self.rng.choice(len(self.examples), size=count, replace=False)
        return [self.examples[i] for i in chosen]


def multi_hot(claims: list[Claims]) -> torch.Tensor:
    """(B, N) float32: 1 for the nouns of each claim."""
    hot = torch.zeros(len(claims), len(NOUN_NAMES))
    for row, claim in enumerate(claims):
        hot[row, list(claim.nouns)] = 1
    return hot


def truth(shows: list[Claims], says: list[Claims]) -> torch.Tensor:
    """(B, T) bool: whether text t is true of image b. A text without nouns states that there are no objects."""
    seen, said = multi_hot(shows), multi_hot(says)
    true = (seen @ said.T) >= said.sum(1)
    true &= (said.sum(1) > 0) | (seen.sum(1, keepdim=True) == 0)
    for kind in ("place", "light", "weather"):
        shown = torch.tensor([getattr(c, kind) for c in shows]).unsqueeze(1)
        claimed = torch.tensor([getattr(c, kind) for c in says]).unsqueeze(0)
        true &= (claimed < 0) | (shown == claimed)
    return true


CLOSE_UPS = 0.7
"""Share of the training views that are cropped close to the objects.

Small images of large objects teach a noun at a fraction of the cost of large images.
"""


def augment(examples: Sequence[Example], size: int, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, size, size) float32 views in about [-1, 1]: cropped, mirrored, tinted, sometimes blurred.

    Every view contains all objects, so the texts stay true.
    """
    images = np.stack([example.image for example in examples])
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    count = len(batch)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    box = torch.tensor([example.box for example in examples]) * 2 - 1
    middle, extent = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]) / 2
    needed = extent.max(1).values
    close = uniform(0, 1) < CLOSE_UPS
    zoom = torch.where(close, needed * uniform(1.02, 1.7), uniform(0.9, 1.12)).clamp(0.25, 1.12)
    # Half the frame minus half the box: how far the frame may move and still contain the box.
    slack = (zoom.unsqueeze(1) - extent).clamp_min(0)
    centre = torch.where(close.unsqueeze(1), middle + slack * uniform(-1, 1, 2), uniform(-0.06, 0.06, 2))
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = torch.where(uniform(0, 1) < 0.5, -zoom, zoom)
    theta[:, 1, 1], theta[:, :, 2] = zoom, centre
    grid = functional.affine_grid(theta, [count, 3, size, size], align_corners=False)
    batch = functional.grid_sample(batch, grid, padding_mode="reflection", align_corners=False)
    batch = batch * uniform(0.88, 1.12, 1, 1, 1) + uniform(-0.08, 0.08, 3, 1, 1)
    blurred = torch.nonzero(uniform(0, 1) < 0.12).squeeze(1)
    if len(blurred):
        low = functional.interpolate(batch[blurred], scale_factor=0.4, mode="area")
        batch[blurred] = functional.interpolate(low, size=(size, size), mode="bilinear")
    return batch.clamp_(-1.2, 1.2).contiguous(memory_format=torch.channels_last)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
