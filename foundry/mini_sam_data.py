"""Training data of the mini SAM: scenes, point prompts and true masks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.morphology import skeletonize
from torch import Tensor

from segsmith.world.language import SceneSpec
from segsmith.world.nouns import NOUNS, VOC_CLASSES
from segsmith.world.scene import compose, random_spec
from segsmith.world.sprites import STYLES

MIN_OBJECT_PX = 40


def held_out_nouns() -> tuple[str, ...]:
    """The 20 classes of VOC and 80 other nouns, whose sprites are in no training scene."""
    others = [name for name in NOUNS if name not in VOC_CLASSES]
    others.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    return (*VOC_CLASSES, *sorted(others[:80]))


def training_nouns() -> tuple[str, ...]:
    """Every noun that is not held out."""
    held_out = set(held_out_nouns())
    return tuple(name for name in NOUNS if name not in held_out)


def few_objects(nouns: Sequence[str], rng: np.random.Generator) -> SceneSpec:
    """A random spec with 1 to 3 objects in total."""
    while True:
        spec = random_spec(nouns, rng, max_objects=3)
        if sum(item.count for item in spec.objects) <= 3:
            return spec


class Pool:
    """Scenes in memory: images (N, H, W, 3), instance ids (N, H, W), and the ids on the skeletons only."""

    def __init__(self, nouns: Sequence[str], count: int, seed: int, size: int = 128) -> None:
        self.nouns, self.size, self.drawn = nouns, size, 0
        self.rng = np.random.default_rng(seed)
        self.images = np.zeros((count, size, size, 3), np.uint8)
        self.instances = np.zeros((count, size, size), np.uint8)
        self.skeletons = np.zeros((count, size, size), np.uint8)
        self.refresh(count)

    def refresh(self, count: int) -> None:
        """Replace the oldest `count` scenes."""
        for _ in range(count):
            spec = random_spec(self.nouns, self.rng, max_objects=3)
            style = STYLES[self.drawn % len(STYLES)]
            scene = compose(spec, int(self.rng.integers(1 << 31)), style=style, size=self.size)
            slot = self.drawn % len(self.images)
            self.images[slot], self.instances[slot] = scene.image, scene.instances
            self.skeletons[slot] = 0
            for placed in scene.objects:
                mask = scene.instances == placed.instance_id
                if placed.visible_px < MIN_OBJECT_PX:
                    self.instances[slot][mask] = 0
                else:
                    self.skeletons[slot][skeletonize(mask)] = placed.instance_id
            self.drawn += 1


def draw_points(
    mask: NDArray[np.bool_], skeleton: NDArray[np.bool_], count: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(count, 2) float32 points (x, y), mostly on the skeleton, as in SeSAM's step 2; others anywhere in the mask.

    A classifier's seeds are imperfect, so 15 % of the sets of three or more points have one point anywhere in the
    image, and 10 % of the sets are inexact by a pixel or two.
    """
    source = skeleton if rng.random() < 0.75 else mask
    ys, xs = np.nonzero(source)
    chosen = rng.choice(len(xs), count, replace=len(xs) < count)
    points = np.stack([xs[chosen], ys[chosen]], axis=1).astype(np.float32)
    if rng.random() < 0.1:
        points += rng.normal(0, 1.2, points.shape).astype(np.float32)
    if count >= 3 and rng.random() < 0.15:
        points[0] = rng.uniform(0, mask.shape[0], 2)
        rng.shuffle(points)
    return points.clip(0, mask.shape[0] - 1).round()


@dataclass(frozen=True)
class Batch:
    """B images and P prompts for them.

    `images` is (B, 3, H, W) float in [0, 255]; `owners` (P,) is each prompt's image; `points` is (P, N, 2) as (x, y),
    with the same N for all prompts because inference has no padding tokens either; `truth` is (P, 1, H, W) float, 0
    or 1; `layout` is (B, 4, H / 2, W / 2) float: object or not, border or not, and the offset (dx, dy) to the
    object's centre in units of 32 pixels.
    """

    images: Tensor
    owners: Tensor
    points: Tensor
    truth: Tensor
    layout: Tensor


def layout_of(instances: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The (4, H / 2, W / 2) `Batch.layout` of an (H, W) instance map."""
    ids = instances[::2, ::2]
    out = np.zeros((4, *ids.shape), np.float32)
    out[0] = ids > 0
    out[1, 1:] = ids[1:] != ids[:-1]
    out[1, :, 1:] = np.maximum(out[1, :, 1:], ids[:, 1:] != ids[:, :-1])
    count = np.maximum(1, np.bincount(ids.ravel(), minlength=256))
    for channel, axis in ((2, 1), (3, 0)):
        place = np.broadcast_to(np.arange(ids.shape[axis]), ids.shape) if axis else np.indices(ids.shape)[0]
        middle = np.bincount(ids.ravel(), weights=place.ravel(), minlength=256) / count
        out[channel] = (middle[ids] - place) / 16 * out[0]
    return out


def draw_batch(pool: Pool, batch: int, prompts: int, rng: np.random.Generator) -> Batch:
    """Random scenes of the pool, flipped and with changed colours, with `prompts` prompts each."""
    count = 5 if rng.random() < 0.4 else int(rng.integers(1, 9))
    images: list[NDArray[np.float32]] = []
    owners, points, truths, layouts = [], [], [], []
    while len(images) < batch:
        slot = int(rng.integers(len(pool.images)))
        flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
        instances, skeletons = pool.instances[slot][:, flip], pool.skeletons[slot][:, flip]
        ids = np.unique(skeletons)[1:]
        if not len(ids):
            continue
        chosen = rng.permutation(np.resize(rng.permutation(ids), prompts))
        for instance in chosen:
            mask = instances == instance
            points.append(draw_points(mask, skeletons == instance, count, rng))
            truths.append(mask)
            owners.append(len(images))
        layouts.append(layout_of(instances))
        images.append(jitter(pool.images[slot][:, flip], rng))
    return Batch(
        images=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
        owners=torch.tensor(owners),
        points=torch.from_numpy(np.stack(points)),
        truth=torch.from_numpy(np.stack(truths))[:, None].float(),
        layout=torch.from_numpy(np.stack(layouts)),
    )


def jitter(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """The image as float32 in [0, 255] with random colours, contrast and noise."""
    out = image.astype(np.float32)
    if rng.random() < 0.3:
        out = out[..., rng.permutation(3)]
    if rng.random() < 0.6:
        mean = out.mean()
        out = (out - mean) * rng.uniform(0.7, 1.25) + mean * rng.uniform(0.75, 1.25, 3).astype(np.float32)
    if rng.random() < 0.2:
        out = out + rng.normal(0, rng.uniform(1, 6), out.shape).astype(np.float32)
    return out.clip(0, 255).astype(np.float32)
