"""SAM is tried on drawn labels that it is not shown."""

import numpy as np
import pytest

from segsmith.config import LabelerConfig
from segsmith.datasets.voc_folder import VocFolder
from segsmith.datasets.voc_layout import write_voc
from segsmith.datasets.weak_labels import weaken
from segsmith.segmentation.masks import MaskSettings
from segsmith.segmentation.sam_trial import SamTrial, try_sam
from segsmith.types import MaskCandidates

SETTINGS = MaskSettings.of(LabelerConfig(border_px=0))
TRUTH = np.full((64, 64), 1, np.uint8)
TRUTH[:, 20:40] = 2
TRUTH[30:, 40:] = 3


class Stripes:
    """A SAM whose masks are the true parts, with as much to the right of them, or only their upper `height` pixels."""

    name = "stripes"

    def __init__(self, shift=0, height=64):
        self.shift, self.height, self.asked = shift, height, []

    def segment_many(self, images, point_sets):
        self.asked += [len(sets) for sets in point_sets]
        return [[self.mask(*points[0].astype(int)) for points in sets] for sets in point_sets]

    def mask(self, x, y):
        part = np.equal(TRUTH, TRUTH[y, x])
        mask = part | np.roll(part, self.shift, axis=1)
        mask[self.height :] = False
        return MaskCandidates(mask[None], np.ones(1, np.float32))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("trial") / "voc"
    image = np.zeros((64, 64, 3), np.uint8)
    maps = [weaken(TRUTH, "scribbles", np.random.default_rng(i)) for i in range(30)]
    write_voc(root, ("a", "b", "c"), {"train": [(f"i{i}", image, m) for i, m in enumerate(maps)]})
    return VocFolder(root, "train")


def test_masks_that_fit_agree(drawn):
    trial = try_sam(drawn, Stripes(), SETTINGS, 1, 0)
    assert (trial.masks > 12, trial.agreement) == (True, 1)
    assert trial == try_sam(drawn, Stripes(), SETTINGS, 1, 0)


def test_masks_over_drawn_labels_of_other_classes_do_not(drawn):
    trial = try_sam(drawn, Stripes(shift=20), SETTINGS, 0.6, 0)
    assert trial.crossing > 0.5 * trial.masks
    assert not trial.helps(0.6)


def test_masks_that_miss_what_was_held_out_of_their_component_do_not(drawn):
    trial = try_sam(drawn, Stripes(height=30), SETTINGS, 0.9, 0)
    assert trial.partial > 0.2 * trial.masks


def test_it_ends_when_more_images_would_not_change_the_answer(drawn):
    patient, hasty = Stripes(shift=20), Stripes(shift=20)
    everything = try_sam(drawn, patient, SETTINGS, 0, 0)
    enough = try_sam(drawn, hasty, SETTINGS, 0.9, 0)
    assert len(hasty.asked) < len(patient.asked) == 30
    assert (enough.helps(0.9), everything.helps(0.9)) == (False, False)


def test_an_image_with_many_components_is_not_asked_about_all_of_them(tmp_path):
    dots = np.full((64, 64), 255, np.uint8)
    dots[4::8, 4::8] = TRUTH[4::8, 4::8]
    image = np.zeros((64, 64, 3), np.uint8)
    write_voc(tmp_path / "voc", ("a", "b", "c"), {"train": [("i", image, dots)]})
    sam = Stripes()
    try_sam(VocFolder(tmp_path / "voc", "train"), sam, SETTINGS, 0.4, 0)
    assert sam.asked == [8]


def test_too_few_masks_say_nothing():
    assert SamTrial(3, 3, 0).helps(1)
    assert not SamTrial(300, 300, 0).helps(0.4)
