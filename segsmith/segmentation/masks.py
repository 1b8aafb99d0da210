"""From patch scores and labels to a label map: the three steps of SeSAM, with SAM behind a protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects

from segsmith.config import LabelerConfig
from segsmith.datasets.objects import Piece, components
from segsmith.protocols import PointSegmenter
from segsmith.segmentation.merge import Region, merge_masks
from segsmith.segmentation.seeds import seed_masks, upsample_maps
from segsmith.segmentation.sesam import confidence_points, select_mask, skeleton_points
from segsmith.types import Image, MaskCandidates

DOUBT_RADIUS = 1 / 16
"""Pixels this near to a rejected component's seed are in doubt; a fraction of the image's longer side (ours)."""
MAX_OFFERED = 1 << 30
"""Pixels of SAM's masks (one byte each) that are in memory at a time; a noisy image has thousands of components."""
MASKS_PER_COMPONENT = 3
"""SAM's number of masks for a set of points, of which `MAX_OFFERED` allows for."""


@dataclass(frozen=True)
class MaskSettings:
    """The labeler's settings for masks; see `LabelerConfig`."""

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
        """The labeler's settings for masks, from its config."""
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Component:
    """One connected piece of a class's seed, for which SAM is prompted with points."""

    class_index: int
    seed: Piece
    points: NDArray[np.float32]
    score: float
    """Mean patch score inside the seed, in [0, 1]."""


@dataclass(frozen=True)
class PlannedMask:
    """An image's components and their points, the input for SAM (SeSAM, steps 1 and 2).

    `size` is (H, W); `seeds` maps a class index to its (H, W) bool seed.
    """

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
    """Seeds, components and points of the `present` class indices (SeSAM, steps 1 and 2).

    `maps` are (C, h, w) patch scores in [0, 1], which are enlarged to `size` (H, W). `rng` chooses the points.
    """
    scores = upsample_maps(maps, size)
    seeds = seed_masks(scores, present, high=settings.seed_level, min_area_px=settings.min_area_px)
    plan = PlannedMask(size, seeds)
    for index, seed in seeds.items():
        for piece in components(seed, settings.min_area_px):
            points = sample_points(piece, rng, settings, scores[index])
            plan.parts.append(
                Component(index, piece, points, float(scores[index][piece.window][piece.crop()].mean()))
            )
    return plan


def sample_points(
    piece: Piece,
    rng: np.random.Generator,
    settings: MaskSettings,
    confidence: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Up to `settings.points` points of a component: (n, 2) float32 (x, y) pixels of the image (SeSAM, step 2).

    They are on its skeleton, or, with ``points_from = "confidence"``, where `confidence` (H, W) is highest, if given.
    """
    if settings.points_from == "confidence" and confidence is not None:
        points = confidence_points(confidence[piece.window], piece.crop(), settings.points)
    else:
        points = skeleton_points(piece.crop(), settings.points, rng)
    return points + np.array(piece.corner, np.float32)


@dataclass
class Outlined:
    """An image's regions, one per component, before they are merged into a label map."""

    size: tuple[int, int]
    regions: list[Region]
    rejected: list[Component]
    """Components for which none of SAM's masks was selected."""
    how: Counter[str]
    """Number of components by outcome: ``sam:`` and a reason of `Selection`, or ``seed`` without SAM."""
    offered: NDArray[np.bool_] | None = None
    """(H, W) union of SAM's masks for the rejected components; None if none was rejected."""


def outline(
    images: Sequence[Image],
    plans: Sequence[PlannedMask],
    segmenter: PointSegmenter | None,
    settings: MaskSettings,
) -> list[Outlined]:
    """The regions of each image (SeSAM, step 3). Without a segmenter, the seeds are the regions."""
    if segmenter is None:
        return [_seeds_as_regions(plan) for plan in plans]
    found = [Outlined(plan.size, [], [], Counter()) for plan in plans]
    for batch in _batches(plans):
        sets = [[part.points for part in plans[i].parts[start:stop]] for i, start, stop in batch]
        offers = segmenter.segment_many([images[i] for i, _, _ in batch], sets)
        for (i, start, stop), offer in zip(batch, offers, strict=True):
            _select(plans[i], plans[i].parts[start:stop], offer, found[i], settings)
    return found


def _batches(plans: Sequence[PlannedMask]) -> Iterator[list[tuple[int, int, int]]]:
    """Groups of (image, first component, end) for which SAM's masks take at most `MAX_OFFERED`.

    An image is in several groups, and embedded as often, only if its own masks exceed that.
    """
    batch: list[tuple[int, int, int]] = []
    left = MAX_OFFERED
    for i, plan in enumerate(plans):
        each = MASKS_PER_COMPONENT * plan.size[0] * plan.size[1]
        most = max(1, MAX_OFFERED // each)
        for start in range(0, max(1, len(plan.parts)), most):
            stop = min(start + most, len(plan.parts))
            cost = each * (stop - start)
            if batch and cost > left:
                yield batch
                batch, left = [], MAX_OFFERED
            batch.append((i, start, stop))
            left -= cost
    if batch:
        yield batch


def finish_mask(
    images: Sequence[Image],
    plans: Sequence[PlannedMask],
    segmenter: PointSegmenter | None,
    settings: MaskSettings,
) -> list[tuple[NDArray[np.uint8], dict[str, int]]]:
    """The (H, W) uint8 label map of each image, with the number of its components by outcome (`Outlined.how`)."""
    return [merge_outlined(found, settings) for found in outline(images, plans, segmenter, settings)]


def doubtful(found: Outlined) -> NDArray[np.bool_]:
    """(H, W) bool: where an object without a mask may be, in SAM's rejected masks or near a rejected seed."""
    if not found.rejected:
        return np.zeros(found.size, dtype=bool)
    far = np.ones(found.size, dtype=bool)
    for part in found.rejected:
        far[part.seed.window] &= ~part.seed.crop()
    near = np.asarray(distance_transform_edt(far) <= DOUBT_RADIUS * max(found.size))
    return near if found.offered is None else near | found.offered


def merge_outlined(
    found: Outlined,
    settings: MaskSettings,
    probabilities: Sequence[float] | None = None,
    doubt: float = 0.0,
    doubted: Collection[int] = (),
) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """The (H, W) uint8 label map of one image, with the number of its components by outcome.

    The seed of a rejected component is 255, because the extent of that object is unknown. `probabilities`, one per
    region and in [0, 1], say how likely the region shows its class. With them, a region below `doubt` is 255, the
    other regions' scores are multiplied by theirs, and a rejected component is dropped if its class has a region
    left: patch scores often extend beyond the object. Regions of the `doubted` class indices are 255.
    """
    how = found.how.copy()
    kept, uncertain = list[Region](), np.zeros(found.size, dtype=bool)
    if probabilities is None:
        kept = found.regions
    else:
        for region, probability in zip(found.regions, probabilities, strict=True):
            if probability < doubt:
                uncertain[region.window] |= region.mask
                how["clip:doubted"] += 1
            else:
                kept.append(replace(region, score=region.score * probability))
    for region in kept:
        if region.class_index in doubted:
            uncertain[region.window] |= region.mask
            how["witnesses:doubted"] += 1
    kept = [region for region in kept if region.class_index not in doubted]
    confirmed = {region.class_index for region in kept} if probabilities is not None else set()
    for part in found.rejected:
        if part.class_index not in confirmed:
            uncertain[part.seed.window] |= part.seed.crop()
    return merge_masks(kept, found.size, uncertain, settings.border_px), dict(how)


def _seeds_as_regions(plan: PlannedMask) -> Outlined:
    regions = [
        Region(part.class_index, part.seed.crop(), part.score, window=part.seed.window) for part in plan.parts
    ]
    return Outlined(plan.size, regions, [], Counter({"seed": len(regions)} if regions else {}))


def _select(
    plan: PlannedMask,
    parts: Sequence[Component],
    offer: Sequence[MaskCandidates],
    found: Outlined,
    settings: MaskSettings,
) -> None:
    """Add to `found` what becomes of `parts`, some of the plan's components, given SAM's masks for them."""
    others: dict[int, NDArray[np.bool_]] = {}
    for part, candidates in zip(parts, offer, strict=True):
        if part.class_index not in others:
            seeds = [seed for index, seed in plan.seeds.items() if index != part.class_index]
            # The components of a class follow each other, so that one class's map is needed at a time.
            others = {part.class_index: np.logical_or.reduce([np.zeros(plan.size, bool), *seeds])}
        chosen = select_mask(
            candidates, part.seed.mask(), others[part.class_index], settings.tau1, settings.tau2,
            reading=settings.selection,
        )  # fmt: skip
        found.how[f"sam:{chosen.reason}"] += 1
        if chosen.index is None:
            found.rejected.append(part)
            offered = np.any(candidates.masks, axis=0)
            found.offered = offered if found.offered is None else found.offered | offered
        else:
            mask, score = candidates.masks[chosen.index], part.score * chosen.predicted_iou
            (window,) = find_objects(mask.view(np.uint8))
            found.regions.append(Region(part.class_index, mask[window].copy(), score, window=window))
