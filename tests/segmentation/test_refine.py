"""Refinement keeps every drawn label, uses SAM's masks that agree with them, and leaves the rest unknown."""

from dataclasses import replace

import numpy as np
import pytest

from segsmith.config import LabelerConfig
from segsmith.datasets.weak_labels import weaken
from segsmith.segmentation.masks import MaskSettings
from segsmith.segmentation.weak_refiner import BACKGROUND, plan_weak, refine_weak
from segsmith.types import MaskCandidates

SETTINGS = MaskSettings.of(LabelerConfig(border_px=0))


def truth():
    label_map = np.zeros((64, 64), np.uint8)
    label_map[8:30, 8:30] = 1
    label_map[36:60, 30:60] = 2
    return label_map


class Oracle:
    """A SAM that returns the true object under the first point, or, for `lost` classes, the whole image."""

    name = "oracle"

    def __init__(self, label_map, lost=()):
        self.label_map, self.lost = label_map, lost

    def segment_many(self, images, point_sets):
        return [[self.candidates(points) for points in sets] for sets in point_sets]

    def candidates(self, points):
        x, y = points[0].astype(int)
        value = self.label_map[y, x]
        mask = np.ones_like(self.label_map, bool) if value in self.lost else self.label_map == value
        return MaskCandidates(mask[None], np.array([0.9], np.float32))


def refined(weak, lost=(), step0=None):
    plan = plan_weak(weak, np.random.default_rng(0), SETTINGS, step0)
    image = np.zeros((64, 64, 3), np.uint8)
    ((label_map, how),) = refine_weak([image], [weak], [plan], Oracle(truth(), lost), SETTINGS)
    return label_map, how


@pytest.mark.parametrize("kind", ["points", "scribbles", "coarse"])
def test_weak_labels_become_the_truth_with_a_perfect_sam(kind):
    label_map, how = refined(weaken(truth(), kind, np.random.default_rng(1)))
    assert np.array_equal(label_map, truth())
    assert how == {"sam:ok": 2}


def test_pixels_are_not_background_where_sam_fails():
    weak = weaken(truth(), "scribbles", np.random.default_rng(1))
    label_map, how = refined(weak, lost=(2,))
    assert how == {"sam:ok": 1, "sam:flood": 1}
    assert np.array_equal(label_map == 1, truth() == 1)
    assert np.array_equal(label_map[weak != 255], weak[weak != 255])
    assert (label_map[(truth() == 0) & (weak == 255)] == 255).all()


def test_a_drawn_label_outranks_sam():
    weak = weaken(truth(), "points", np.random.default_rng(1))
    weak[10, 10] = 0  # the user marks it as background
    assert refined(weak)[0][10, 10] == 0


def test_confident_predictions_never_replace_drawn_labels():
    weak = weaken(truth(), "points", np.random.default_rng(1))
    weak[truth() == 2] = 255
    step0 = np.full_like(weak, 255)
    step0[40:44, 40:44] = 2
    step0[weak == 1] = 2
    label_map, _ = refined(weak, step0=step0)
    assert np.array_equal(label_map == 2, truth() == 2)
    assert (label_map[weak == 1] == 1).all()


def test_a_small_prediction_is_no_component_but_a_drawn_pixel_is():
    weak = np.full((64, 64), 255, np.uint8)
    weak[10, 10] = 1
    step0 = np.full_like(weak, 255)
    step0[40:42, 40:42] = 2
    step0[50:56, 50:56] = 2
    plan = plan_weak(weak, np.random.default_rng(0), SETTINGS, step0)
    assert [(part.class_index, part.seed.area) for part in plan.parts] == [(0, 1), (1, 36)]


def test_points_are_at_the_highest_confidence_if_so_set():
    weak = weaken(truth(), "coarse", np.random.default_rng(1))
    confidence = np.zeros(weak.shape, np.float32)
    confidence[20:22, 20:22] = 1
    settings = replace(SETTINGS, points_from="confidence", points=4)
    plan = plan_weak(weak, np.random.default_rng(0), settings, confidence=confidence)
    assert {tuple(p) for p in plan.parts[0].points} == {(20, 20), (20, 21), (21, 20), (21, 21)}
    blind = plan_weak(weak, np.random.default_rng(0), settings)
    assert np.array_equal(
        blind.parts[0].points,
        plan_weak(weak, np.random.default_rng(0), replace(SETTINGS, points=4)).parts[0].points,
    )


def test_background_is_a_seed_but_no_component():
    plan = plan_weak(weaken(truth(), "coarse", np.random.default_rng(1)), np.random.default_rng(0), SETTINGS)
    assert BACKGROUND in plan.seeds
    assert {part.class_index for part in plan.parts} == {0, 1}
