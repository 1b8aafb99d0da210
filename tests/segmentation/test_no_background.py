"""Data in which every pixel belongs to a class: nothing is drawn as 0, and background is neither made up nor scored."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import segsmith as api
from segsmith.config import TrainerConfig
from segsmith.datasets.voc_layout import write_voc
from segsmith.segmentation.checkpoint import load_segmenter
from segsmith.segmentation.metrics import score_pairs
from segsmith.segmentation.network import NEVER, build_segmenter, without_background
from segsmith.workflows.weaken import weaken_dataset

CLASSES = ("sky", "road", "car")
QUICK = {"trainer.encoder": "tu-test_resnet", "trainer.epochs": 2, "trainer.batch_size": 4}


def street(rng):
    """A sky, a road, and a car where they meet."""
    horizon, x = int(rng.integers(24, 40)), int(rng.integers(4, 40))
    label_map = np.full((64, 64), 1, np.uint8)
    label_map[horizon:] = 2
    label_map[horizon - 8 : horizon + 8, x : x + 20] = 3
    colours = np.array([[0, 0, 0], [120, 170, 230], [90, 90, 90], [200, 40, 40]])
    return np.clip(rng.normal(colours[label_map], 10), 0, 255).astype(np.uint8), label_map


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("streets") / "full", np.random.default_rng(0)
    splits = {
        split: [(f"{split}{i}", *street(rng)) for i in range(n)] for split, n in (("train", 8), ("val", 3))
    }
    write_voc(root, CLASSES, splits)
    weaken_dataset(root, root.parent / "scribbles", "scribbles", 0)
    return root


@pytest.fixture(scope="module")
def refined(streets):
    out = streets.parent / "run"
    return api.refine(streets.parent / "scribbles", out, settings=QUICK, progress=False)


def masks(root, names="train*"):
    return [np.array(Image.open(p)) for p in sorted((root / "SegmentationClass").glob(f"{names}.png"))]


def test_refine_makes_up_no_background(refined):
    assert len(masks(refined.dataset)) == 8
    assert all((label_map != 0).all() for label_map in masks(refined.dataset))
    assert set(refined.training.validation.iou) == set(CLASSES)
    assert load_segmenter(refined.segmenter)[1].background is False


def test_background_that_the_user_asks_for_is_made(streets, tmp_path):
    weak = streets.parent / "scribbles"
    made = api.refine(weak, tmp_path / "run", background=True, train=False, progress=False)
    assert any((label_map == 0).any() for label_map in masks(made.dataset))


def test_the_segmenter_never_predicts_background(refined, streets):
    noise = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)
    assert all((label_map > 0).all() for label_map in api.predict(refined.segmenter, noise))
    score = api.evaluate(refined.segmenter, streets, progress=False)
    assert score.classes == CLASSES
    assert np.shape(score.confusion) == (3, 3)


def test_pixels_of_background_and_of_unknown_classes_are_not_counted(refined, streets, tmp_path):
    def with_objects():
        for index, label_map in enumerate(masks(streets, "val*")):
            label_map[:16] = 0
            label_map[16:20] = 4
            yield f"val{index}", np.zeros((64, 64, 3), np.uint8), label_map

    write_voc(tmp_path / "other", (*CLASSES, "dog"), {"val": with_objects()})
    notices = []
    score = api.evaluate(refined.segmenter, tmp_path / "other", on_event=notices.append)
    assert sum(map(sum, score.confusion)) == 3 * 64 * 44
    assert [notice.message for notice in notices] == ["not counted, like background: dog"]


def test_train_on_full_masks_without_background_needs_no_setting(segsmith, streets, tmp_path):
    words = [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]
    code, said, _ = segsmith("train", "--dataset", streets, "--out", tmp_path, *words)
    assert (code, "background" in said) == (0, False)
    assert json.loads((tmp_path / "segmenter.json").read_text())["background"] is False
    segsmith("predict", tmp_path, streets / "JPEGImages", "--out", tmp_path / "p", "--no-overlays")
    shares = json.loads((tmp_path / "p" / "shares.json").read_text())
    assert shares["classes"] == [None, *CLASSES]


@pytest.mark.parametrize("architecture", ["DeepLabV3Plus", "Unet", "FPN", "Linknet", "PAN", "UPerNet"])
def test_the_channel_of_background_is_constant_in_every_architecture(architecture):
    model = build_segmenter(
        TrainerConfig(architecture=architecture, encoder="resnet18", encoder_init="none"), 3
    )
    without_background(model)
    logits = model.eval()(torch.rand(1, 3, 128, 128))
    assert torch.allclose(logits[:, 0], torch.tensor(NEVER))
    assert (logits[:, 1:] > NEVER / 2).all()


def test_the_score_leaves_background_out():
    truth, guess = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[1, 1, 1, 1]])
    score = score_pairs([(guess, truth)], ["a", "b"], background=False)
    assert list(score.iou_per_class) == ["a", "b"]
    assert score.miou == pytest.approx((2 / 3 + 0) / 2)
    assert score.confusion.sum() == 3
