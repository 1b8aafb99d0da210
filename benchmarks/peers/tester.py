"""The images of a simulator's run, what is true of them, and what CLIP says, for both ways of testing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.sim_quality import PASSED, good_images
from segsmith.files import read_image
from segsmith.graph.context import RunContext
from segsmith.memory.run_config import record_of
from segsmith.memory.run_folder import RunFolder


@dataclass(frozen=True)
class JudgedImages:
    """All drawn images of a run, in the order of the ledger."""

    good: list[bool]
    passed: list[bool]
    """The judge found it good, whether or not the quota still needed it."""
    targets: list[int]
    """Index of the class that the prompt names."""
    logits: list[list[float]]
    """CLIP's scaled cosine with each class, as datadreamer's tester computes it: the bare class name as text."""


def judged_images(folder: Path) -> JudgedImages:
    """Read a finished run; raises `SystemExit` if there is none."""
    if not (folder / "ledger.db").exists():
        raise SystemExit(f"{folder} is not a finished run; run `make demo` or name one with --run.")
    run = RunFolder(folder)
    with RunContext(record_of(run).config, run) as context:
        good, verdicts = good_images(context), context.ledger.verdicts()
        prompts = {p.id: p.class_name for p in context.ledger.prompts()}
        classes = list(context.config.classes)
        rows = [row for row in context.ledger.images() if row.id in verdicts]
        texts = context.encoder.embed_texts(classes)
        vectors = np.concatenate(
            [context.encoder.embed_images([read_image(run.image(row.id))]) for row in rows]
        )
        logits = context.encoder.logit_scale * vectors @ texts.T
    return JudgedImages(
        [good[row.id] for row in rows],
        [verdicts[row.id].reason in PASSED for row in rows],
        [classes.index(prompts[row.prompt_id]) for row in rows],
        [[float(value) for value in row] for row in logits],
    )


def shares(good: Sequence[bool], passed: Sequence[bool]) -> dict[str, float]:
    """Precision and recall of what passes, and the share of all images that pass."""
    both = sum(g and p for g, p in zip(good, passed, strict=True))
    return {
        "precision": both / max(1, sum(passed)),
        "recall": both / max(1, sum(good)),
        "passing": sum(passed) / max(1, len(passed)),
    }
