"""Weak labels against full supervision on a folder of photographs in VOC layout, with splits train and test.

    python -m benchmarks.photos DIR                            # three seeds, all parts
    python -m benchmarks.photos DIR --seeds 0 --only full scribbles/whole
    python -m benchmarks.photos DIR --table                    # print the table again from results already there

Every part trains the same network for the same number of steps and is scored on split test. ``bare`` is a plain
training loop on full masks: AdamW, a cosine, flips, unweighted cross-entropy, nothing else. Results lie under
``runs/photos``, a file per seed and part; what is there is not measured twice.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import segsmith
from benchmarks.spread import spread
from segsmith.config import TrainerConfig
from segsmith.datasets.voc_folder import VocFolder
from segsmith.files import write_atomic
from segsmith.segmentation.inference import predicted_pairs
from segsmith.segmentation.metrics import score_pairs
from segsmith.segmentation.network import build_segmenter, normalise, without_background
from segsmith.segmentation.recipe import learning_rate
from segsmith.workflows.weaken import weaken_dataset

ROOT = Path("runs/photos")
BATCH = 8
EPOCHS = 12
SHARED: dict[str, Any] = {"trainer.epochs": EPOCHS, "trainer.batch_size": BATCH, "trainer.save_every": 1000}
ALONE: dict[str, Any] = {"trainer.sam_weight": 0, "trainer.teacher_weight": 0}
KINDS = ("scribbles", "points")
VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "alone": ALONE,
    "no_teacher": {"trainer.teacher_weight": 0},
    "always_sam": {"labeler.min_sam_agreement": 0},
    "photo_view": {"trainer.strong_view": "photographs"},
}
FULL: dict[str, dict[str, Any]] = {
    "full": {},
    "full_photo_view": {"trainer.strong_view": "photographs"},
    "full_sprite_view": {"trainer.strong_view": "sprites"},
}
PARTS = ("bare", *FULL, *(f"{kind}/{name}" for name in VARIANTS for kind in KINDS))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="photographs with full masks, splits train and test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--table", action="store_true", help="print the table only")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(1)
        for seed in arguments.seeds:
            for part in arguments.only:
                measured(arguments.dataset, seed, part)
    print(table())


def measured(dataset: Path, seed: int, part: str) -> None:
    """Measure one part once, and keep its figures."""
    path = result_file(seed, part)
    if path.exists():
        return
    started = time.process_time()
    out = ROOT / f"seed{seed}" / part.replace("/", "-")
    if part == "bare":
        miou = bare(dataset, seed)
    else:
        miou = segsmith.evaluate(
            trained(dataset, out, seed, part), dataset, split="test", progress=False
        ).miou
    figures = {"miou": miou, "cpu_seconds": time.process_time() - started}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(figures).encode())
    print(f"seed {seed}, {part}: {json.dumps(figures)}", flush=True)


def trained(dataset: Path, out: Path, seed: int, part: str) -> Path:
    """The checkpoint of one part."""
    if part in FULL:
        return segsmith.train(dataset, out, seed=seed, settings=SHARED | FULL[part], progress=False).segmenter
    kind, name = part.split("/")
    weak = ROOT / f"seed{seed}" / f"{kind}-labels"
    if not weak.exists():
        weaken_dataset(dataset, weak, kind, seed)  # type: ignore[arg-type]
    settings = SHARED | VARIANTS[name]
    segmenter = segsmith.refine(weak, out, seed=seed, settings=settings, progress=False).segmenter
    assert segmenter is not None
    return segmenter


def bare(dataset: Path, seed: int) -> float:
    """The mIoU of a plain loop with the network and the number of steps of `segsmith train`."""
    torch.manual_seed(seed)
    data, config = VocFolder(dataset, "train"), TrainerConfig(encoder_init="none", batch_size=BATCH)
    background = bool(data.class_pixels()[0])
    model = build_segmenter(config, len(data.classes))
    if not background:
        without_background(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    per_epoch = -(-len(data) // BATCH)
    for step in range(EPOCHS * per_epoch):
        if step % per_epoch == 0:
            order = torch.randperm(len(data)).repeat(2)
        first = step % per_epoch * BATCH
        images, labels = zip(*(data[i] for i in order[first : first + BATCH].tolist()), strict=True)
        batch, truth = torch.stack(images), torch.stack(labels)
        if torch.rand(()) < 0.5:
            batch, truth = batch.flip(-1), truth.flip(-1)
        height, width = batch.shape[-2:]
        padding = (0, -width % 32, 0, -height % 32)
        batch, truth = F.pad(batch, padding), F.pad(truth, padding, value=255)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, EPOCHS * per_epoch, config.learning_rate)
        loss = F.cross_entropy(model(normalise(model, batch)), truth, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    test = VocFolder(dataset, "test")
    return score_pairs(predicted_pairs(model, test), test.classes, background).miou


def result_file(seed: int, part: str) -> Path:
    return ROOT / f"seed{seed}" / "results" / f"{part.replace('/', '-')}.json"


def table() -> str:
    """Markdown of all results under `ROOT`: mean and spread (lowest to highest) over the seeds of each part."""
    lines = ["| labels | mIoU | of full supervision | seeds |", "| --- | --- | --- | --- |"]
    for part in PARTS:
        found = {seed: load(seed, part) for seed in range(100)}
        scores = {seed: miou for seed, miou in found.items() if miou is not None}
        ratios = [miou / full for seed, miou in scores.items() if (full := load(seed, "full"))]
        if scores:
            lines.append(f"| {part} | {spread(list(scores.values()))} | {spread(ratios)} | {len(scores)} |")
    return "\n".join(lines)


def load(seed: int, part: str) -> float | None:
    path = result_file(seed, part)
    return json.loads(path.read_text())["miou"] if path.exists() else None


if __name__ == "__main__":
    main()
