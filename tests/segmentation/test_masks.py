"""Regions and the probabilities of their classes become a label map."""

from collections import Counter

import numpy as np

from segsmith.config import LabelerConfig
from segsmith.datasets.objects import components
from segsmith.segmentation.masks import Component, MaskSettings, Outlined, merge_outlined
from segsmith.segmentation.merge import Region

SETTINGS = MaskSettings.of(LabelerConfig(border_px=0))


def square(row, column):
    mask = np.zeros((30, 30), bool)
    mask[row : row + 8, column : column + 8] = True
    return mask


def found():
    rejected = [Component(0, components(square(20, 0))[0], np.zeros((1, 2), np.float32), 0.5)]
    regions = [Region(0, square(0, 0), 0.9), Region(1, square(0, 20), 0.9)]
    return Outlined((30, 30), regions, rejected, Counter({"sam:ok": 2, "sam:coverage": 1}))


def test_without_probabilities_all_regions_are_kept_and_the_rejected_seed_is_unknown():
    label_map, how = merge_outlined(found(), SETTINGS)
    assert (label_map[0, 0], label_map[0, 20], label_map[20, 0]) == (1, 2, 255)
    assert how == {"sam:ok": 2, "sam:coverage": 1}


def test_a_region_below_the_doubt_threshold_is_unknown():
    label_map, how = merge_outlined(found(), SETTINGS, [0.9, 0.01], doubt=0.05)
    assert (label_map[0, 0], label_map[0, 20]) == (1, 255)
    assert how["clip:doubted"] == 1


def test_a_rejected_seed_is_dropped_only_if_its_class_has_a_confirmed_region():
    assert merge_outlined(found(), SETTINGS, [0.9, 0.9], doubt=0.05)[0][20, 0] == 0
    assert merge_outlined(found(), SETTINGS, [0.01, 0.9], doubt=0.05)[0][20, 0] == 255


def test_the_more_probable_region_wins_a_conflict():
    both = Outlined((30, 30), [Region(0, square(0, 0), 0.9), Region(1, square(0, 0), 0.9)], [], Counter())
    assert (merge_outlined(both, SETTINGS, [0.3, 0.9], doubt=0.05)[0][:8, :8] == 2).all()
    assert (merge_outlined(both, SETTINGS, [0.9, 0.3], doubt=0.05)[0][:8, :8] == 1).all()
