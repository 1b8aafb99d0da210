"""SeSAM (arXiv 2604.11170): from a coarse class mask to the points SAM is asked with, and back to one mask.

Step 1 separates instances, step 2 samples points on the skeleton of each, step 3 selects among the masks
SAM returns. Loading and running SAM is not here: see `segsmith.protocols.PointSegmenter`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from skimage.morphology import skeletonize

from segsmith.types import MaskCandidates

FLOOD_SHARE = 0.9
"""A candidate over this share of the picture is SAM's background, not an object."""

Reason = Literal["ok", "no_candidates", "empty", "flood", "coverage", "overlap", "score"]


@dataclass(frozen=True)
class Selection:
    """What step 3 chose, and on which grounds.

    `index` is the candidate's row, None when all were refused; then the numbers are those of the refused
    candidate with the best predicted IoU, and `reason` says why that one fell. `coverage` is the share of
    the own weak label inside the candidate, `overlap` the share of the other classes' weak label inside
    it, `precision` the share of the candidate inside the own weak label; all in [0, 1].
    """

    index: int | None
    coverage: float
    overlap: float
    precision: float
    predicted_iou: float
    reason: Reason


def skeleton_points(component: NDArray[np.bool_], n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Up to `n` points of the component's topological skeleton (SeSAM, step 2): (n', 2) float32 (x, y).

    Uniform, without replacement; n' < n only when the skeleton has fewer pixels. Every point is a pixel of
    the component. An empty component gives (0, 2).
    """
    # The frame of zeros makes thinning treat the picture's edge as background, as it is for the object.
    skeleton = skeletonize(np.pad(component, 1))[1:-1, 1:-1] & component
    ys, xs = np.nonzero(skeleton if skeleton.any() else component)
    chosen = rng.choice(len(xs), size=min(n, len(xs)), replace=False) if len(xs) else np.zeros(0, int)
    return np.stack([xs[chosen], ys[chosen]], axis=1).astype(np.float32)


def confidence_points(
    score: NDArray[np.float32], component: NDArray[np.bool_], n: int
) -> NDArray[np.float32]:
    """The `n` highest-scored pixels of the component: (n', 2) float32 (x, y), best first.

    The sampling that SeSAM's Fig. 2 argues against; here for the ablation.
    """
    ys, xs = np.nonzero(component)
    best = np.argsort(-score[ys, xs], kind="stable")[:n]
    return np.stack([xs[best], ys[best]], axis=1).astype(np.float32)


def select_mask(
    candidates: MaskCandidates,
    own: NDArray[np.bool_],
    others: NDArray[np.bool_],
    tau1: float = 0.3,
    tau2: float = 0.7,
    *,
    reading: Literal["ratios", "weights"] = "ratios",
) -> Selection:
    """Choose SAM's mask for one component by its weak-label coverage (SeSAM, step 3).

    `own` is the (H, W) weak label of the component, `others` that of all other classes. The paper's best
    (tau1, tau2) is (0.3, 0.7), but what the two numbers mean is not stated where we could read it. Both
    readings are ours:

    - ``"ratios"``: eligible is what covers at least `tau1` of `own` and at most `tau2` of `others`; of the
      eligible the one with the highest predicted IoU x coverage. (The other way round, 0.7 of `own` and 0.3 of
      `others`, refuses most right masks where seeds spill over the object: mIoU 0.74 against 0.86.)
    - ``"weights"``: the highest tau1 x predicted IoU + tau2 x coverage - overlap, if that is above 0 and the
      candidate touches `own`.

    On drawn labels (`benchmarks/sesam.py`, points) the two are as good as each other: the segmenter reaches 0.96
    and 0.97 of full supervision, with spreads that overlap. "ratios" is the default because `build` is measured
    with it.

    In both, an empty candidate and one that floods the picture (over `FLOOD_SHARE` of it, or touching all
    four borders) are refused.
    """
    judged = [
        _judge(i, mask, float(score), own, others, (tau1, tau2), reading)
        for i, (mask, score) in enumerate(zip(candidates.masks, candidates.scores, strict=True))
    ]
    if not judged:
        return Selection(None, 0.0, 0.0, 0.0, 0.0, "no_candidates")
    eligible = [s for s in judged if s.reason == "ok"]
    if not eligible:
        return max(judged, key=lambda s: s.predicted_iou)
    if reading == "weights":
        return max(eligible, key=lambda s: _weighted(s, tau1, tau2))
    return max(eligible, key=lambda s: s.predicted_iou * s.coverage)


def floods(mask: NDArray[np.bool_]) -> bool:
    """Does the (H, W) mask cover nearly all of the picture, or touch all four of its borders?"""
    touches = mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()
    return bool(mask.mean() > FLOOD_SHARE or touches)


def _judge(
    index: int,
    mask: NDArray[np.bool_],
    score: float,
    own: NDArray[np.bool_],
    others: NDArray[np.bool_],
    taus: tuple[float, float],
    reading: str,
) -> Selection:
    """The candidate with its numbers; `index` stays only if it may be chosen."""
    inside = int((mask & own).sum())
    coverage, precision = inside / max(int(own.sum()), 1), inside / max(int(mask.sum()), 1)
    overlap = int((mask & others).sum()) / max(int(others.sum()), 1)
    result = Selection(index, coverage, overlap, precision, score, "ok")
    reason = _refusal(result, mask, taus, reading)
    return result if reason == "ok" else Selection(None, coverage, overlap, precision, score, reason)


def _refusal(found: Selection, mask: NDArray[np.bool_], taus: tuple[float, float], reading: str) -> Reason:
    if not mask.any():
        return "empty"
    if floods(mask):
        return "flood"
    if reading == "weights":
        return "ok" if found.coverage > 0 and _weighted(found, *taus) > 0 else "score"
    if found.coverage < taus[0]:
        return "coverage"
    return "ok" if found.overlap <= taus[1] else "overlap"


def _weighted(found: Selection, tau1: float, tau2: float) -> float:
    return tau1 * found.predicted_iou + tau2 * found.coverage - found.overlap
