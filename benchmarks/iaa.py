"""What generated images add to a real dataset (IAA), in the simulator, where the "real" world is openmoji's.

    python -m benchmarks.iaa                 # three seeds; about an hour on one idle core
    python -m benchmarks.iaa --seeds 0       # one seed
    python -m benchmarks.iaa --table         # print the tables again from results already there

Per seed a long-tailed real set is drawn and cut to 5, 10, 25 and 100 % (nested). `segsmith augment` runs once, with
the 5 % alone: its images serve the larger cuts, too, though it knew less of them than it could have. Then one network
is trained for the same number of steps on the real images, on the real images and copies of them (as many as there
are generated ones, of the rarest classes first; the trainer flips, scales, crops and repaints every image of every
arm), and on the real and the generated images. All are tested on the same openmoji images, which nothing else uses.
*Chosen* is what `augment` keeps by default (`augment.choose_share`): the segmenter with generated images if its
gain on a real split val exceeds the standard error, else the one without. Split val has a quarter as many images as
split train, and at least eight. To save time, images are halved to 64 px for training and testing.

Runs and results lie under ``runs/iaa``; what is there is not measured twice.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from benchmarks.spread import spread
from segsmith.config import Config, deep_merge, load_config
from segsmith.datasets.voc_folder import VocFolder
from segsmith.datasets.voc_layout import Pair, write_voc
from segsmith.files import read_image, read_index_map
from segsmith.memory.run_folder import RunFolder
from segsmith.segmentation.comparison import compare
from segsmith.workflows.augment import plan_enlargement
from segsmith.workflows.build import build_run
from segsmith.workflows.settings import own_network
from segsmith.world.nouns import find_noun
from segsmith.world.scene import compose, random_spec

CLASSES = ("cat", "bus", "dog", "chair", "bird", "bicycle", "horse", "boat")
TAIL = (1.0, 0.75, 0.55, 0.4, 0.3, 0.22, 0.16, 0.12)
"""How likely a scene with a class is kept, the least of its classes' counting."""
REAL_IMAGES, TEST_IMAGES = 320, 160
SHARES = (5, 10, 25, 100)
ADD_PER_CLASS = 20
STEPS, SIZE = 360, 64
ROOT = Path("runs/iaa")
ARMS = ("real", "copies", "iaa")
LEAST_VAL = 8
"""Images of the smallest split val."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=int, nargs="+", default=list(SHARES), choices=SHARES)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--table", action="store_true", help="print the tables from results already there")
    arguments = parser.parse_args()
    if not arguments.table:
        for seed in arguments.seeds:
            measured(seed, "generate", partial(generate, seed))
            for share in arguments.shares:
                for arm in arguments.arms:
                    measured(seed, f"{arm}_{share}", partial(trained, seed, share, arm))
                if {"real", "iaa"} <= set(arguments.arms):
                    measured(seed, f"chosen_{share}", partial(chosen, seed, share))
    print(tables())


def measured(seed: int, name: str, measure: Callable[[], dict[str, Any]]) -> None:
    """Measure one part once, and keep its figures."""
    path = ROOT / f"seed{seed}" / f"{name}.json"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    figures = measure()
    figures["seconds"] = time.monotonic() - started
    path.write_text(json.dumps(figures, indent=1))
    print(f"seed {seed}, {name}: {json.dumps(figures)}", flush=True)


# -- the worlds ------------------------------------------------------------------------------------


def scenes(
    count: int, seed: int, tail: Sequence[float]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """(image, label map) of openmoji scenes at 128 px; a class is rarer the smaller its `tail`."""
    nouns = [noun.name for c in CLASSES if (noun := find_noun(c))]
    kept = dict(zip(nouns, tail, strict=True))
    index = 0
    while count:
        rng = np.random.default_rng([seed, index, 1])
        spec = random_spec(nouns, rng)
        if rng.random() < min(kept[item.noun] for item in spec.objects):
            scene = compose(spec, seed * 100_000 + index, style="openmoji", size=128)
            yield scene.image, scene.class_mask(CLASSES)
            count -= 1
        index += 1


def real_set(seed: int, share: int) -> Path:
    """The first `share` percent of the seed's real images, at 128 px, in VOC layout."""
    folder = ROOT / f"seed{seed}" / f"world_{share}"
    if not folder.exists():
        pairs = scenes(REAL_IMAGES * share // 100, 50 + seed, TAIL)
        write_voc(folder, CLASSES, {"train": ((f"{i:05d}", *pair) for i, pair in enumerate(pairs))})
    return folder


def test_set(seed: int) -> Path:
    """Held-out real images, every class as frequent as the others, at the size that is trained on."""
    folder = ROOT / f"seed{seed}" / "world_test"
    if not folder.exists():
        pairs = scenes(TEST_IMAGES, 9_050 + seed, [1.0] * len(CLASSES))
        write_voc(folder, CLASSES, {"test": (halved(f"{i:05d}", *pair) for i, pair in enumerate(pairs))})
    return folder


def val_set(seed: int, share: int) -> Path:
    """Real images as long-tailed as those of `real_set`, by which `augment` would choose."""
    folder = ROOT / f"seed{seed}" / f"world_val_{share}"
    if not folder.exists():
        count = max(LEAST_VAL, REAL_IMAGES * share // 400)
        pairs = scenes(count, 18_050 + seed, TAIL)
        write_voc(folder, CLASSES, {"val": (halved(f"{i:05d}", *pair) for i, pair in enumerate(pairs))})
    return folder


def halved(name: str, image: NDArray[np.uint8], label_map: NDArray[np.uint8]) -> Pair:
    small = PILImage.fromarray(image).resize((SIZE, SIZE), PILImage.Resampling.BOX)
    labels = PILImage.fromarray(label_map).resize((SIZE, SIZE), PILImage.Resampling.NEAREST)
    return name, np.asarray(small), np.asarray(labels)


# -- generated images ------------------------------------------------------------------------------


def generate(seed: int) -> dict[str, Any]:
    """`segsmith augment` on the 5 %; its own short training is not looked at."""
    deps_run = RunFolder(ROOT / f"seed{seed}" / "augment")
    plan = plan_enlargement(settings(seed), real_set(seed, SHARES[0]), deps_run.root)
    for _ in build_run(plan.config, deps_run.root, prepare=plan.prepare):
        pass
    found = Counter(name for labels in generated_labels(deps_run) for name in labels)
    return {
        "real": plan.have,
        "asked": plan.config.wanted,
        "shown": found,
        "images": len(generated_labels(deps_run)),
    }


def settings(seed: int) -> Config:
    return load_config(
        flags={
            "per_class": ADD_PER_CLASS,
            "seed": seed,
            "images": {"per_prompt": 4},  # a prompt takes more time than an image
            "judge": {"top_k": 4},
            "trainer": {"epochs": 1},
            "evaluation": {"images": 0},
        }
    )


def generated_labels(run: RunFolder) -> list[list[str]]:
    return [row["classes"].split("|") for row in rows(run) if row["source"] == "generated"]


def rows(run: RunFolder) -> list[dict[str, str]]:
    with (run.voc / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def generated(seed: int) -> list[Pair]:
    run = RunFolder(ROOT / f"seed{seed}" / "augment")
    return [
        halved(
            row["image_id"],
            read_image(run.image(row["image_id"])),  # the dataset has the same bytes
            read_index_map(run.voc / "SegmentationClass" / f"{row['image_id']}.png"),
        )
        for row in rows(run)
        if row["source"] == "generated"
    ]


# -- training --------------------------------------------------------------------------------------


def trained(seed: int, share: int, arm: str) -> dict[str, Any]:
    """IoU on the test set after `STEPS` steps on one arm's images."""
    from segsmith.segmentation.inference import evaluate
    from segsmith.segmentation.trainer import train
    from segsmith.tools.vision.clip import OpenClipEncoder

    data = VocFolder(real_set(seed, share), "train")
    real = [halved(name, *data.raw(i)) for i, name in enumerate(data.ids)]
    new = generated(seed)
    added = {"real": [], "copies": copies(real, len(new), seed), "iaa": new}[arm]
    root = ROOT / f"seed{seed}" / "trainings" / f"{arm}_{share}"
    if not (root / "data").exists():
        write_voc(root / "data", CLASSES, {"train": [*real, *added]})
    source = "generated" if arm == "iaa" else "real"
    lines = "".join(f"{name},{'|'.join(shown(label_map))},{source}\n" for name, _, label_map in added)
    (root / "data" / "labels.csv").write_text(f"image_id,classes,source\n{lines}")
    # What `augment` trains, and the view that it takes for sprites.
    changes = {"trainer": {"steps": STEPS, "save_every": 10_000, "strong_view": "sprites"}}
    config = load_config(flags=deep_merge(own_network(), changes)).trainer
    train(root / "data", root / "out", config, seed, clip_tower=OpenClipEncoder.load("mini").tower)
    score = evaluate(root / "out", test_set(seed), "test")
    return {
        "miou": score.miou,
        "iou": dict(score.iou_per_class),
        "val_miou": evaluate(root / "out", val_set(seed, share), "val").miou,
        "images": len(real) + len(added),
    }


def chosen(seed: int, share: int) -> dict[str, Any]:
    """The comparison by which `augment` keeps one of two segmenters."""
    with_generated, without = (
        ROOT / f"seed{seed}" / "trainings" / f"{arm}_{share}" / "out" for arm in ("iaa", "real")
    )
    found = compare(with_generated, without, val_set(seed, share), "val")
    return {"gain": found.gain, "error": found.error, "kept": found.first_is_better}


def copies(real: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """`count` copies of real images; each is of the class that is rarest at that point."""
    rng = np.random.default_rng(seed)
    labels = [shown(label_map) for _, _, label_map in real]
    have = Counter(name for names in labels for name in names)
    added = []
    for number in range(count):
        poorest = min(have, key=lambda name: (have[name], name))
        index = int(rng.choice([i for i, names in enumerate(labels) if poorest in names]))
        have.update(labels[index])
        added.append((f"copy{number:05d}", *real[index][1:]))
    return added


def shown(label_map: NDArray[np.uint8]) -> list[str]:
    """Classes of a label map."""
    return [name for index, name in enumerate(CLASSES, 1) if (label_map == index).any()]


# -- the tables ------------------------------------------------------------------------------------


def tables() -> str:
    """Markdown: mean (lowest to highest) over the seeds, then the gain of each class."""
    return f"{overall()}\n\n{by_class()}"


def overall() -> str:
    lines = [
        "| real images | real only | with copies | IAA | IAA less real only | IAA less copies | chosen less real |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for share in SHARES:
        found = {arm: results(arm, share) for arm in ARMS}
        mious = {arm: {seed: r["miou"] for seed, r in found[arm].items()} for arm in ARMS}
        count = REAL_IMAGES * share // 100
        cells = [spread(list(mious[arm].values())) for arm in ARMS]
        for other in ("real", "copies"):
            both = mious["iaa"].keys() & mious[other].keys()
            cells.append(spread([mious["iaa"][s] - mious[other][s] for s in sorted(both)], sign="+"))
        both = mious["iaa"].keys() & mious["real"].keys()
        kept = {seed: figures["kept"] for seed, figures in results("chosen", share).items()}
        gains = [mious["iaa"][s] - mious["real"][s] if kept[s] else 0.0 for s in sorted(both & kept.keys())]
        cells.append(spread(gains, sign="+"))
        lines.append(f"| {count} ({share} %) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_class() -> str:
    """Gain of IAA over real only, mean over seeds, classes from the most frequent to the rarest."""
    lines = [
        "| gain at | mean of classes | worst class before | " + " | ".join(CLASSES) + " |",
        "| --- " * (len(CLASSES) + 3) + "|",
    ]
    for share in SHARES:
        before, after = results("real", share), results("iaa", share)
        seeds = sorted(before.keys() & after.keys())
        if not seeds:
            continue
        gains = {c: np.mean([after[s]["iou"][c] - before[s]["iou"][c] for s in seeds]) for c in CLASSES}
        worst = np.mean(
            [
                after[s]["iou"][c] - before[s]["iou"][c]
                for s in seeds
                for c in [min(CLASSES, key=lambda c: before[s]["iou"][c])]
            ]
        )
        cells = [
            f"{np.mean(list(gains.values())):+.3f}",
            f"{worst:+.3f}",
            *(f"{g:+.3f}" for g in gains.values()),
        ]
        lines.append(f"| {share} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def results(arm: str, share: int) -> dict[int, dict[str, Any]]:
    """Seed -> figures of one arm."""
    found = {}
    for path in sorted(ROOT.glob(f"seed*/{arm}_{share}.json")):
        found[int(path.parent.name.removeprefix("seed"))] = json.loads(path.read_text())
    return found


if __name__ == "__main__":
    main()
