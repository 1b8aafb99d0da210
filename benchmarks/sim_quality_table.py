"""The tables of `benchmarks.sim_quality`: quality, ablations, prompts and the mini SAM, as Markdown.

Each figure is the mean over the seeds with the lowest and highest in brackets. What was not measured has an empty
cell, and a table without figures is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.spread import spread

Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""Name of each part -> its figures, one mapping per seed."""
Row = tuple[str, ...]

VARIANTS = {
    "full": "**all of it**",
    "exact": "exact masks",
    "judge_off": "judge off: a build that accepts every image",
    "relabel_off": "relabelling off",
    "check_off": "region check off",
    "refiner_off": "mask refiner off",
    "sam_off": "SAM off",
    "detector_only": "with the detector",
    "vlm_only": "with the VLM",
    "attention_only": "with the attention",
    "witnesses": "with detector and VLM",
    "three_witnesses": "with all three",
}
ARMS = {
    "with": "**all of it**", "without": "prompt memory off",
    "no_exploration": "exploration off", "no_refinement": "refinement off",
}  # fmt: skip


def tables(results: Results) -> str:
    """All tables that have figures."""
    found = [_quality(results), _ablations(results), _prompts(results), _mini_sam(results)]
    return "\n\n".join(table for table in found if table)


def _figure(results: Results, part: str, key: str) -> str:
    return spread([seed[key] for seed in results.get(part, ()) if key in seed])


def _quality(results: Results) -> str:
    rows = [
        ("judge: precision of accepted images", "precision", ">= 0.97"),
        ("judge: recall", "recall", ">= 0.80"),
        ("image labels, micro-F1: the prompt's classes", "f1_prompt", ""),
        ("image labels, micro-F1: CLIP pseudo-labels", "f1_clip", ""),
        ("image labels, micro-F1: relabelled", "f1_relabel", ">= 0.95, with witnesses 0.97"),
        ("masks: mIoU over pixels that are not 255", "mask_miou", ">= 0.90"),
        ("masks: share of all pixels that are 255", "mask_ignore", "<= 0.10"),
        ("segmenter: mIoU on the test set", "real_miou", ""),
    ]
    cells = [
        (name, *(_figure(results, p, key) for p in ("full", "witnesses")), goal) for name, key, goal in rows
    ]
    exact = {seed["seed"]: seed["real_miou"] for seed in results.get("exact", ())}
    ratios = [f["real_miou"] / exact[f["seed"]] for f in results.get("full", ()) if f["seed"] in exact]
    cells.append(("the same over that with exact masks", spread(ratios), "", ">= 0.95"))
    return _markdown(("figure", "build", "with two witnesses", "target"), cells)


def _ablations(results: Results) -> str:
    keys = ("precision", "f1_relabel", "mask_miou", "mask_ignore", "real_miou")
    if sum(bool(found) for name, found in results.items() if name in VARIANTS) < 3:
        return ""  # the first table has them
    rows = [
        (name, *(_figure(results, part, key) for key in keys))
        for part, name in VARIANTS.items()
        if results.get(part)
    ]
    head = ("variant", "precision", "labels, micro-F1", "masks, mIoU", "at 255", "segmenter, test set")
    return _markdown(head, rows)


def _prompts(results: Results) -> str:
    rows = []
    for arm, name in ARMS.items():
        nearest, cells = (
            _figure(results, "diversity", f"{key}_{arm}") for key in ("nearest_cosine", "cells")
        )
        counts = [
            spread([seed[f"{key}_{arm}"] for seed in results.get("diversity", ())], 0)
            for key in ("prompts", "calls")
        ]
        rows.append((name, nearest, cells, *counts))
    head = (
        "prompt agent", "cosine to the nearest of its class (lower is better)",
        "distinct cells per prompt (higher is better)", "prompts of 240", "questions to the LLM",
    )  # fmt: skip
    return _markdown(head, rows)


def _mini_sam(results: Results) -> str:
    rows = [
        (views, _figure(results, "sam", f"twemoji{key}"), _figure(results, "sam", f"openmoji{key}"), goal)
        for views, key, goal in (
            ("as in the preset", "", ">= 0.92"),
            ("mask refiner off", "_no_refiner", ""),
            ("one view instead of four, too", "_one_view", ""),
        )
    ]
    return _markdown(("mini SAM, IoU from five points", "twemoji", "openmoji", "target"), rows)


def _markdown(head: Row, rows: Sequence[Row]) -> str:
    """A table without its columns of figures that are empty; empty itself if no row has a figure."""
    figures = [i for i, name in enumerate(head) if i and name != "target"]
    kept = [i for i, name in enumerate(head) if i not in figures or any(row[i] for row in rows)]
    full = [row for row in rows if any(row[i] for i in figures)]
    if not full:
        return ""
    lines = [[row[i] for i in kept] for row in (head, ("---",) * len(head), *full)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
