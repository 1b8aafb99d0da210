"""SeSAM against full supervision in the simulator: weak labels of three kinds, and what each component adds.

    python -m benchmarks.sesam                           # three seeds, all parts
    python -m benchmarks.sesam --only main               # without the ablations
    python -m benchmarks.sesam --seeds 0 --only full points/whole
    python -m benchmarks.sesam --table                   # print the tables again from results already there

Every part trains the same network for the same number of steps, from the same weights, on the same
images in the openmoji style, and is scored on other images of that style. Only the labels differ. Results
lie under ``runs/sesam``, a file per seed and part; what is there is not measured twice.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.spread import spread
from segsmith.config import Config
from segsmith.datasets.voc_folder import VocFolder
from segsmith.datasets.voc_layout import Pair, write_voc
from segsmith.files import write_atomic
from segsmith.segmentation.inference import evaluate
from segsmith.segmentation.masks import MaskSettings
from segsmith.segmentation.metrics import score_pairs
from segsmith.segmentation.sources import read_maps
from segsmith.segmentation.trainer import train
from segsmith.segmentation.weak_refiner import WeakRefiner
from segsmith.tools.images.simulator import unseen_scenes
from segsmith.tools.vision.clip import OpenClipEncoder
from segsmith.tools.vision.sam_views import open_segmenter
from segsmith.workflows.refine import refine_config
from segsmith.workflows.weaken import weaken_dataset

CLASSES = ("cat", "bus", "bicycle", "chair")
SIZE_PX = 64
IMAGES = {"train": 160, "test": 120}
ROOT = Path("runs/sesam")
KINDS = ("points", "scribbles", "coarse")
REACH = {"points": 0.90, "scribbles": 0.95, "coarse": 0.95}

NETWORK = {
    "trainer.encoder_init": "clip",
    "trainer.epochs": 10,
    "trainer.learning_rate": 2e-3,
    "trainer.save_every": 1000,
    "trainer.strong_view": "sprites",
}
"""The same for all parts; started from the mini CLIP's stem, it learns most in a minute of one core."""
ALONE = {"trainer.sam_weight": 0, "trainer.teacher_weight": 0}
MAIN: dict[str, dict[str, Any]] = {
    "whole": {},
    "weak": ALONE,
    "semi": {"trainer.sam_weight": 0},
    "confidence": {"labeler.points_from": "confidence"},
}
"""Compared for every kind: all of it; weak labels alone; the loop without SAM; confidence-based points."""
ABLATIONS: dict[str, dict[str, Any]] = {
    "other_reading": {"labeler.selection": "weights"},
    "no_step0": {"trainer.step0": False},
    "no_refresh": {"trainer.refresh_every": 0},
    "no_teacher_labels": {"trainer.teacher_weight": 0},
    "no_given_labels": {"trainer.given_weight": 0},
    "no_strong_view": {"trainer.strong_view": "off"},
    "with_border": {"labeler.border_px": 1},
    "by_source": {"trainer.balance": "sources"},
    "semi_by_source": {"trainer.sam_weight": 0, "trainer.balance": "sources"},
    "all_classes": {"trainer.drawn_classes_only": False},
}
VARIANTS = MAIN | ABLATIONS
TITLES = {
    "whole": "the whole",
    "weak": "alone",
    "semi": "loop without SAM",
    "confidence": "confidence-based points",
    "other_reading": "tau1 and tau2 as weights",
    "no_step0": "without step 0",
    "no_refresh": "SAM asked once",
    "no_teacher_labels": "without the teacher's labels",
    "no_given_labels": "without the drawn labels",
    "no_strong_view": "the student sees the weak view",
    "with_border": "a border of 255 around the masks",
    "by_source": "balanced by source",
    "semi_by_source": "loop without SAM, balanced by source",
    "all_classes": "the teacher may name classes that were not drawn",
}
"""Of a variant in the table."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="full, main, or KIND/VARIANT such as points/whole")
    parser.add_argument("--table", action="store_true", help="print the tables from results already there")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(1)
        # All seeds of a part before the next part: stopped early, the first tables are whole.
        for part in chosen_parts(arguments.only):
            for seed in arguments.seeds:
                measured(seed, part)
    print(tables())


def chosen_parts(names: Sequence[str] | None) -> list[str]:
    """The named parts, where ``main`` stands for what the comparison needs; by default that, then the ablations."""
    main = ["full", *(f"{kind}/{name}" for name in MAIN for kind in KINDS)]
    if names is None:
        return [*main, *(f"{kind}/{name}" for kind in KINDS for name in ABLATIONS)]
    return [part for name in names for part in (main if name == "main" else [name])]


def measured(seed: int, part: str) -> None:
    """Measure one part once, and keep its figures."""
    path = result_file(seed, part)
    if path.exists():
        return
    started = time.process_time()
    kind, _, name = part.partition("/")
    figures = supervised(seed) if part == "full" else refined(seed, kind, name)
    figures["cpu_seconds"] = time.process_time() - started
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(figures, indent=1).encode())
    print(f"seed {seed}, {part}: {json.dumps(figures)}", flush=True)


def result_file(seed: int, part: str) -> Path:
    return ROOT / f"seed{seed}" / "results" / f"{part.replace('/', '-')}.json"


# -- one part --------------------------------------------------------------------------------------


def settings(changes: dict[str, Any]) -> Config:
    """The settings of `segsmith refine`, for this network, with `changes`."""
    return refine_config(NETWORK | changes)


def supervised(seed: int) -> dict[str, Any]:
    """Exact masks."""
    out, config = ROOT / f"seed{seed}" / "full-out", settings({"trainer.teacher_weight": 0}).trainer
    result = train(world(seed), out, config, seed, clip_tower=tower())
    return {"miou": evaluate(result.checkpoint, world(seed)).miou}


def refined(seed: int, kind: str, name: str) -> dict[str, Any]:
    """Weak labels of one kind under one variant of the method."""
    config = settings(VARIANTS[name])
    refiner = WeakRefiner(
        open_segmenter(config.labeler, config.compute),
        MaskSettings.of(config.labeler),
        seed,
        threshold=config.trainer.teacher_threshold,
        step0=config.trainer.step0,
    )
    out = ROOT / f"seed{seed}" / f"{kind}-{name}"
    result = train(weak_world(seed, kind), out, config.trainer, seed, clip_tower=tower(), sam=refiner)
    return {"miou": evaluate(result.checkpoint, world(seed)).miou, **mask_quality(seed, out)}


@cache
def tower() -> torch.nn.Module:
    return OpenClipEncoder.load("mini", "cpu").tower


def world(seed: int) -> Path:
    """Fully labelled splits train and test."""
    folder = ROOT / f"seed{seed}" / "world"
    if not folder.exists():
        write_voc(folder, CLASSES, {split: scenes(split, seed) for split in IMAGES})
    return folder


def scenes(split: str, seed: int) -> Iterator[Pair]:
    first = 1_000_000 * (seed + 1) + (500_000 if split == "test" else 0)
    for index, scene in enumerate(unseen_scenes(CLASSES, IMAGES[split], first, SIZE_PX)):
        yield f"{split}{index:04d}", scene.image, scene.class_mask(CLASSES)


def weak_world(seed: int, kind: str) -> Path:
    folder = ROOT / f"seed{seed}" / f"{kind}-labels"
    if not folder.exists():
        weaken_dataset(world(seed), folder, kind, seed)  # type: ignore[arg-type]
    return folder


def mask_quality(seed: int, out: Path) -> dict[str, Any]:
    """mIoU of SAM's labels for the training images, first and last, over the pixels that are not 255."""
    truth, figures = VocFolder(world(seed), "train"), {}
    rounds = sorted((out / "training").glob("sam-*.zip"), key=lambda p: int(p.stem.split("-")[1]))
    for when, path in (("first", rounds[0]), ("last", rounds[-1])) if rounds else ():
        maps = list(read_maps(path, truth.ids))
        # Where the refined map is 255 the truth does not count.
        pairs = [
            (torch.from_numpy(m.copy()), torch.from_numpy(np.where(m == 255, 255, truth.raw(i)[1])))
            for i, m in enumerate(maps)
        ]
        figures[f"masks_{when}"] = score_pairs(pairs, CLASSES).miou
        figures[f"unknown_{when}"] = float(np.mean([(m == 255).mean() for m in maps]))
    return figures


# -- the tables ------------------------------------------------------------------------------------


def tables() -> str:
    """Markdown of all results under `ROOT`: mean and spread (lowest to highest) over seeds."""
    lines = ["| labels | mIoU, mean (spread) | of full supervision | reach | SAM's masks, first -> last |"]
    lines += ["| --- | --- | --- | --- | --- |", row("full", "full masks", "")]
    for kind in KINDS:
        lines += [
            row(f"{kind}/{name}", f"{kind}, {title}", reach(kind, name)) for name, title in TITLES.items()
        ]
    return "\n".join(line for line in lines if line)


def reach(kind: str, name: str) -> str:
    return f">= {REACH[kind]:.2f}" if name == "whole" else ""


def row(part: str, title: str, wanted: str) -> str:
    """One line; empty for a part that nothing is known of."""
    found = [(load(seed, part), load(seed, "full")) for seed in range(100)]
    pairs = [(figures, full) for figures, full in found if figures and full]
    if not pairs:
        return ""
    show = lambda key: spread([figures[key] for figures, _ in pairs])  # noqa: E731
    ratios = [figures["miou"] / full["miou"] for figures, full in pairs]
    masks = f"{show('masks_first')} -> {show('masks_last')}" if "masks_first" in pairs[0][0] else ""
    return f"| {title} | {show('miou')} | {spread(ratios)} | {wanted} | {masks} |"


def load(seed: int, part: str) -> dict[str, Any] | None:
    path = result_file(seed, part)
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    main()
