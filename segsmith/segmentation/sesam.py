"""SeSAM (arXiv 2604.11170): point prompts for SAM from a coarse class mask, and selection among SAM's masks.

Step 1 separates instances (`segsmith.datasets.objects.components`), step 2 samples points on the skeleton of each,
and step 3 selects one of SAM's masks. SAM itself is behind `segsmith.protocols.PointSegmenter`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from skimage.morphology import skeletonize

from segsmith.types import MaskCandidates

FLOOD_SHARE = 0.9
"""A candidate that covers a larger share of the image is background, not an object."""

THINNED_PX = 256
"""Longest side that `skeleton_points` thins; seeds are enlarged from patch scores and hold no finer detail (ours)."""

Reason = Literal["ok", "no_candidates", "empty", "flood", "coverage", "overlap", "score"]


@dataclass(frozen=True)
class Selection:
    """The candidate that step 3 selected, and why.

    `index` is the candidate's row, or None if all were rejected; then the other fields describe the rejected
    candidate with the highest predicted IoU, and `reason` is why it was rejected. All numbers are in [0, 1]:
    `coverage` is the share of the component's weak label inside the candidate, `overlap` the share of the other
    classes' weak label inside it, and `precision` the share of the candidate inside the component's weak label.
    """

    index: int | None
    coverage: float
    overlap: float
    precision: float
    predicted_iou: float
    reason: Reason


def skeleton_points(component: NDArray[np.bool_], n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Up to `n` points of the component's topological skeleton (SeSAM, step 2): (n', 2) float32 (x, y).

    Sampled uniformly without replacement; n' < n only if the skeleton has fewer pixels. Every point is a pixel of
    the (H, W) component. Only the component's bounding box is thinned, and of a box with a side above
    `THINNED_PX` every second, third ... pixel. An empty component gives (0, 2).
    """
    rows, columns = np.flatnonzero(component.any(axis=1)), np.flatnonzero(component.any(axis=0))
    if not len(rows):
        return np.zeros((0, 2), np.float32)
    top, left = int(rows[0]), int(columns[0])
    box = component[top : rows[-1] + 1, left : columns[-1] + 1]
    step = math.ceil(max(box.shape) / THINNED_PX)
    # A component that is thinner than the step may have few pixels on the grid.
    if step > 1 and (box[::step, ::step].sum() < n):
        step = 1
    box = box[::step, ::step]
    # The border of zeros makes thinning treat the outside of the image as background.
    skeleton = skeletonize(np.pad(box, 1))[1:-1, 1:-1] & box
    ys, xs = np.nonzero(skeleton if skeleton.any() else box)
    chosen = rng.choice(len(xs), size=min(n, len(xs)), replace=False)
    return np.stack([left + step * xs[chosen], top + step * ys[chosen]], axis=1).astype(np.float32)


def confidence_points(
    score: NDArray[np.float32], component: NDArray[np.bool_], n: int
) -> NDArray[np.float32]:
    """The `n` pixels of the component with the highest score: (n', 2) float32 (x, y), the highest first.

    An ablation: SeSAM (Fig. 2) argues against this sampling.
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
    """Select SAM's mask for one component by how much of the weak label it covers (SeSAM, step 3).

    `own` is the (H, W) weak label of the component, `others` that of all other classes. The paper's best
    (tau1, tau2) is (0.3, 0.7), but the parts of it that we could read do not define the two. Both readings are ours:

    - ``"ratios"``: candidates that cover at least `tau1` of `own` and at most `tau2` of `others` are eligible. The
      eligible one with the highest predicted IoU x coverage is selected. (The reverse, 0.7 of `own` and 0.3 of
      `others`, rejects most correct masks where seeds extend beyond the object: mIoU 0.74 instead of 0.86.)
    - ``"weights"``: the candidate with the highest tau1 x predicted IoU + tau2 x coverage - overlap is selected, if
      that is above 0 and the candidate overlaps `own`.

    With users' labels (`benchmarks/sesam.py`, points) the readings are equally good: the segmenter reaches 0.96 and
    0.97 of the mIoU with full supervision, and the spreads overlap. "ratios" is the default because `build` was
    measured with it.

    Both reject empty candidates and candidates that flood the image (`floods`).
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
    """Whether the (H, W) mask covers more than `FLOOD_SHARE` of the image or touches all four of its borders."""
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
    """The numbers of a candidate; its `index` is None if it is rejected."""
    inside = int((mask & own).sum())
    coverage, precision = inside / max(int(own.sum()), 1), inside / max(int(mask.sum()), 1)
    overlap = int((mask & others).sum()) / max(int(others.sum()), 1)
    result = Selection(index, coverage, overlap, precision, score, "ok")
    reason = _rejection(result, mask, taus, reading)
    return result if reason == "ok" else Selection(None, coverage, overlap, precision, score, reason)


def _rejection(found: Selection, mask: NDArray[np.bool_], taus: tuple[float, float], reading: str) -> Reason:
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
