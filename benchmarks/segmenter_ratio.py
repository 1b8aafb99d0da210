"""How good is a segmenter trained on generated images, beside the same one trained on as many images like the test's?

    python -m benchmarks.segmenter_ratio                      # three seeds, in the test style; builds three runs
    python -m benchmarks.segmenter_ratio --style openmoji --exact --seeds 0      # while developing
    python -m benchmarks.segmenter_ratio --table              # print the table again from results already there

This is the field's ratio (Dataset Diffusion: 64.8 / 79.9 mIoU on VOC). Both segmenters have the same network and
settings, the same number of images and steps, and are scored on the same images. One is trained on split train of a
build of eight classes, 40 images each, with injected faults and the labeler's masks (the run of
`benchmarks.sim_quality`, which is built if it is not there); with ``--exact``, on images of the build's style with
exact masks, which takes no build. The other is trained on images of the style that is tested, with exact masks.

Settings may be compared in openmoji (the validation style) only; gouache, the test style, is for the report. Results
lie under ``runs/ratio``; what is there is not measured twice.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.sim_quality import Trial, built
from benchmarks.spread import spread
from segsmith.config import load_config
from segsmith.datasets.voc_folder import VocFolder
from segsmith.datasets.voc_layout import Pair, write_voc
from segsmith.files import write_atomic
from segsmith.segmentation.inference import evaluate
from segsmith.segmentation.trainer import train
from segsmith.tools.images.simulator import unseen_scenes
from segsmith.tools.vision.clip import OpenClipEncoder
from segsmith.tools.vision.clip_to_timm import class_directions
from segsmith.world.sprites import BUILD_STYLE, STYLES, TEST_STYLE, Style

ROOT = Path("runs/ratio")
SEEDS = (3, 4, 5)
N_TRAIN = 256
"""Images in split train of 320; a run's own number is used where there is a run."""
N_TEST = 300
SIZE_PX = 128
OWN = {"encoder": "tu-resnet10t", "freeze_encoder": False, "learning_rate": 1e-3}
VARIANTS: dict[str, dict[str, Any]] = {
    "preset": {},
    "preset_100": {"steps": 100},
    "resnet": OWN,
    "resnet_100": {**OWN, "steps": 100},
    "trained_tower": {"freeze_encoder": False, "learning_rate": 5e-4},
    "no_texts": {},
    "plain_view": {"strong_view": "off"},
    "photo_view": {"strong_view": "photographs"},
}
"""Changes of section trainer of the preset sim; `no_texts` leaves out CLIP's text features."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--style", choices=(*STYLES[1:], TEST_STYLE), default=TEST_STYLE)
    parser.add_argument("--exact", action="store_true", help="exact masks in place of a run's")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["preset", "resnet"])
    parser.add_argument("--table", action="store_true", help="print the table from results already there")
    arguments = parser.parse_args()
    folder = ROOT / arguments.style / ("exact" if arguments.exact else "run")
    if not arguments.table:
        for variant in arguments.variants:
            for seed in arguments.seeds:
                measured(folder, variant, seed, arguments.style, arguments.exact)
    print(table(folder))


def measured(folder: Path, variant: str, seed: int, style: Style, exact: bool) -> None:
    """Train both segmenters of one seed, once, and keep their scores."""
    path = folder / variant / f"seed{seed}.json"
    if path.exists():
        return
    source = scenes("build", BUILD_STYLE, seed) if exact else run_dataset(seed)
    count = len(VocFolder(source, "train", keep=False))
    target, tested = scenes("like-test", style, seed, count), scenes("test", style, 0, N_TEST, "test")
    started = time.process_time()
    figures: dict[str, Any] = {"images": count}
    for name, dataset in (("generated", source), ("like_test", target)):
        out = path.parent / f"seed{seed}" / name
        figures[name] = trained(variant, dataset, tested, out, seed)
    figures["ratio"] = figures["generated"] / figures["like_test"]
    figures["cpu_seconds"] = time.process_time() - started
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(figures, indent=1).encode())
    print(f"{style}, {variant}, seed {seed}: {json.dumps(figures)}", flush=True)


def trained(variant: str, dataset: Path, tested: Path, out: Path, seed: int) -> float:
    """mIoU on the images in `tested` of a segmenter trained on split train of `dataset`."""
    # The trainer takes this view for what the simulator drew, which these datasets do not say of themselves.
    settings = {"strong_view": "sprites", **VARIANTS[variant], "save_every": 1000}
    config = load_config(flags={"trainer": settings}).trainer
    directions = None if variant == "no_texts" else partial(class_directions, judge())
    train(dataset, out, config, seed, clip_tower=judge().tower, directions=directions)
    return float(evaluate(out, tested, "test").miou)


@cache
def judge() -> OpenClipEncoder:
    return OpenClipEncoder.load("mini", "cpu")


def run_dataset(seed: int) -> Path:
    """The dataset of a finished run of the preset sim; it is built if it is not there."""
    context = built(Trial("voc", seed), "full")
    folder = context.run.voc
    context.close()
    return folder


def scenes(name: str, style: Style, seed: int, count: int = N_TRAIN, split: str = "train") -> Path:
    """A dataset of scenes with exact masks in `style`; the names of two datasets differ in their scenes."""
    folder = ROOT / "data" / f"{name}-{style}-{count}-{seed}"
    classes = Trial("voc", seed).classes
    first = {"build": 1, "like-test": 2, "test": 3}[name] * 10_000_000 + seed * 100_000

    def pairs() -> Iterator[Pair]:
        for index, scene in enumerate(unseen_scenes(classes, count, first, SIZE_PX, style)):
            yield f"s{index:05d}", scene.image, scene.class_mask(classes)

    if not folder.exists():
        write_voc(folder, classes, {split: pairs()})
    return folder


def table(folder: Path) -> str:
    """Markdown of all results in a folder: mean (lowest to highest) over the seeds."""
    lines = [
        "| variant | seeds | generated: mIoU | like the test's: mIoU | ratio |", "| --- | --- | --- | --- | --- |"
    ]  # fmt: skip
    for variant in VARIANTS:
        found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{variant}/seed*.json"))]
        if not found:
            continue
        cells = [spread([figures[key] for figures in found]) for key in ("generated", "like_test", "ratio")]
        lines.append(f"| {variant} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
