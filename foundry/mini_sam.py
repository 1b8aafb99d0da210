"""Train the mini SAM on scenes of the simulator's world, and measure it on sprites that are not in its training.

python -m foundry.mini_sam --minutes 40 --seed 0 --threads 1 --out segsmith/checkpoints/mini_sam
"""

from __future__ import annotations

import argparse
import copy
import itertools
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from segment_anything.modeling import Sam
from skimage.morphology import skeletonize

from foundry.mini_sam_data import (
    MIN_OBJECT_PX,
    Pool,
    draw_batch,
    few_objects,
    held_out_nouns,
    training_nouns,
)
from foundry.mini_sam_loss import LayoutHead, decode_pairs, fuse_attention, loss_of
from foundry.muon import Muon
from segsmith.files import write_atomic
from segsmith.protocols import PointSegmenter
from segsmith.tools.vision.sam import REFINER, SamSegmenter, SamSizes, build_sam, config_json
from segsmith.world.scene import compose
from segsmith.world.sprites import STYLES, Style

log = logging.getLogger("mini_sam")

SIZES = SamSizes(
    encoder_width=96, encoder_depth=3, encoder_heads=2, window_size=8, global_blocks=(1, 2),
    stem_widths=(24, 48), decoder_heads=2,
)  # fmt: skip
HELD_OUT = held_out_nouns()
"""Nouns that are in no training scene."""
BATCH = 8
PROMPTS = 4
POOL = 6000
LEARNING_RATE = 2e-3
NOT_MATRICES = ("pos_embed", "_token", "embed.weight", "point_embeddings", "mask_downscaling")
"""Parameters with two dimensions that AdamW trains: embeddings, and those that get no gradient."""
EXPORT_EVERY_S = 480
BINS = (0, 500, 1000, 2000, 1 << 30)
"""Edges of the ranges of object sizes in pixels for which `evaluate` reports separate figures."""


def train(out: Path, minutes: float, seed: int, pool_size: int, rate: float, init: Path | None) -> Sam:
    """Train for `minutes`, exporting the averaged weights to `out` every few minutes; returns the averaged model."""
    fuse_attention()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    began = time.monotonic()
    pool = Pool(training_nouns(), pool_size, seed)
    log.info("pool of %d scenes in %.0f s", pool_size, time.monotonic() - began)
    sam = build_sam(SIZES).train()
    torch.nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
    if init is not None:
        state = load_file(init / "model.safetensors")
        sam.load_state_dict({k: v.float() for k, v in state.items() if not k.startswith(REFINER)})
    log.info("%d parameters", sum(p.numel() for p in sam.parameters()))
    average = copy.deepcopy(sam).eval().requires_grad_(False)
    layout = LayoutHead(SIZES.decoder_width)
    named = [*sam.named_parameters(), *layout.named_parameters()]
    matrices = [p for n, p in named if p.ndim > 1 and not any(word in n for word in NOT_MATRICES)]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    optimisers: tuple[torch.optim.Optimizer, ...] = (
        Muon(matrices, lr=rate, weight_decay=0.05),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, foreach=True),
    )
    began = last_export = last_log = time.monotonic()
    budget, step, losses = minutes * 60, 0, []
    while (spent := time.monotonic() - began) < budget:
        now_rate = (
            rate * min(1, (step + 1) / 150) * (0.01 + 0.99 * (1 + math.cos(math.pi * spent / budget)) / 2)
        )
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = now_rate
            optimiser.zero_grad()
        batch = draw_batch(pool, BATCH, PROMPTS, rng)
        embeddings = sam.image_encoder(sam.preprocess(batch.images))
        loss = loss_of(*decode_pairs(sam, embeddings, batch.owners, batch.points), batch.truth)
        side = layout(embeddings, batch.layout)
        (loss + 0.5 * min(1, step / 300) * side).backward()
        torch.nn.utils.clip_grad_norm_([*sam.parameters(), *layout.parameters()], 1.0)
        for optimiser in optimisers:
            optimiser.step()
        step += 1
        decay = min(0.998, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(sam.parameters()), 1 - decay)
        losses.append((loss.item(), side.item()))
        if step % 40 == 0:
            pool.refresh(32)
        now = time.monotonic()
        if now - last_log > 180:
            speed = step * BATCH / spent
            loss_now = np.mean(losses[-50:], axis=0).round(3).tolist()
            log.info("%.1f min, step %d, %.1f img/s, rate %.1e", spent / 60, step, speed, now_rate)
            log.info("loss and layout loss %s, unseen nouns %s", loss_now, _quick_look(average))
            last_log = time.monotonic()
        if now - last_export > EXPORT_EVERY_S:
            export(average, out)
            last_export = now
    export(average, out)
    return average


def _quick_look(sam: Sam) -> dict[str, tuple[float, float]]:
    """Per style, on a few scenes of unseen nouns: IoU from five points, and IoU of the best candidate."""
    segmenter = SamSegmenter(copy.deepcopy(sam), "average")
    results = {style: evaluate(segmenter, 24, 1, style, HELD_OUT) for style in STYLES}
    return {style: (round(r["iou_5"], 3), round(r["oracle_5"], 3)) for style, r in results.items()}


def export(sam: Sam, out: Path) -> None:
    """Write config.json and model.safetensors (float16) of a model of `SIZES`, each atomically."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "config.json", config_json(SIZES).encode())
    state = {name: tensor.detach().half().contiguous() for name, tensor in sam.state_dict().items()}
    write_atomic(out / "model.safetensors", save(state))


def evaluate(
    segmenter: PointSegmenter,
    n_scenes: int,
    seed: int,
    style: Style,
    nouns: Sequence[str],
    points: Sequence[int] = (5,),
    astray: int = 0,
) -> dict[str, float]:
    """Mean IoU over the objects of `n_scenes` scenes from points drawn uniformly on each object's skeleton.

    Scenes have 1 to 3 objects of `nouns`; objects smaller than `MIN_OBJECT_PX` are left out. `astray` of an object's
    points are moved to random pixels outside it. For each N in `points`, ``iou_N`` is the IoU of the candidate with
    the highest predicted IoU, ``oracle_N`` that of the best candidate, and ``score_N`` the mean predicted IoU.
    ``iou`` is ``iou_N`` of the last N, ``iou_LOW_HIGH`` the same for a range of visible pixels, and ``objects`` the
    number of objects.
    """
    rng, specs = np.random.default_rng([seed, 7]), np.random.default_rng([seed, 8])
    rows: dict[int, list[tuple[float, float, float]]] = {n: [] for n in points}
    sizes: list[int] = []
    for index in range(n_scenes):
        spec = few_objects(nouns, specs)
        scene = compose(spec, seed * 100_003 + index, style=style, size=128)
        truths = [scene.instances == o.instance_id for o in scene.objects if o.visible_px >= MIN_OBJECT_PX]
        skeletons = [np.argwhere(skeletonize(truth))[:, ::-1] for truth in truths]
        sizes += [int(truth.sum()) for truth in truths]
        for n in points:
            sets = [s[rng.choice(len(s), n, replace=len(s) < n)].astype(np.float32) for s in skeletons]
            for chosen, truth in zip(sets, truths, strict=True):
                off = np.argwhere(~truth)[:, ::-1]
                chosen[:astray] = off[rng.choice(len(off), astray)]
            for truth, found in zip(truths, segmenter.segment(scene.image, sets), strict=True):
                inter = (found.masks & truth).sum((1, 2))
                ious = inter / np.maximum(1, (found.masks | truth).sum((1, 2)))
                best = int(found.scores.argmax())
                rows[n].append((float(ious[best]), float(ious.max()), float(found.scores[best])))
    result: dict[str, float] = {"objects": float(len(sizes))}
    for n in points:
        iou, oracle, score = np.mean(rows[n], axis=0).tolist()
        result |= {f"iou_{n}": iou, f"oracle_{n}": oracle, f"score_{n}": score}
    last = np.array([row[0] for row in rows[points[-1]]])
    result["iou"] = float(last.mean())
    for low, high in itertools.pairwise(BINS):
        inside = (np.array(sizes) >= low) & (np.array(sizes) < high)
        if inside.any():
            result[f"iou_{low}_{'' if high == BINS[-1] else high}"] = float(last[inside].mean())
    return result


def main() -> None:
    """Train, export, and log the figures of the model card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pool", type=int, default=POOL)
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="highest learning rate")
    parser.add_argument("--init", type=Path, help="folder of a checkpoint of the same sizes to start from")
    parser.add_argument("--out", type=Path, default=Path("segsmith/checkpoints/mini_sam"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    train(arguments.out, arguments.minutes, arguments.seed, arguments.pool, arguments.rate, arguments.init)
    segmenter = SamSegmenter.load(str(arguments.out), "cpu")
    for kind, nouns in (("unseen", HELD_OUT), ("seen", training_nouns())):
        for style in STYLES:
            result = evaluate(segmenter, 200, 2, style, nouns, points=(1, 3, 5))
            log.info("%s nouns, %s style: %s", kind, style, {k: round(v, 3) for k, v in result.items()})


if __name__ == "__main__":
    main()
