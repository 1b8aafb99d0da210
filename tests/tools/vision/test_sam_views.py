"""Averaging SAM's masks over a crop and mirrored views."""

import numpy as np
import pytest
import torch
from skimage.morphology import skeletonize

from segsmith.config import load_config
from segsmith.tools.vision.point_batches import MaskLogits
from segsmith.tools.vision.sam import SamSegmenter
from segsmith.tools.vision.sam_views import ViewAveraging, crop_box, open_segmenter


def _shades(image):
    red = torch.from_numpy(image[..., 0].astype(np.float32)) - 128
    return MaskLogits(torch.stack([red, torch.full_like(red, 9)]), torch.tensor([0.9, 0.5]))


class Shades:
    """A SAM whose logits are an image's red channel, minus 128; its second candidate is everything."""

    name, side = "shades", 32

    def __init__(self):
        self.sizes = []

    def logits_many(self, images, point_sets):
        self.sizes += [image.shape[:2] for image in images]
        return [[_shades(image) for _ in sets] for image, sets in zip(images, point_sets, strict=True)]


@pytest.mark.parametrize("size", [(40, 60), (64, 48)])
def test_views_agree_about_where_the_object_is(size):
    image = np.zeros((*size, 3), np.uint8)
    image[10:22, 30:40] = 255
    sam = Shades()
    (found,) = ViewAveraging(sam).segment(image, [np.array([[33, 12], [36, 20]], np.float32)])
    assert np.array_equal(found.masks[0], image[..., 0] > 128)
    assert found.scores == pytest.approx([0.9, 0.5])
    assert found.masks[1].sum() < image[..., 0].size, "outside the crop there is no object"
    assert max(sam.sizes[-1]) == sam.side, "a small crop is enlarged to the model's input"


@pytest.mark.parametrize(
    ("points", "box"),
    [
        ([[5, 5], [14, 5]], (3, 0, 17, 14)),  # moved down: the margin would reach beyond the image
        ([[0, 0], [79, 59]], (0, 0, 80, 60)),  # cut to the image
        ([[40, 30]], (40, 30, 41, 31)),
    ],
)
def test_the_crop_lies_inside_the_image(points, box):
    nothing = MaskLogits(torch.full((3, 60, 80), -1.0), torch.ones(3))
    assert crop_box(nothing, np.array(points, np.float32)) == box


def test_of_a_large_image_few_sets_are_decoded_together(monkeypatch):
    monkeypatch.setattr("segsmith.tools.vision.point_batches.MAX_PIXELS", 4 * 40 * 60 * 2)
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:22, 30:40] = 255
    sets = [np.array([[33, 12], [36, 20 - i]], np.float32) for i in range(5)]
    sam = Shades()
    together = ViewAveraging(sam).segment(image, sets)
    assert len(sam.sizes) == (3 + 5) * 2, "the image three times, a crop for each set, all mirrored, too"
    for one, points in zip(together, sets, strict=True):
        (alone,) = ViewAveraging(Shades()).segment(image, [points])
        assert np.array_equal(one.masks, alone.masks)


def test_views_outline_unseen_sprites_better():
    from segsmith.world.nouns import VOC_CLASSES
    from segsmith.world.scene import compose, random_spec

    sam = SamSegmenter.load("mini", "cpu")
    rng = np.random.default_rng(5)
    ious = {"plain": [], "views": []}
    for seed in range(12):
        scene = compose(random_spec(VOC_CLASSES, rng, max_objects=2), seed, style="twemoji", size=128)
        truths = [scene.instances == item.instance_id for item in scene.objects]
        sets = []
        for truth in truths:
            skeleton = np.argwhere(skeletonize(truth))[:, ::-1]
            sets.append(skeleton[rng.choice(len(skeleton), 5)].astype(np.float32))
        for name, segmenter in (("plain", sam), ("views", ViewAveraging(sam))):
            for truth, found in zip(truths, segmenter.segment(scene.image, sets), strict=True):
                mask = found.masks[found.scores.argmax()]
                ious[name].append((mask & truth).sum() / (mask | truth).sum())
    assert np.mean(ious["views"]) > np.mean(ious["plain"])


@pytest.mark.parametrize("views", [False, True])
def test_the_setting_decides(views):
    labeler = {"sam_views": views, "mask_refiner": False}
    config = load_config(flags={"labeler": labeler, "compute": {"device": "cpu"}})
    assert isinstance(open_segmenter(config.labeler, config.compute), ViewAveraging) is views
