"""Correcting SAM's masks with a network that sees the image and the mask."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage.morphology import skeletonize

from segsmith.config import load_config
from segsmith.errors import SegsmithError
from segsmith.tools.vision.mask_refiner import LONGEST_PX, MaskRefiner, RefinerNetwork, RefinerSizes, crop_of
from segsmith.tools.vision.point_batches import MaskLogits
from segsmith.tools.vision.sam import MINI, SamSegmenter
from segsmith.tools.vision.sam_views import ViewAveraging, open_segmenter


class Boxes:
    """A SAM that finds a box of 21 x 21 pixels around the first point, and nothing as its second candidate."""

    name = "boxes"

    def logits_many(self, images, point_sets):
        return [
            [self._box(image, points) for points in sets]
            for image, sets in zip(images, point_sets, strict=True)
        ]

    def _box(self, image, points):
        logits = torch.full((2, *image.shape[:2]), -5.0)
        x, y = points[0].astype(int)
        logits[0, max(0, y - 10) : y + 11, max(0, x - 10) : x + 11] = 5
        return MaskLogits(logits, torch.tensor([0.9, 0.2]))


class Brightness(RefinerNetwork):
    """Says that every bright pixel belongs to the object, and no other."""

    def __init__(self):
        super().__init__(RefinerSizes((4, 8)))
        self.seen = []

    def forward(self, images, logits, points):
        self.seen.append((images.shape, points.sum().item()))
        return torch.where(images[:, :1] > 128, 20.0, -20.0)


def scene(height, width):
    image = np.zeros((height, width, 3), np.uint8)
    image[20:34, 26:40] = 255
    return image


@pytest.mark.parametrize("size", [(50, 61), (64, 48)])
def test_a_network_without_training_changes_nothing(size):
    points = [np.array([[33, 27]], np.float32), np.array([[2, 45], [5, 40]], np.float32)]
    torch.manual_seed(0)
    refined = MaskRefiner(Boxes(), RefinerNetwork(RefinerSizes()))
    for found, plain in zip(
        refined.segment(scene(*size), points), Boxes().logits_many([scene(*size)], [points])[0], strict=True
    ):
        assert np.array_equal(found.masks, plain.logits.numpy() > 0)
        assert np.array_equal(found.scores, plain.scores.numpy())


def test_the_correction_lands_where_the_object_is():
    network = Brightness()
    (found,) = MaskRefiner(Boxes(), network).segment(scene(60, 70), [np.array([[33, 27]], np.float32)])
    assert np.array_equal(found.masks[0], scene(60, 70)[..., 0] > 128)
    ((shape, near_points),) = network.seen
    assert shape[0] == 2, "all candidates of a point set at once"
    assert shape[2] < 60
    assert shape[3] < 70
    assert near_points == 2 * 9


def test_a_large_crop_is_shrunk_for_the_network_and_its_correction_enlarged():
    image = np.kron(scene(60, 70), np.ones((8, 8, 1), np.uint8))
    wide = MaskLogits(torch.where(torch.from_numpy(image[..., 0] > 0), 1.0, -1.0)[None], torch.ones(1))
    wide.logits[:, 0, 0] = wide.logits[:, -1, -1] = 1
    crop = crop_of(image, wide, np.array([[260, 200]], np.float32))
    assert max(crop.points.shape) == LONGEST_PX
    assert (crop.rows, crop.columns) == (slice(0, 480), slice(0, 560))

    class Given(Boxes):
        def logits_many(self, images, point_sets):
            return [[wide]]

    (found,) = MaskRefiner(Given(), Brightness()).segment(image, [np.array([[260, 200]], np.float32)])
    truth = image[..., 0] > 128
    assert (found.masks[0] & truth).sum() / (found.masks[0] | truth).sum() > 0.93


def test_the_crop_has_the_points_too_and_stays_inside_the_image():
    nothing = MaskLogits(torch.full((3, 60, 80), -1.0), torch.ones(3))
    crop = crop_of(scene(60, 80), nothing, np.array([[0, 0], [79, 30]], np.float32))
    assert (crop.rows, crop.columns) == (slice(0, 51), slice(0, 80))
    assert crop.image.shape == (51, 80, 3)
    assert crop.logits.shape == (3, 51, 80)
    assert crop.points.sum() == 4 + 6


@pytest.fixture
def every_warning():
    """Torch gives most of its warnings once in a process."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("every_warning")
def test_a_read_only_image_that_is_its_own_crop_brings_no_warning():
    image, corners = scene(60, 80), np.array([[0, 0], [79, 59]], np.float32)
    image.setflags(write=False)  # as arrays of Pillow are
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MaskRefiner(Boxes(), Brightness()).segment(image, [corners])


@pytest.mark.parametrize("style", ["twemoji", "openmoji"])
def test_the_packaged_network_improves_outlines_of_unseen_sprites(style):
    from segsmith.world.nouns import VOC_CLASSES  # the recipe holds these out
    from segsmith.world.scene import compose, random_spec

    sam = SamSegmenter.load("mini", "cpu")
    segmenters = {"views": ViewAveraging(sam), "refined": MaskRefiner(ViewAveraging(sam), sam.refiner)}
    rng, ious = np.random.default_rng(5), {name: [] for name in segmenters}
    for seed in range(12):
        drawn = compose(random_spec(VOC_CLASSES, rng, max_objects=2), seed, style=style, size=128)
        truths = [drawn.instances == item.instance_id for item in drawn.objects]
        sets = []
        for truth in truths:
            skeleton = np.argwhere(skeletonize(truth))[:, ::-1]
            sets.append(skeleton[rng.choice(len(skeleton), 5)].astype(np.float32))
        for name, segmenter in segmenters.items():
            for truth, found in zip(truths, segmenter.segment(drawn.image, sets), strict=True):
                mask = found.masks[found.scores.argmax()]
                ious[name].append((mask & truth).sum() / (mask | truth).sum())
    assert np.mean(ious["refined"]) > np.mean(ious["views"]) + 0.005


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("refiner", [False, True])
def test_the_setting_decides(views, refiner):
    flags = {"labeler": {"sam_views": views, "mask_refiner": refiner}, "compute": {"device": "cpu"}}
    config = load_config(flags=flags)
    assert isinstance(open_segmenter(config.labeler, config.compute), MaskRefiner) is refiner


def test_a_sam_without_a_network_is_used_as_it_is(tmp_path):
    shutil.copytree(MINI, tmp_path / "sam")
    without_refiner(tmp_path / "sam")
    config = load_config(flags={"labeler": {"sam": str(tmp_path / "sam")}, "compute": {"device": "cpu"}})
    assert isinstance(open_segmenter(config.labeler, config.compute), ViewAveraging)


def without_refiner(folder, *, in_config=False):
    weights = {
        k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("refiner.")
    }
    save_file(weights, folder / "model.safetensors")
    if not in_config:
        config = json.loads((folder / "config.json").read_text())
        del config["refiner"]
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "refiner", [3, {}, {"widths": [3]}, {"widths": []}, {"widths": "wide"}, {"depth": 1}, "missing"]
)
def test_damaged_sizes_and_missing_weights_cost_one_line(tmp_path, refiner):
    shutil.copytree(MINI, tmp_path / "sam")
    if refiner == "missing":
        without_refiner(tmp_path / "sam", in_config=True)
    else:
        config = json.loads((MINI / "config.json").read_text())
        (tmp_path / "sam" / "config.json").write_text(json.dumps({**config, "refiner": refiner}))
    if refiner == {}:  # the default sizes, which are the packaged ones
        assert SamSegmenter.load(str(tmp_path / "sam"), "cpu").refiner is not None
        return
    with pytest.raises(SegsmithError) as caught:
        SamSegmenter.load(str(tmp_path / "sam"), "cpu")
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
