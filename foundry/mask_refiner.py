"""Train the network that corrects the mini SAM's masks, and measure it on sprites that are not in its training.

python -m foundry.mask_refiner --scenes 9000 --minutes 60 --seed 0 --threads 1 --out segsmith/checkpoints/mini_sam

The mini SAM is frozen: it segments scenes of the simulator's world first, and the network learns to correct what it
found.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from skimage.morphology import skeletonize
from torch import Tensor

from foundry.mini_sam import HELD_OUT, evaluate
from foundry.mini_sam_data import MIN_OBJECT_PX, draw_points, few_objects, jitter, training_nouns
from segsmith.files import write_atomic
from segsmith.tools.vision.mask_refiner import MaskRefiner, RefinerNetwork, RefinerSizes, crop_of
from segsmith.tools.vision.sam import REFINER, SamSegmenter, config_json, sizes_of
from segsmith.tools.vision.sam_views import ViewAveraging
from segsmith.world.scene import compose, random_spec
from segsmith.world.sprites import STYLES

log = logging.getLogger("mask_refiner")

WEIGHTS = "model.safetensors"
WINDOW = 64
"""Side in pixels of what is shown in training; the network takes any size."""
BATCH = 16
LEARNING_RATE = 2e-3
SCENE_SIZES = (64, 96, 192, 256)
"""Sides of a fifth of the scenes; the others have 128 pixels."""
SINGLE_VIEW = 0.2
"""Share of the scenes that the mini SAM sees once instead of in four views."""


@dataclass(frozen=True)
class Sample:
    """One object: what the mini SAM found from points on it, and the truth.

    `image` is (h, w, 3), `logits` (M, h, w), `points` and `truth` (h, w); see `Crop`.
    """

    image: NDArray[np.uint8]
    logits: NDArray[np.float16]
    points: NDArray[np.bool_]
    truth: NDArray[np.bool_]
    best: int
    """The candidate with the highest predicted IoU."""


def samples(seed: int, scenes: int) -> list[Sample]:
    """The objects of `scenes` random scenes of training nouns."""
    torch.set_num_threads(1)
    rng, nouns = np.random.default_rng([seed, 9]), training_nouns()
    plain = SamSegmenter.load("mini", "cpu")
    views = ViewAveraging(plain)
    found = []
    for index in range(scenes):
        spec = few_objects(nouns, rng) if rng.random() < 0.5 else random_spec(nouns, rng, max_objects=3)
        size = 128 if rng.random() < 0.8 else int(rng.choice(SCENE_SIZES))
        scene = compose(spec, int(rng.integers(1 << 31)), style=STYLES[index % len(STYLES)], size=size)
        least = MIN_OBJECT_PX * (size / 128) ** 2
        truths = [scene.instances == o.instance_id for o in scene.objects if o.visible_px >= least]
        if not truths:
            continue
        sets = [draw_points(truth, skeletonize(truth), 5, rng) for truth in truths]
        sam = plain if rng.random() < SINGLE_VIEW else views
        for truth, points, one in zip(truths, sets, sam.logits_many([scene.image], [sets])[0], strict=True):
            crop = crop_of(scene.image, one, points)
            area = torch.from_numpy(truth[crop.rows, crop.columns])[None, None].float()
            fitting = F.interpolate(area, crop.points.shape, mode="area")[0, 0].numpy() > 0.5
            if fitting.any():
                found.append(
                    Sample(
                        crop.image.astype(np.uint8), crop.logits.astype(np.float16), crop.points > 0,
                        fitting, int(one.scores.argmax()),
                    )
                )  # fmt: skip
    return found


def draw_batch(pool: Sequence[Sample], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B, C, `WINDOW`, `WINDOW`) images, logits, points and truth of random objects, with changed colours.

    One sample in four shows another candidate than the one with the highest predicted IoU.
    """
    rows: list[tuple[NDArray[np.float32], ...]] = []
    while len(rows) < BATCH:
        sample = pool[int(rng.integers(len(pool)))]
        candidate = sample.best if rng.random() < 0.75 else int(rng.integers(len(sample.logits)))
        part, pads = _window(sample.truth, rng)
        cut = partial(_cut, part=part, pads=pads, mirrored=rng.random() < 0.5)
        rows.append(
            (
                jitter(cut(sample.image).astype(np.uint8), rng).transpose(2, 0, 1),
                cut(sample.logits[candidate])[None], cut(sample.points)[None], cut(sample.truth)[None],
            )
        )  # fmt: skip
    images, logits, points, truth = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
    return images, logits, points, truth


def _cut(
    values: NDArray[Any], part: tuple[slice, slice], pads: list[tuple[int, int]], mirrored: bool
) -> NDArray[np.float32]:
    """A part of an (h, w) or (h, w, 3) array, with its edges repeated where it is too small, as float32."""
    padded = np.pad(values[part], [*pads, (0, 0)][: values.ndim], mode="edge")
    return np.ascontiguousarray(padded[:, ::-1] if mirrored else padded).astype(np.float32)


def _window(
    truth: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[tuple[slice, slice], list[tuple[int, int]]]:
    """A part of at most `WINDOW` a side around a pixel of the object, and what it lacks on each side."""
    ys, xs = np.nonzero(truth)
    pixel = int(rng.integers(len(ys)))
    parts, pads = [], []
    for at, length in ((ys[pixel], truth.shape[0]), (xs[pixel], truth.shape[1])):
        start = int(np.clip(at - rng.integers(WINDOW), 0, max(0, length - WINDOW)))
        part = slice(start, min(length, start + WINDOW))
        missing = WINDOW - (part.stop - part.start)
        before = int(rng.integers(missing + 1))
        parts.append(part)
        pads.append((before, missing - before))
    return (parts[0], parts[1]), pads


def loss_of(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy, with most of its weight near the border, plus one less the soft IoU."""
    weight = 0.3 + F.max_pool2d(truth, 5, 1, 2) + F.max_pool2d(-truth, 5, 1, 2)
    entropy = (F.softplus(logits) - logits * truth) * weight
    entropy = entropy.sum((1, 2, 3)) / weight.sum((1, 2, 3))
    probability = logits.sigmoid()
    both = (probability * truth).sum((1, 2, 3))
    either = (probability + truth - probability * truth).sum((1, 2, 3))
    return (entropy + 1 - (both + 1) / (either + 1)).mean()


def train(
    pool: Sequence[Sample], out: Path, minutes: float, seed: int, rate: float, init: Path | None
) -> RefinerNetwork:
    """Train for `minutes`, exporting the averaged weights to `out` every few minutes; returns them."""
    torch.manual_seed(seed)
    rng, sizes = np.random.default_rng(seed), RefinerSizes()
    network = RefinerNetwork(sizes).train()
    if init is not None:
        found = SamSegmenter.load(str(init), "cpu").refiner
        if found is None:
            raise SystemExit(f"{init} has no refiner; leave out --init.")
        network.load_state_dict(found.state_dict())
    average = copy.deepcopy(network).eval().requires_grad_(False)
    log.info("%d objects, %d parameters", len(pool), sum(p.numel() for p in network.parameters()))
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
    began = last = time.monotonic()
    step, losses = 0, []
    while (spent := time.monotonic() - began) < minutes * 60:
        warm_up = min(1, (step + 1) / 100)
        decayed = 0.01 + 0.99 * (1 + math.cos(math.pi * spent / (minutes * 60))) / 2
        for group in optimiser.param_groups:
            group["lr"] = rate * warm_up * decayed
        images, logits, points, truth = draw_batch(pool, rng)
        loss = loss_of(logits + network(images, logits, points), truth)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step += 1
        decay = min(0.998, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
        losses.append(loss.item())
        if time.monotonic() - last > 180:
            last = time.monotonic()
            export(average, sizes, out)
            log.info("%.1f min, %.0f objects/s, loss %.4f, unseen nouns %s",
                     spent / 60, step * BATCH / spent, np.mean(losses[-200:]), measured(average, 60, 1))  # fmt: skip
    export(average, sizes, out)
    return average


def measured(network: RefinerNetwork, scenes: int, seed: int) -> dict[str, tuple[float, float]]:
    """Style -> IoU on sprites of unseen nouns from five points in four views, without the network and with it."""
    sam = ViewAveraging(SamSegmenter.load("mini", "cpu"))
    refined = MaskRefiner(sam, copy.deepcopy(network))
    return {
        style: (
            round(evaluate(sam, scenes, seed, style, HELD_OUT)["iou"], 4),
            round(evaluate(refined, scenes, seed, style, HELD_OUT)["iou"], 4),
        )
        for style in STYLES
    }


def export(network: RefinerNetwork, sizes: RefinerSizes, out: Path) -> None:
    """Put the network into the SAM of the folder `out`, in place of the one that it has; weights are float16."""
    config = replace(sizes_of((out / "config.json").read_text("utf-8")), refiner=sizes)
    state = {
        name: tensor for name, tensor in load_file(out / WEIGHTS).items() if not name.startswith(REFINER)
    }
    for name, tensor in network.state_dict().items():
        state[REFINER + name] = tensor.detach().half().contiguous()
    write_atomic(out / WEIGHTS, save(state))
    write_atomic(out / "config.json", config_json(config).encode())


def drawn(seed: int, scenes: int, processes: int) -> Iterator[Sample]:
    """`samples` of `scenes` scenes by several processes."""
    shares = [scenes // 16 + (i < scenes % 16) for i in range(16)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for part in pool.starmap(samples, [(seed * 1000 + i, share) for i, share in enumerate(shares)], 1):
            yield from part


def main() -> None:
    """Train, export, and log the figures of the model card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=9000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="highest learning rate")
    parser.add_argument(
        "--init", type=Path, help="folder of a SAM whose refiner of the same sizes to start from"
    )
    parser.add_argument("--out", type=Path, default=Path("segsmith/checkpoints/mini_sam"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(given.threads)
    pool = list(drawn(given.seed, given.scenes, given.threads))
    log.info("%d scenes segmented", given.scenes)
    network = train(pool, given.out, given.minutes, given.seed, given.rate, given.init)
    log.info("unseen nouns, without and with the network: %s", measured(network, 200, 2))


if __name__ == "__main__":
    main()
