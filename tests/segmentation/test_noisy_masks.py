"""Masks of thousands of specks: the same results as with one full mask per component, in little memory."""

import tracemalloc
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from skimage.measure import label

from segsmith.config import LabelerConfig
from segsmith.datasets.objects import components, components_by_class
from segsmith.segmentation import masks as masks_module
from segsmith.segmentation.masks import DOUBT_RADIUS, MaskSettings, finish_mask, plan_mask
from segsmith.segmentation.merge import Region, merge_masks
from segsmith.segmentation.seeds import seed_masks, upsample_maps
from segsmith.segmentation.sesam import confidence_points, select_mask, skeleton_points
from segsmith.segmentation.weak_refiner import plan_weak, refine_weak
from segsmith.types import MaskCandidates

SETTINGS = MaskSettings.of(LabelerConfig(border_px=1))
SIDE = 48


def full_masks(mask, min_area_px=1):
    labelled = label(mask, connectivity=2)
    areas = np.bincount(labelled.ravel())[1:]
    order = np.argsort(-areas, kind="stable") + 1
    return [labelled == i for i in order if areas[i - 1] >= min_area_px] or [labelled == i for i in order[:1]]


class Plan:
    """(class, seed, points, score) of every component, as `plan_mask` and `plan_weak` chose them with full masks."""

    def __init__(self, seeds, pieces, scores, settings, rng, drawn=False):
        self.seeds, self.parts = seeds, []
        for index, piece in pieces:
            if settings.points_from == "confidence" and scores is not None:
                points = confidence_points(scores(index), piece, settings.points)
            else:
                points = skeleton_points(piece, settings.points, rng)
            score = 1.0 if drawn else float(scores(index)[piece].mean())
            self.parts.append((index, piece, points, score))


def outlined(plan, offer, settings):
    """(label map, numbers of outcomes, doubtful pixels), component by component."""
    regions, uncertain, doubt, how = [], np.zeros((SIDE, SIDE), bool), np.zeros((SIDE, SIDE), bool), Counter()
    for (index, piece, _, score), candidates in zip(plan.parts, offer, strict=True):
        others = np.zeros((SIDE, SIDE), bool)
        for other, seed in plan.seeds.items():
            others |= seed & (other != index)
        chosen = select_mask(candidates, piece, others, settings.tau1, settings.tau2)
        how[f"sam:{chosen.reason}"] += 1
        if chosen.index is None:
            uncertain |= piece
            doubt |= candidates.masks.any(axis=0) | (distance_transform_edt(~piece) <= DOUBT_RADIUS * SIDE)
        else:
            regions.append(Region(index, candidates.masks[chosen.index], score * chosen.predicted_iou))
    return merge_masks(regions, (SIDE, SIDE), uncertain, settings.border_px), dict(how), doubt


class Blobs:
    """A SAM whose masks are discs of three sizes around the first point; some of them flood the image."""

    name = "blobs"

    def __init__(self):
        self.calls = []

    def segment_many(self, images, point_sets):
        self.calls.append([len(sets) for sets in point_sets])
        return [[self.candidates(points) for points in sets] for sets in point_sets]

    def candidates(self, points):
        x, y = points[0]
        rows, columns = np.mgrid[:SIDE, :SIDE]
        away = np.hypot(rows - y, columns - x)
        radii = [0.5 + (x * 7 + y) % 5, 3 + (x + y * 3) % 40, 90]
        return MaskCandidates(
            np.stack([away <= r for r in radii]), np.array([0.9, 0.7, 0.95 - (x % 3) / 5], np.float32)
        )


def noise(seed, density):
    rng = np.random.default_rng(seed)
    weak = np.full((SIDE, SIDE), 255, np.uint8)
    drawn = rng.random((SIDE, SIDE)) < density
    weak[drawn] = rng.choice(np.array([0, 1, 2, 3], np.uint8), int(drawn.sum()))
    return weak


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_components_are_those_of_full_masks(density):
    weak = noise(1, density)
    by_class = components_by_class(weak)
    assert set(by_class) == {1, 2, 3}
    for value, pieces in by_class.items():
        for area in (1, 3, 1000):
            expected = full_masks(weak == value, area)
            found = components(weak == value, area)
            assert len(expected) == len(found)
            assert all(np.array_equal(a, b.mask()) for a, b in zip(expected, found, strict=True))
        assert len(pieces) == len(full_masks(weak == value))
        for full, piece in zip(full_masks(weak == value), pieces, strict=True):
            assert np.array_equal(full, piece.mask())
            assert np.array_equal(full[piece.window], piece.crop())


@pytest.mark.parametrize("points_from", ["skeleton", "confidence"])
@pytest.mark.parametrize("density", [0.1, 0.9])
def test_noisy_weak_labels_give_the_same_dense_labels(points_from, density, monkeypatch):
    settings = replace(SETTINGS, points_from=points_from, tau1=0.6, tau2=0.2)
    weak, step0 = noise(2, density), noise(3, 0.5)
    confidence = np.random.default_rng(4).random((SIDE, SIDE), np.float32)
    plan = plan_weak(weak, np.random.default_rng(0), settings, step0, confidence)

    known = np.where(weak == 255, step0, weak)
    seeds = {int(v) - 1: known == v for v in np.unique(known) if v != 255}
    pieces = [
        (index, piece)
        for index, seed in seeds.items()
        if index >= 0
        for piece in full_masks(seed)
        if piece.sum() >= settings.min_area_px or (weak[piece] == index + 1).any()
    ]
    scores = (lambda index: confidence) if points_from == "confidence" else None
    old = Plan(seeds, pieces, scores, settings, np.random.default_rng(0), drawn=True)
    assert len(plan.parts) == len(old.parts) > 40
    for new, (index, piece, points, _) in zip(plan.parts, old.parts, strict=True):
        assert new.class_index == index
        assert np.array_equal(new.seed.mask(), piece)
        assert new.points.dtype == points.dtype
        assert np.array_equal(new.points, points)

    label_map, how, doubt = outlined(old, [Blobs().candidates(part[2]) for part in old.parts], settings)
    assert len(how) > 1
    settled = label_map.copy()
    settled[doubt & (label_map == 0)] = 255
    settled[weak != 255] = weak[weak != 255]
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    for most in (masks_module.MAX_OFFERED, 3 * SIDE * SIDE * 7):
        monkeypatch.setattr(masks_module, "MAX_OFFERED", most)
        ((found, outcomes),) = refine_weak([image], [weak], [plan], Blobs(), settings)
        assert np.array_equal(found, settled)
        assert outcomes == how


def test_noisy_patch_scores_give_the_same_masks():
    settings = replace(SETTINGS, seed_level=0.85, min_area_px=2)
    maps = np.random.default_rng(5).random((3, SIDE, SIDE)).astype(np.float32)
    plan = plan_mask(maps, [0, 2], (SIDE, SIDE), np.random.default_rng(0), settings)
    scores = upsample_maps(maps, (SIDE, SIDE))
    seeds = seed_masks(scores, [0, 2], high=settings.seed_level, min_area_px=settings.min_area_px)
    pieces = [(i, piece) for i, seed in seeds.items() for piece in full_masks(seed, settings.min_area_px)]
    old = Plan(seeds, pieces, lambda index: scores[index], settings, np.random.default_rng(0))
    assert len(old.parts) > 5
    assert [part.score for part in plan.parts] == [score for *_, score in old.parts]
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    ((label_map, how),) = finish_mask([image], [plan], Blobs(), settings)
    expected = outlined(old, [Blobs().candidates(part[2]) for part in old.parts], settings)
    assert np.array_equal(label_map, expected[0])
    assert how == expected[1]
    ((seeds_only, count),) = finish_mask([image], [plan], None, settings)
    regions = [Region(index, piece, score) for index, piece, _, score in old.parts]
    assert np.array_equal(seeds_only, merge_masks(regions, (SIDE, SIDE), None, settings.border_px))
    assert count == {"seed": len(regions)}


def test_sam_is_asked_for_no_more_masks_at_a_time_than_fit(monkeypatch):
    monkeypatch.setattr(masks_module, "MAX_OFFERED", 3 * SIDE * SIDE * 10)
    weak = [noise(6, 0.004), np.full((SIDE, SIDE), 255, np.uint8), noise(7, 0.02), noise(8, 0.004)]
    plans = [plan_weak(w, np.random.default_rng(0), SETTINGS) for w in weak]
    images, sam = [np.zeros((SIDE, SIDE, 3), np.uint8)] * 4, Blobs()
    together = refine_weak(images, weak, plans, sam, SETTINGS)
    assert max(map(sum, sam.calls)) <= 10 < max(len(plan.parts) for plan in plans)
    for single in zip(images, weak, plans, together, strict=True):
        image, drawn, plan, (label_map, how) = single
        ((alone, alone_how),) = refine_weak([image], [drawn], [plan], Blobs(), SETTINGS)
        assert np.array_equal(label_map, alone)
        assert how == alone_how


def test_eight_thousand_specks_take_no_more_memory_than_a_few_maps():
    side = 256
    weak = np.full((side, side), 255, np.uint8)
    weak[::4, ::4] = 1
    weak[2::4, 2::4] = 2
    tracemalloc.start(1)
    settings, confidence = replace(SETTINGS, points_from="confidence"), np.ones(weak.shape, np.float32)
    plan = plan_weak(weak, np.random.default_rng(0), settings, None, confidence)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(plan.parts) == 2 * (side // 4) ** 2
    assert peak < 200 * side * side, "a full mask for each speck would take 8,192 bytes per pixel"
