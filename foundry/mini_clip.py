"""Train the mini CLIP on the simulator's world and export it as an open_clip folder.

    python -m foundry.mini_clip --minutes 40 --seed 0 --threads 1 --out segsmith/checkpoints/mini_clip

Training stops after `--minutes` of processor time, so a busy machine takes longer but trains the same; with one
thread, a minute is a minute of one core. The same command resumes from the last checkpoint in ``foundry/cache``.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

import segsmith.tools.vision.mini_clip as mini
from foundry.mini_clip_data import NOUN_NAMES, Pool, augment
from foundry.mini_clip_loss import Anchors, Teacher
from foundry.mini_clip_text import all_phrases, write_vocabulary
from segsmith.tools.vision.clip import BPE_FILE

logger = logging.getLogger("foundry.mini_clip")

WEIGHTS = "open_clip_model.safetensors"
RECORD = "training.txt"
EMBED_DIM = 128
CONTEXT_LENGTH = 32
STAGES = (
    (0.40, ((64, False, 0.6), (64, True, 0.4))),
    (0.75, ((96, False, 0.6), (64, True, 0.4))),
    (1.00, ((128, False, 0.4), (96, False, 0.2), (64, True, 0.4))),
)
"""Stages: (share of the time budget at the end, ((resolution in pixels, mosaic?, share of the steps), ...)).

Small images are cheap, so they come first.
"""
EXPORT_EVERY_S = 8 * 60


def model_config(vocab_size: int) -> dict[str, Any]:
    """The content of ``open_clip_config.json``."""
    vision = {
        "image_size": 128,
        "timm_model_name": mini.TOWER,
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    }
    text = {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": vocab_size,
        "width": 128,
        "heads": 4,
        "layers": 3,
    }
    half = [0.5, 0.5, 0.5]
    return {
        "model_cfg": {"embed_dim": EMBED_DIM, "custom_text": True, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "squash"},
    }


def build(out: Path) -> tuple[Any, Any]:
    """The untrained model and its tokenizer; writes configuration and vocabulary to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    size = write_vocabulary(all_phrases(), out / BPE_FILE)
    (out / "open_clip_config.json").write_text(json.dumps(model_config(size), indent=2) + "\n")
    (out / "nouns.txt").write_text("\n".join(NOUN_NAMES) + "\n")
    model = open_clip.create_model(f"local-dir:{out}", load_weights=False)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}", bpe_path=str(out / BPE_FILE))
    return model, tokenizer


def export(weights: dict[str, torch.Tensor], out: Path) -> None:
    """Write the weights atomically as float16 safetensors."""
    halves = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    aside = out / ".part-weights"
    save_file({key: value.contiguous() for key, value in halves.items()}, aside)
    os.chmod(aside, 0o644)
    os.replace(aside, out / WEIGHTS)


class Average:
    """Exponential moving average of weights and batch-norm statistics, whose decay rises with the step."""

    def __init__(self, model: torch.nn.Module, decay: float = 0.998) -> None:
        self.decay = decay
        self.weights = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (20 + step))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.weights[key].lerp_(value, 1 - decay)
            else:
                self.weights[key].copy_(value)


def view(progress: float, rng: np.random.Generator) -> tuple[int, bool]:
    """Resolution of this step's images, and whether every four of them make a mosaic."""
    options = next(options for until, options in STAGES if progress < until)
    size, mosaic, _ = options[rng.choice(len(options), p=[share for *_, share in options])]
    return size, mosaic


def train(
    out: Path, *, minutes: float, seed: int, batch: int, rate: float, pool_size: int, init: Path | None = None
) -> None:
    """Train for `minutes` of processor time; export to `out` at the end and every few minutes.

    If training starts from the weights in the folder `init`, it skips the stage of small images.
    """
    torch.manual_seed(seed)
    model, tokenizer = build(out)
    model.visual.to(memory_format=torch.channels_last)
    average = Average(model)
    anchors = Anchors(EMBED_DIM, model.visual.trunk.patch_embed.feature_dim)
    decayed: list[torch.nn.Parameter] = [p for p in model.parameters() if p.ndim >= 2]
    rest = [*(p for p in model.parameters() if p.ndim < 2), *anchors.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": 0.05},
        {"params": rest, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    state = Path(__file__).parent / "cache" / f"mini_clip_{seed}.pt"
    teacher = Teacher(tokenizer, np.random.default_rng([seed, 0]))
    if init is not None:
        open_clip.load_checkpoint(model, str(init / WEIGHTS))
        anchors.start_from(teacher, model)
        average = Average(model)
    step, used = _resume(state, model, anchors, average, optimizer)
    teacher.rng = np.random.default_rng([seed, step])
    generator = torch.Generator().manual_seed(seed + step)
    pool = Pool(pool_size, seed + 1000 * step)
    started = time.process_time() - used
    pool.refresh(min(pool_size, 1200))
    exported = time.monotonic()
    images = 0
    while (progress := (time.process_time() - started) / (60 * minutes)) < 1:
        skipped = 0.0 if init is None else STAGES[0][0]
        size, mosaic = view(skipped + (1 - skipped) * progress, teacher.rng)
        lr = rate * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = lr
        pool.refresh(batch // 4)
        examples = pool.batch(batch)
        views = augment(examples, size, generator)
        losses = teacher.losses(model, anchors, views, examples, mosaic=mosaic)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(60))
        step += 1
        images += batch
        average.update(model, step)
        if step % 50 == 0:
            elapsed = time.process_time() - started
            parts = " ".join(f"{key} {float(value.detach()):.2f}" for key, value in losses.items())
            kind = "mosaic" if mosaic else "plain"
            rhythm = (
                f"{elapsed / 60:.1f} min {size} px {kind} {images / (elapsed - used):.0f} img/s lr {lr:.1e}"
            )
            scale = float(model.logit_scale.detach().exp())
            logger.info("step %d %s scale %.1f drawn %d | %s", step, rhythm, scale, pool.drawn, parts)
        if time.monotonic() - exported > EXPORT_EVERY_S:
            exported = time.monotonic()
            export(average.weights, out)
            _save(state, model, anchors, average, optimizer, step, time.process_time() - started)
            logger.info("exported at step %d", step)
    export(average.weights, out)
    state.unlink(missing_ok=True)  # a finished training is not resumed: the same command trains again
    start = f", from {init.name}" if init is not None else ""
    done = f"{minutes:g} min of one core, seed {seed}, batch {batch}, rate {rate:g}{start}: {step} steps"
    (out / RECORD).write_text(done + "\n")
    logger.info("done: %s, %d images drawn", done, pool.drawn)


def _save(
    path: Path, model: Any, anchors: Anchors, average: Average, optimizer: Any, step: int, used: float
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    kept = {"model": model, "anchors": anchors, "optimizer": optimizer}
    states = {name: part.state_dict() for name, part in kept.items()}
    torch.save({**states, "average": average.weights, "step": step, "used": used}, aside)
    os.replace(aside, path)


def _resume(path: Path, model: Any, anchors: Anchors, average: Average, optimizer: Any) -> tuple[int, float]:
    """Number of steps and seconds of the training saved in `path`; (0, 0) without one."""
    if not path.is_file():
        return 0, 0.0
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    anchors.load_state_dict(saved["anchors"])
    average.weights = saved["average"]
    optimizer.load_state_dict(saved["optimizer"])
    logger.info("resuming from step %d, %.1f min", saved["step"], saved["used"] / 60)
    return int(saved["step"]), float(saved["used"])


def main() -> None:
    """Train and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=40, help="processor time of all threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--pool", type=int, default=12_000, help="images kept in memory, 50 KB each")
    parser.add_argument("--out", type=Path, default=Path("segsmith/checkpoints/mini_clip"))
    parser.add_argument("--init", type=Path, help="start from the weights in this folder")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger().setLevel(logging.WARNING)
    logger.setLevel(logging.INFO)
    torch.set_num_threads(args.threads)
    train(args.out, minutes=args.minutes, seed=args.seed, batch=args.batch, rate=args.rate,
          pool_size=args.pool, init=args.init)  # fmt: skip


if __name__ == "__main__":
    main()
