"""Regions and what is believed of them become a label map."""

from collections import Counter

import numpy as np

from segsmith.config import LabelerConfig
from segsmith.segmentation.masks import Component, MaskSettings, Outlined, merge_outlined
from segsmith.segmentation.merge import Region

SETTINGS = MaskSettings.of(LabelerConfig(border_px=0))


def square(row, column):
    mask = np.zeros((30, 30), bool)
    mask[row : row + 8, column : column + 8] = True
    return mask


def found():
    refused = [Component(0, square(20, 0), np.zeros((1, 2), np.float32), 0.5)]
    regions = [Region(0, square(0, 0), 0.9), Region(1, square(0, 20), 0.9)]
    return Outlined((30, 30), regions, refused, Counter({"sam:ok": 2, "sam:coverage": 1}))


def test_without_beliefs_all_regions_stand_and_the_refused_seed_is_unknown():
    label_map, how = merge_outlined(found(), SETTINGS)
    assert (label_map[0, 0], label_map[0, 20], label_map[20, 0]) == (1, 2, 255)
    assert how == {"sam:ok": 2, "sam:coverage": 1}


def test_a_doubted_region_is_unknown():
    label_map, how = merge_outlined(found(), SETTINGS, [0.9, 0.01], doubt=0.05)
    assert (label_map[0, 0], label_map[0, 20]) == (1, 255)
    assert how["clip:doubted"] == 1


def test_a_refused_seed_is_let_go_where_its_class_has_a_believed_region_and_not_else():
    assert merge_outlined(found(), SETTINGS, [0.9, 0.9], doubt=0.05)[0][20, 0] == 0
    assert merge_outlined(found(), SETTINGS, [0.01, 0.9], doubt=0.05)[0][20, 0] == 255


def test_where_regions_conflict_the_better_believed_wins():
    both = Outlined((30, 30), [Region(0, square(0, 0), 0.9), Region(1, square(0, 0), 0.9)], [], Counter())
    assert (merge_outlined(both, SETTINGS, [0.3, 0.9], doubt=0.05)[0][:8, :8] == 2).all()
    assert (merge_outlined(both, SETTINGS, [0.9, 0.3], doubt=0.05)[0][:8, :8] == 1).all()
