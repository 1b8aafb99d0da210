"""From patch scores and labels to a label map: SeSAM's three steps joined, with SAM behind a protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from segsmith.config import LabelerConfig
from segsmith.datasets.objects import components
from segsmith.protocols import PointSegmenter
from segsmith.segmentation.merge import Region, merge_masks
from segsmith.segmentation.seeds import seed_masks, upsample_maps
from segsmith.segmentation.sesam import confidence_points, select_mask, skeleton_points
from segsmith.types import Image, MaskCandidates

NEAR = 1 / 16
"""How near a refused component's seed pixels are in doubt, as a share of the picture's longer side (ours)."""


@dataclass(frozen=True)
class MaskSettings:
    """The labeler's settings that shape a mask; see `LabelerConfig`."""

    points: int
    tau1: float
    tau2: float
    selection: Literal["ratios", "weights"]
    points_from: Literal["skeleton", "confidence"]
    border_px: int
    seed_level: float
    min_area_px: int

    @classmethod
    def of(cls, config: LabelerConfig) -> MaskSettings:
        """The part of the labeler's config that shapes masks."""
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Component:
    """One connected piece of a class's seed: what SAM is asked about."""

    class_index: int
    seed: NDArray[np.bool_]
    points: NDArray[np.float32]
    score: float
    """Mean patch score inside the seed, [0, 1]."""


@dataclass(frozen=True)
class PlannedMask:
    """A picture's components, ready for SAM (SeSAM, steps 1 and 2)."""

    size: tuple[int, int]
    seeds: dict[int, NDArray[np.bool_]]
    parts: list[Component] = field(default_factory=list)


def plan_mask(
    maps: NDArray[np.float32],
    present: Sequence[int],
    size: tuple[int, int],
    rng: np.random.Generator,
    settings: MaskSettings,
) -> PlannedMask:
    """Seeds, components and skeleton points of the `present` classes from (C, h, w) patch scores."""
    scores = upsample_maps(maps, size)
    seeds = seed_masks(scores, present, high=settings.seed_level, min_area_px=settings.min_area_px)
    plan = PlannedMask(size, seeds)
    for index, seed in seeds.items():
        for piece in components(seed, settings.min_area_px):
            points = sample_points(piece, rng, settings, scores[index])
            plan.parts.append(Component(index, piece, points, float(scores[index][piece].mean())))
    return plan


def sample_points(
    piece: NDArray[np.bool_],
    rng: np.random.Generator,
    settings: MaskSettings,
    confidence: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """(n, 2) float32 (x, y) points of a piece (SeSAM, step 2).

    Taken from its skeleton, or where `confidence` (H, W) is highest if the settings say so and there is one.
    """
    if settings.points_from == "confidence" and confidence is not None:
        return confidence_points(confidence, piece, settings.points)
    return skeleton_points(piece, settings.points, rng)


@dataclass(frozen=True)
class Outlined:
    """A picture's regions, each from one component, before they are merged into a label map."""

    size: tuple[int, int]
    regions: list[Region]
    refused: list[Component]
    """Components of which SAM gave no acceptable mask."""
    how: Counter[str]
    """How the components were resolved; reasons as in `Selection`, after ``sam:``."""
    offered: list[NDArray[np.bool_]] = field(default_factory=list)
    """(H, W) what SAM's masks for each refused component cover together."""


def outline(
    images: Sequence[Image],
    plans: Sequence[PlannedMask],
    segmenter: PointSegmenter | None,
    settings: MaskSettings,
) -> list[Outlined]:
    """Regions of all pictures (SeSAM, step 3). Without a segmenter the seeds themselves are the regions."""
    if segmenter is None:
        offers: list[list[MaskCandidates]] = [[] for _ in plans]
    else:
        offers = segmenter.segment_many(images, [[part.points for part in plan.parts] for plan in plans])
    return [_outline(plan, offer, settings) for plan, offer in zip(plans, offers, strict=True)]


def finish_mask(
    images: Sequence[Image],
    plans: Sequence[PlannedMask],
    segmenter: PointSegmenter | None,
    settings: MaskSettings,
) -> list[tuple[NDArray[np.uint8], dict[str, int]]]:
    """Label maps (H, W) of all pictures, each with a count of how its components were resolved."""
    return [merge_outlined(found, settings) for found in outline(images, plans, segmenter, settings)]


def doubtful(found: Outlined) -> NDArray[np.bool_]:
    """(H, W) where objects may be of which SAM found no mask: in what it offered, or near their seeds."""
    doubt = np.zeros(found.size, dtype=bool)
    for part, offered in zip(found.refused, found.offered, strict=True):
        doubt |= offered | (distance_transform_edt(~part.seed) <= NEAR * max(found.size))
    return doubt


def merge_outlined(
    found: Outlined, settings: MaskSettings, beliefs: Sequence[float] | None = None, doubt: float = 0.0
) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """The label map of one picture, and how its components were resolved.

    A refused component leaves its seed as 255: SAM could not say where that object ends. With `beliefs`, the
    probability in [0, 1] that each region shows its class, a region under `doubt` is 255, the others weigh by
    it where they conflict, and a refused component is let go when its class has a believed region: patch scores
    spill over.
    """
    how = found.how.copy()
    kept, uncertain = found.regions, np.zeros(found.size, dtype=bool)
    if beliefs is not None:
        kept = []
        for region, belief in zip(found.regions, beliefs, strict=True):
            if belief < doubt:
                uncertain |= region.mask
                how["clip:doubted"] += 1
            else:
                kept.append(replace(region, score=region.score * belief))
    believed = {region.class_index for region in kept} if beliefs is not None else set()
    for part in found.refused:
        if part.class_index not in believed:
            uncertain |= part.seed
    return merge_masks(kept, found.size, uncertain, settings.border_px), dict(how)


def _outline(plan: PlannedMask, offer: Sequence[MaskCandidates], settings: MaskSettings) -> Outlined:
    if plan.parts and not offer:
        seeds = [Region(part.class_index, part.seed, part.score) for part in plan.parts]
        return Outlined(plan.size, seeds, [], Counter({"seed": len(seeds)}))
    found = Outlined(plan.size, [], [], Counter())
    for part, candidates in zip(plan.parts, offer, strict=True):
        others = np.zeros(plan.size, dtype=bool)
        for index, seed in plan.seeds.items():
            if index != part.class_index:
                others |= seed
        chosen = select_mask(
            candidates, part.seed, others, settings.tau1, settings.tau2, reading=settings.selection
        )
        found.how[f"sam:{chosen.reason}"] += 1
        if chosen.index is None:
            found.refused.append(part)
            found.offered.append(np.any(candidates.masks, axis=0))
        else:
            mask, score = candidates.masks[chosen.index], part.score * chosen.predicted_iou
            found.regions.append(Region(part.class_index, mask, score))
    return found
