"""A weakened dataset keeps its measuring splits; refining gives dense masks that keep what was drawn."""

import numpy as np
import pytest

from segsmith.config import LabelerConfig
from segsmith.errors import SegsmithError
from segsmith.segmentation.data import VocFolder
from segsmith.segmentation.masks import MaskSettings
from segsmith.tools.sam import SamSegmenter
from segsmith.tools.simulator import real_world
from segsmith.tools.test_world import write_voc
from segsmith.tools.weak_labels import refine_dataset, weaken_dataset

CLASSES = ("cat", "bus")
SETTINGS = MaskSettings.of(LabelerConfig())


def pairs(count, seed):
    for index, scene in enumerate(real_world(CLASSES, count, seed, 128)):
        yield f"s{seed}-{index}", scene.image, scene.class_mask(CLASSES)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    root = tmp_path_factory.mktemp("weak") / "full"
    write_voc(root, CLASSES, {"train": pairs(6, 1), "val": pairs(2, 2)})
    return root


def maps(root, split):
    data = VocFolder(root, split)
    return np.stack([data.raw(i)[1] for i in range(len(data))])


def test_scribbles_become_masks_that_keep_them(full, tmp_path):
    weak, out = tmp_path / "weak", tmp_path / "dense"
    share = weaken_dataset(full, weak, "scribbles", seed=0)
    assert 0 < share < 0.1
    assert np.array_equal(maps(weak, "val"), maps(full, "val"))
    done = refine_dataset(weak, out, SamSegmenter.load("mini", "cpu"), SETTINGS, seed=0)
    drawn, dense, truth = maps(weak, "train"), maps(out, "train"), maps(full, "train")
    assert np.array_equal(dense[drawn != 255], drawn[drawn != 255])
    assert done.known_share > 0.5
    known = dense != 255
    assert (dense == truth)[known].mean() > 0.9


def test_nothing_drawn_is_refused_and_leaves_nothing(full, tmp_path):
    weaken_dataset(full, tmp_path / "weak", "image", seed=0)
    with pytest.raises(SegsmithError, match="No pixel"):
        refine_dataset(tmp_path / "weak", tmp_path / "out", None, SETTINGS, seed=0)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_not_written_over(full, tmp_path):
    with pytest.raises(SegsmithError, match="exists"):
        weaken_dataset(full, full, "points", seed=0)
