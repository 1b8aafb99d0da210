"""The quality of the whole pipeline in the simulator, where the truth is known.

    python -m benchmarks.sim_quality                           # eight VOC classes, three seeds, all ablations
    python -m benchmarks.sim_quality --classes nouns --only full exact
    python -m benchmarks.sim_quality --seeds 3                 # one seed
    python -m benchmarks.sim_quality --table                   # print the tables again from results already there

Seeds 0, 1 and 2 were used while thresholds and defaults were chosen; the default seeds were not. No threshold was
chosen on the class sets `voc-other` and `nouns`. Runs and results lie under ``runs/quality``; what is there is not
measured twice.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.remembered_masks import RememberedMasks
from benchmarks.sim_quality_table import tables
from segsmith.agents.judge.agent import update_verdicts
from segsmith.config import Config, load_config
from segsmith.files import png_bytes, read_index_map, write_atomic
from segsmith.graph.context import RunContext
from segsmith.graph.graph import build_prompt_graph
from segsmith.memory.run_folder import RunFolder
from segsmith.tools.images.simulator import Drawing, Simulator
from segsmith.tools.vision.sam_views import open_segmenter
from segsmith.types import IGNORE, ImageRequest
from segsmith.workflows.build import build_run

CLASS_SETS = {
    "voc": ("cat", "dog", "horse", "bird", "bus", "bicycle", "boat", "chair"),
    "voc-other": ("aeroplane", "bottle", "car", "cow", "motorbike", "sheep", "sofa", "train"),
    "nouns": ("rabbit", "tractor", "guitar", "teapot", "owl", "drum", "balloon", "castle"),
}
"""The thresholds were chosen on images of the first set. The mini CLIP was trained on the words of all of them."""
SEEDS = (3, 4, 5)
PER_CLASS = 40
ROOT = Path("runs/quality")
PASSED = {"ok", "surplus", "beyond_top_k"}
"""Reasons of images that the judge finds good; with the last two, enough better images exist."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--classes", choices=CLASS_SETS, default="voc", help="set of eight classes")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to measure (default: all)")
    parser.add_argument("--table", action="store_true", help="print the tables from results already there")
    arguments = parser.parse_args()
    if not arguments.table:
        for seed in arguments.seeds:
            for name in arguments.only or PARTS:
                measured(Trial(arguments.classes, seed), name)
    print(tables(figures_of(arguments.classes)))


@dataclass(frozen=True)
class Trial:
    """One seed of one set of classes; its runs and results lie in `folder`."""

    class_set: str
    seed: int

    @property
    def classes(self) -> tuple[str, ...]:
        return CLASS_SETS[self.class_set]

    @property
    def folder(self) -> Path:
        return ROOT / self.class_set / f"seed{self.seed}"

    def settings(self, **changes: Any) -> Config:
        return load_config(
            flags={"classes": self.classes, "per_class": PER_CLASS, "seed": self.seed, **changes}
        )


def measured(trial: Trial, name: str) -> None:
    """Measure one part once, and keep its figures."""
    path = trial.folder / f"{name}.json"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    figures = PARTS[name](trial)
    figures["seconds"] = time.monotonic() - started
    write_atomic(path, json.dumps(figures, indent=1).encode())
    print(f"{trial.class_set}, seed {trial.seed}, {name}: {json.dumps(figures)}", flush=True)


def full(trial: Trial) -> dict[str, Any]:
    """The whole pipeline, and all figures of its run."""
    deps = built(trial, "full")
    figures = {
        **judge_figures(deps),
        **label_figures(deps),
        **mask_figures(deps),
        "real_miou": deps.ledger.evaluation["test_set"].miou,
        "real_iou": dict(deps.ledger.evaluation["test_set"].iou),
    }
    deps.close()
    return figures


def exact(trial: Trial) -> dict[str, Any]:
    """The same images and splits with exact masks: what perfect labelling would give."""

    def replace_masks(deps: RunContext) -> None:
        folder = deps.run.voc / "SegmentationClass"
        for image_id, drawing in truths(deps).items():
            path = folder / f"{image_id}.png"
            if path.exists():
                path.write_bytes(png_bytes(drawing.scene.class_mask(trial.classes)))

    found = variant(trial, "exact", relabel=False, segment=False, change_dataset=replace_masks)
    return {"real_miou": found["real_miou"]}


def judge_off(trial: Trial) -> dict[str, Any]:
    """Every drawn image is accepted."""
    deps = built(trial, "judge_off", judge={"enabled": False})
    figures = {
        "precision": judge_figures(deps)["precision"],
        **label_figures(deps),
        **mask_figures(deps),
        "real_miou": deps.ledger.evaluation["test_set"].miou,
    }
    deps.close()
    return figures


def relabel_off(trial: Trial) -> dict[str, Any]:
    """CLIP's pseudo-labels are final."""
    return variant(trial, "relabel_off", labeler={"relabel": False})


def sam_off(trial: Trial) -> dict[str, Any]:
    """Masks are the thresholded patch scores."""
    return variant(trial, "sam_off", relabel=False, labeler={"use_sam": False})


def refiner_off(trial: Trial) -> dict[str, Any]:
    """SAM's masks are not corrected."""
    return variant(trial, "refiner_off", relabel=False, labeler={"mask_refiner": False})


def check_off(trial: Trial) -> dict[str, Any]:
    """No region is doubted."""
    return variant(trial, "check_off", relabel=False, labeler={"region_doubt": 0})


def witnesses(trial: Trial) -> dict[str, Any]:
    """Both stand-ins of witnesses are asked; what they deny is replaced by images that were surplus."""
    return variant(trial, "witnesses", hear=True, witnesses={"detector": "simulated", "vlm": "simulated"})


def detector_only(trial: Trial) -> dict[str, Any]:
    """The detector is the only witness."""
    return variant(trial, "detector_only", hear=True, train=False, witnesses={"detector": "simulated"})


def vlm_only(trial: Trial) -> dict[str, Any]:
    """The VLM is the only witness."""
    return variant(trial, "vlm_only", hear=True, train=False, witnesses={"vlm": "simulated"})


def attention_only(trial: Trial) -> dict[str, Any]:
    """The image model's attention is the only witness."""
    return variant(trial, "attention_only", hear=True, train=False, witnesses={"attention": "simulated"})


def three_witnesses(trial: Trial) -> dict[str, Any]:
    """All stand-ins of witnesses are asked."""
    every = dict.fromkeys(("detector", "vlm", "attention"), "simulated")
    return variant(trial, "three_witnesses", hear=True, witnesses=every)


def diversity(trial: Trial) -> dict[str, Any]:
    """240 prompts by the whole prompt agent, and as many without one of its parts."""
    arms: dict[str, dict[str, Any]] = {
        "with": {},
        "without": {"remember": False},
        "no_exploration": {"explore": False},
        "no_refinement": {"max_refines": 0},
    }
    figures: dict[str, Any] = {}
    for name, changes in arms.items():
        run = RunFolder(trial.folder / f"prompts_{name}")
        run.create()
        deps = RunContext(trial.settings(prompts=changes), run)
        write_prompts(deps, per_class=30)
        prompts = deps.ledger.prompts("admitted")
        vectors = deps.encoder.embed_texts([p.text for p in prompts])
        nearest = []
        for index, prompt in enumerate(prompts):
            same = [i for i, p in enumerate(prompts) if p.class_name == prompt.class_name and i != index]
            nearest.append(float(np.max(vectors[same] @ vectors[index])))
        cells = {
            (p.class_name, p.attributes.get("place"), p.attributes.get("light"), p.attributes.get("weather"))
            for p in prompts
        }
        figures[f"nearest_cosine_{name}"] = float(np.mean(nearest))
        figures[f"cells_{name}"] = len(cells) / len(prompts)
        figures[f"prompts_{name}"] = len(prompts)
        figures[f"calls_{name}"] = deps.chat.usage.snapshot()["calls"]
        deps.close()
    return figures


def sam(trial: Trial) -> dict[str, Any]:
    """Mini SAM from five skeleton points on sprites it never saw."""
    from foundry.mini_sam import HELD_OUT, evaluate
    from segsmith.world.sprites import STYLES

    kinds: dict[str, dict[str, Any]] = {
        "": {},
        "_no_refiner": {"mask_refiner": False},
        "_one_view": {"mask_refiner": False, "sam_views": False},
    }
    figures = {}
    for kind, changes in kinds.items():
        config = trial.settings(labeler=changes)
        segmenter = open_segmenter(config.labeler, config.compute)
        for style in STYLES:
            figures[style + kind] = evaluate(segmenter, 300, trial.seed + 10_000, style, HELD_OUT)["iou"]
    return figures


# -- runs ------------------------------------------------------------------------------------------


def built(trial: Trial, name: str, **changes: Any) -> RunContext:
    config, out = trial.settings(**changes), trial.folder / name
    for _ in build_run(config, out, parts=remembering(trial, config)):
        pass
    return RunContext(config, RunFolder(out))


def remembering(trial: Trial, config: Config) -> Mapping[str, Any]:
    """SAM, with its masks of all runs of a trial in one file."""
    labeler = config.labeler
    settings = f"{labeler.sam}, views: {labeler.sam_views}, refiner: {labeler.mask_refiner}"
    trial.folder.mkdir(parents=True, exist_ok=True)
    load = partial(open_segmenter, labeler, config.compute)
    return {"segmenter": RememberedMasks(trial.folder / "masks.db", settings, load)}


def variant(
    trial: Trial,
    name: str,
    *,
    relabel: bool = True,
    segment: bool = True,
    hear: bool = False,
    train: bool = True,
    change_dataset: Callable[[RunContext], None] = lambda deps: None,
    **changes: Any,
) -> dict[str, Any]:
    """The full run's images, labelled and trained with other settings; without `segment` the masks are its, too."""
    source, out = trial.folder / "full", trial.folder / name
    if not (source / "dataset").exists():
        built(trial, "full").close()  # its figures were taken over from another machine
    if not (out / "ledger.db").exists():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source / "images", out / "images", dirs_exist_ok=True)
        shutil.copy(source / "patch_scores.npz", out)
        if not segment:
            shutil.copytree(source / "masks", out / "masks", dirs_exist_ok=True)
        copy_ledger(source / "ledger.db", out / "ledger.db", masks=not segment)
    run = RunFolder(out)
    run.create()
    config = trial.settings(**changes)
    deps = RunContext(config, run, parts=remembering(trial, config))
    while hear and deps.witness_agent.hear():
        update_verdicts(deps.ledger, trial.classes, deps.config.judge, deps.config.wanted)
    if relabel:
        deps.labeler_agent.relabel()
    if segment:
        deps.labeler_agent.segment()
    figures = {"precision": judge_figures(deps)["precision"], **label_figures(deps), **mask_figures(deps)}
    if train:
        deps.finalizer.export()
        change_dataset(deps)
        deps.finalizer.train(lambda event: None)
        figures["real_miou"] = deps.finalizer.evaluate()["test_set"].miou
    deps.close()
    return figures


def copy_ledger(source: Path, target: Path, masks: bool) -> None:
    """Copy a ledger, with what it says of masks or without."""
    with sqlite3.connect(source) as before, sqlite3.connect(target) as after:
        before.backup(after)
        if not masks:
            after.execute("DELETE FROM masks")


def write_prompts(deps: RunContext, per_class: int) -> None:
    """Only the prompt agent's part of the graph, in the batches of a build's first rounds."""
    graph, batch = build_prompt_graph(), deps.config.prompts.batch
    for round_ in range(per_class // batch):
        for name in deps.config.classes:
            graph.invoke(
                {"class_name": name, "wanted": batch, "round": round_, "judged": 0},
                {"recursion_limit": 1000},
                context=deps,
            )


# -- truth -----------------------------------------------------------------------------------------


def truths(deps: RunContext) -> dict[str, Drawing]:
    """Image id -> what was really drawn."""
    simulator = Simulator(deps.config.images.faults, deps.config.classes, deps.config.images.size)
    texts = {p.id: p.text for p in deps.ledger.prompts()}
    return {r.id: simulator.truth(ImageRequest(texts[r.prompt_id], r.seed)) for r in deps.ledger.images()}


def good_images(deps: RunContext) -> dict[str, bool]:
    """Image id -> is it good: its target is there, it is in focus, and it repeats no earlier image?"""
    targets = {p.id: p.class_name for p in deps.ledger.prompts()}
    truth, good, seen = truths(deps), {}, set()
    for row in deps.ledger.images():
        drawing = truth[row.id]
        fingerprint = drawing.image.tobytes()
        there = targets[row.prompt_id] in drawing.scene.present(deps.config.classes)
        good[row.id] = there and "blur" not in drawing.faults and fingerprint not in seen
        seen.add(fingerprint)
    return good


def judge_figures(deps: RunContext) -> dict[str, Any]:
    """Precision and recall of the judge, and the share of each injected fault that passes it."""
    verdicts, truth, good = deps.ledger.verdicts(), truths(deps), good_images(deps)
    passed = [i for i, v in verdicts.items() if v.reason in PASSED]
    accepted = [i for i, v in verdicts.items() if v.accepted]
    faults: dict[str, list[bool]] = {}
    for image_id, drawing in truth.items():
        for fault in drawing.faults or ("none",):
            faults.setdefault(fault, []).append(verdicts[image_id].reason in PASSED)
    return {
        "precision": float(np.mean([good[i] for i in accepted])),
        "precision_passed": float(np.mean([good[i] for i in passed])),
        "recall": sum(good[i] for i in passed) / sum(good.values()),
        "drawn": len(good),
        "accepted": len(accepted),
        "passed_by_fault": {k: float(np.mean(v)) for k, v in sorted(faults.items())},
    }


def label_figures(deps: RunContext) -> dict[str, float]:
    truth = {i: set(d.scene.present(deps.config.classes)) for i, d in truths(deps).items()}
    figures = {}
    for source in ("prompt", "clip", "relabel"):
        labels = deps.ledger.labels(source)
        rows = [(set(labels[r.id].classes), truth[r.id]) for r in deps.ledger.accepted()]
        hits = sum(len(a & b) for a, b in rows)
        figures[f"f1_{source}"] = 2 * hits / max(1, sum(len(a) + len(b) for a, b in rows))
    return figures


def mask_figures(deps: RunContext) -> dict[str, Any]:
    """mIoU over classes and background of all accepted images' masks; pixels marked 255 do not count."""
    n = len(deps.config.classes) + 1
    confusion, ignored, pixels = np.zeros((n, n)), 0, 0
    truth = truths(deps)
    for row in deps.ledger.accepted():
        mask, exact_mask = (
            read_index_map(deps.run.mask(row.id)),
            truth[row.id].scene.class_mask(deps.config.classes),
        )
        known = mask != IGNORE
        ignored, pixels = ignored + int((~known).sum()), pixels + mask.size
        confusion += np.bincount(
            exact_mask[known].astype(int) * n + mask[known], minlength=n * n
        ).reshape(n, n)  # fmt: skip
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    iou = confusion.diagonal() / np.maximum(union, 1)
    return {
        "mask_miou": float(iou.mean()),
        "mask_ignore": ignored / max(pixels, 1),
        "mask_iou": dict(zip(("background", *deps.config.classes), map(float, iou), strict=True)),
    }


# -- the table -------------------------------------------------------------------------------------


def figures_of(class_set: str) -> dict[str, list[dict[str, Any]]]:
    """Name of each part -> its figures and ``seed`` for every seed that is there."""
    return {
        name: [
            {**json.loads(path.read_text()), "seed": path.parent.name}
            for path in sorted((ROOT / class_set).glob(f"seed*/{name}.json"))
        ]
        for name in PARTS
    }


PARTS: dict[str, Callable[[Trial], dict[str, Any]]] = {
    "full": full,
    "exact": exact,
    "judge_off": judge_off,
    "relabel_off": relabel_off,
    "sam_off": sam_off,
    "refiner_off": refiner_off,
    "check_off": check_off,
    "witnesses": witnesses,
    "detector_only": detector_only,
    "attention_only": attention_only,
    "three_witnesses": three_witnesses,
    "vlm_only": vlm_only,
    "diversity": diversity,
    "sam": sam,
}
"""Name of each part -> what measures it; `full` comes first, since others start from its run."""


if __name__ == "__main__":
    main()
