"""A weakened dataset keeps its measuring splits; refining gives dense masks that keep what was drawn."""

import numpy as np
import pytest

from segsmith.config import LabelerConfig
from segsmith.datasets.objects import present_classes
from segsmith.datasets.voc_folder import VocFolder
from segsmith.datasets.voc_layout import write_voc
from segsmith.errors import SegsmithError
from segsmith.segmentation.masks import MaskSettings
from segsmith.segmentation.sources import Prediction
from segsmith.segmentation.weak_refiner import WeakRefiner
from segsmith.tools.images.simulator import unseen_scenes
from segsmith.tools.vision.sam import SamSegmenter
from segsmith.types import PatchScores
from segsmith.workflows.dense_labels import find_seeds, maps_of_file, quality, write_dense
from segsmith.workflows.weaken import weaken_dataset

CLASSES = ("cat", "bus")
SETTINGS = MaskSettings.of(LabelerConfig())


def pairs(count, seed):
    for index, scene in enumerate(unseen_scenes(CLASSES, count, seed, 128)):
        yield f"s{seed}-{index}", scene.image, scene.class_mask(CLASSES)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    root = tmp_path_factory.mktemp("weak") / "full"
    write_voc(root, CLASSES, {"train": pairs(6, 1), "val": pairs(2, 2)})
    return root


def maps(root, split):
    data = VocFolder(root, split)
    return np.stack([data.raw(i)[1] for i in range(len(data))])


def refiner(**changes):
    return WeakRefiner(SamSegmenter.load("mini", "cpu"), SETTINGS, 0, threshold=0.9, **changes)


def test_scribbles_become_masks_that_keep_them(full, tmp_path):
    weak, out = tmp_path / "weak", tmp_path / "dense"
    share = weaken_dataset(full, weak, "scribbles", seed=0)
    assert 0 < share < 0.1
    assert np.array_equal(maps(weak, "val"), maps(full, "val"))
    write_dense(weak, out, refiner(), None, 0.9)
    drawn, dense, truth = maps(weak, "train"), maps(out, "train"), maps(full, "train")
    assert np.array_equal(dense[drawn != 255], drawn[drawn != 255])
    known = dense != 255
    assert known.mean() > 0.5
    assert (dense == truth)[known].mean() > 0.9


def test_a_sure_teacher_fills_what_sam_leaves_open_and_nothing_else(full, tmp_path):
    weak = tmp_path / "weak"
    weaken_dataset(full, weak, "points", seed=0)
    write_dense(weak, tmp_path / "alone", refiner(), None, 0.9)

    def taught(confidence):
        out = tmp_path / f"taught{confidence}"
        views = (Prediction(t, np.full(t.shape, confidence, np.float32)) for t in maps(full, "train"))
        write_dense(weak, out, refiner(step0=False), views, 0.9)
        return maps(out, "train")

    alone, sure = maps(tmp_path / "alone", "train"), taught(0.95)
    assert (alone == 255).any()
    assert np.array_equal(sure[alone == 255], maps(full, "train")[alone == 255])
    assert np.array_equal(sure[alone != 255], alone[alone != 255])
    assert np.array_equal(taught(0.85), alone)


def test_image_labels_are_kept_as_such_and_become_seeds_of_those_classes_alone(full, tmp_path):
    weak = tmp_path / "weak"
    assert weaken_dataset(full, weak, "image", seed=0) == 0
    data = VocFolder(weak, "train")
    truth = [present_classes(m) for m in maps(full, "train")]
    assert [data.present(i) for i in range(len(data))] == truth

    class Upper:
        """Scores every class in the upper half."""

        name = "upper"

        def out_of_fold(self, images, labels, groups, on_maps):
            self.labels = labels
            scores = np.zeros((len(images), 2, 8, 8), np.float32)
            scores[:, :, :4] = 1
            for part in np.array_split(np.arange(len(images))[::-1], 2):  # in batches, in any order
                on_maps(part, scores[part])
            return PatchScores(scores[:0], labels)

    classifier = Upper()
    find_seeds(weak, tmp_path / "seeds.zip", classifier, SETTINGS, 0)
    assert [tuple(np.nonzero(row)[0] + 1) for row in classifier.labels] == truth
    for (_, seeds), present in zip(maps_of_file(tmp_path / "seeds.zip", data.ids), truth, strict=True):
        assert set(np.unique(seeds)) <= {255, *present}
        assert (seeds[80:] == 255).all()


def test_quality_counts_labelled_pixels_only():
    truth = {"a": np.array([[0, 1], [1, 0]], np.uint8)}
    said = [("a", np.array([[0, 1], [255, 255]], np.uint8)), ("unknown", np.zeros((2, 2), np.uint8))]
    found = quality(said, truth, ("cat",))
    assert (found.miou, found.known) == (1.0, 0.5)


def test_a_folder_that_exists_is_not_written_over(full, tmp_path):
    with pytest.raises(SegsmithError, match="exists"):
        weaken_dataset(full, full, "points", seed=0)
