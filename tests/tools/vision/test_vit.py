import logging

import numpy as np
import open_clip
import pytest
import torch

from segsmith.config import LabelerConfig
from segsmith.errors import SegsmithError
from segsmith.protocols import PatchClassifier
from segsmith.segmentation import folds
from segsmith.segmentation.folds import group_folds, sample_by_class
from segsmith.tools.vision.clip_to_timm import tower_as_timm
from segsmith.tools.vision.vit import TimmPatchClassifier, shifts

TINY = "vit_tiny_test_16"
SETTINGS = LabelerConfig(folds=3, epochs=8, batch_size=8, learning_rate=3e-3, top_k=2)


@pytest.fixture(scope="module", autouse=True)
def tiny_model():
    """A plain ViT, 64 px in patches of 16, in timm's registry for the time of these tests."""
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models._registry import _clear_model_entries
    from timm.models.vision_transformer import VisionTransformer

    global default_cfgs
    default_cfgs = generate_default_cfgs(
        {TINY: {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3}}
    )

    def vit_tiny_test_16(pretrained=False, **kwargs):
        size = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
        return build_model_with_cfg(VisionTransformer, TINY, pretrained, **size, **kwargs)

    register_model(vit_tiny_test_16)
    yield
    _clear_model_entries(TINY)


def classifier(n_classes: int, **changes) -> TimmPatchClassifier:
    torch.manual_seed(0)
    settings = SETTINGS.model_copy(update=changes.pop("settings", {}))
    return TimmPatchClassifier.from_timm(TINY, n_classes, settings, seed=0, device="cpu", **changes)


def squares(count: int, n_classes: int = 2) -> tuple[list[np.ndarray], np.ndarray, list[np.ndarray]]:
    """Grey images with a square in the colour of their class, their labels, and the squares' masks."""
    rng = np.random.default_rng(1)
    colours = [(220, 30, 30), (30, 30, 220), (30, 200, 30)]
    images, labels, masks = [], np.zeros((count, n_classes), np.float32), []
    for i in range(count):
        image = rng.integers(90, 130, (64, 64, 3)).astype(np.uint8)
        mask = np.zeros((64, 64), bool)
        x, y = 16 * rng.integers(0, 3, 2)
        mask[y : y + 32, x : x + 32] = True
        image[mask] = colours[i % n_classes]
        labels[i, i % n_classes] = 1
        images.append(image)
        masks.append(mask)
    return images, labels, masks


def test_is_a_patch_classifier():
    assert isinstance(classifier(2), PatchClassifier)


def test_learns_classes_it_predicts_out_of_fold_and_where_they_are():
    images, labels, masks = squares(36)
    groups = [f"p{i // 2}" for i in range(36)]
    scores = classifier(2).out_of_fold(images, labels, groups)
    assert scores.probabilities.shape == (36, 2)
    assert scores.maps.shape == (36, 2, 8, 8)  # 4 x 4 patches, twice as fine
    assert scores.maps.dtype == scores.probabilities.dtype == np.float32
    assert scores.maps.min() >= 0
    assert scores.maps.max() <= 1
    assert np.mean(scores.probabilities.argmax(1) == labels.argmax(1)) > 0.9
    inside, outside = [], []
    for i, mask in enumerate(masks):
        fine = mask.reshape(8, 8, 8, 8).mean((1, 3)) > 0.5
        own = scores.maps[i, labels[i].argmax()]
        inside.append(own[fine].mean())
        outside.append(own[~fine].mean())
    assert np.mean(np.array(inside) > np.array(outside)) > 0.9


def test_the_same_seed_gives_the_same_scores():
    images, labels, _ = squares(12)
    groups = [str(i) for i in range(12)]
    tool = classifier(2, settings={"epochs": 2})
    first, again = (tool.out_of_fold(images, labels, groups) for _ in range(2))
    np.testing.assert_array_equal(first.maps, again.maps)
    np.testing.assert_array_equal(first.probabilities, again.probabilities)


def test_no_image_is_scored_by_a_model_that_saw_its_group(monkeypatch):
    images, labels, _ = squares(12)
    for i, image in enumerate(images):  # a mark that identifies the image
        image[0, 0] = i
    groups = [f"p{i // 2}" for i in range(12)]
    trained: list[set[float]] = []
    tool = classifier(2, settings={"epochs": 1})
    real_train, real_predict = tool._train, tool._predict
    keys = tool.features([images], len(images))[0].flatten(1)[:, :50]

    def train(views, kept, target, fold):
        rows = views[0, kept].flatten(1)[:, :50]
        trained.append({i for i in range(12) for row in rows if torch.equal(row, keys[i])})
        return real_train(views, kept, target, fold)

    def predict(model, held_out, *features):
        groups_seen = {groups[i] for i in trained[-1]}
        assert not groups_seen & {groups[int(image[0, 0, 0])] for image in held_out}
        return real_predict(model, held_out, *features)

    monkeypatch.setattr(tool, "_train", train)
    monkeypatch.setattr(tool, "_predict", predict)
    tool.out_of_fold(images, labels, groups)
    assert len(trained) == 3
    assert set.union(*trained) == set(range(12))


def test_one_class_and_a_class_that_a_fold_lacks():
    images, _, _ = squares(9)
    one = classifier(1, settings={"epochs": 1})
    scores = one.out_of_fold(images, np.ones((9, 1), np.float32), list("abcabcabc"))
    assert np.isfinite(scores.maps).all()
    labels = np.zeros((9, 2), np.float32)
    labels[:, 0] = 1
    labels[0, 1] = 1  # its group is held out by one fold
    scores = classifier(2, settings={"epochs": 1}).out_of_fold(images, labels, list("abcdefghi"))
    assert np.isfinite(scores.probabilities).all()


def test_fewer_groups_than_folds_and_a_single_group(caplog):
    images, labels, _ = squares(6)
    tool = classifier(2, settings={"epochs": 1})
    assert len(tool.out_of_fold(images, labels, list("aaabbb")).probabilities) == 6
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        tool.out_of_fold(images, labels, ["a"] * 6)
    assert "There is only one group" in caplog.text


def test_images_of_any_size_and_an_empty_list():
    tool = classifier(2, settings={"epochs": 1})
    images = [np.full((50 + 10 * i, 90, 3), 40 * i, np.uint8) for i in range(4)]
    scores = tool.out_of_fold(images, np.eye(2, dtype=np.float32)[[0, 1, 0, 1]], list("abcd"))
    assert scores.maps.shape == (4, 2, 8, 8)
    assert len(tool.out_of_fold([], np.zeros((0, 2), np.float32), []).probabilities) == 0
    with pytest.raises(ValueError, match="do not match"):
        tool.out_of_fold(images, np.zeros((4, 3), np.float32), list("abcd"))


@pytest.mark.parametrize(("patch", "scale"), [(16, 1), (16, 2), (16, 4), (14, 2), (32, 2)])
def test_shifted_windows_interleave_to_a_finer_grid_of_the_same_image(patch, scale):
    starts, margin = shifts(patch, scale)
    assert min(starts) >= 0
    assert max(starts) <= 2 * margin
    centres = np.sort([start - margin + patch / 2 + patch * i for start in starts for i in range(4)])
    assert np.allclose(np.diff(centres), patch / scale, atol=1)
    assert abs(centres.mean() - 2 * patch) <= 0.5


def test_finer_maps_agree_with_coarse_ones():
    images, labels, _ = squares(6)
    groups = list("abcdef")
    coarse = classifier(2, map_scale=1, settings={"epochs": 1}).out_of_fold(images, labels, groups)
    fine = classifier(2, map_scale=2, settings={"epochs": 1}).out_of_fold(images, labels, groups)
    assert coarse.maps.shape == (6, 2, 4, 4)
    np.testing.assert_array_equal(coarse.probabilities, fine.probabilities)
    pooled = fine.maps.reshape(6, 2, 4, 2, 4, 2).mean((3, 5))
    assert np.corrcoef(pooled.ravel(), coarse.maps.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_cover_each_index_once_without_splitting_a_group(folds):
    groups = [f"g{i % 11}" for i in range(50)] + ["big"] * 10
    held_out = group_folds(groups, folds, seed=4)
    assert sorted(np.concatenate(held_out).tolist()) == list(range(60))
    names = [{groups[i] for i in fold} for fold in held_out]
    assert sum(len(n) for n in names) == 12
    assert max(map(len, held_out)) - min(map(len, held_out)) <= 10
    assert all(
        np.array_equal(a, b) for a, b in zip(held_out, group_folds(groups, folds, seed=4), strict=True)
    )


def test_not_a_vit_and_unknown_names_say_what_to_name():
    with pytest.raises(SegsmithError, match="vit"):
        TimmPatchClassifier.from_timm("resnet10t", 2, SETTINGS, 0)
    with pytest.raises(SegsmithError, match="list_models"):
        TimmPatchClassifier.from_timm("vit_of_dreams", 2, SETTINGS, 0)


class FakeEncoder:
    """The part of `OpenClipEncoder` that the labeler needs, around a tiny random CLIP."""

    def __init__(self, model):
        self.model, self.tower, self.name = model, model.visual, "fake"
        self.device, self.precision = torch.device("cpu"), "auto"
        self.preprocess_config = {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}

    def embed_texts(self, texts):
        return np.random.default_rng(len(texts)).standard_normal((len(texts), 16)).astype(np.float32)


def open_clip_vit(quick_gelu: bool) -> FakeEncoder:
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}
    return FakeEncoder(open_clip.CLIP(16, vision, text, quick_gelu=quick_gelu).eval())


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_open_clips_own_vit_becomes_timms_with_the_same_output(quick_gelu):
    encoder = open_clip_vit(quick_gelu)
    trunk, projection = tower_as_timm(encoder)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = trunk.eval().forward_features(x)[:, 0] @ projection.T
        theirs = encoder.model.encode_image(x)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    trunk.cls_token.data.zero_()  # a copy: the encoder stays as it was
    with torch.no_grad():
        torch.testing.assert_close(encoder.model.encode_image(x), theirs)


def test_starts_from_the_text_embeddings_and_runs_with_prefix_tokens():
    tool = TimmPatchClassifier.from_encoder(open_clip_vit(False), 2, SETTINGS, 0, class_names=("cat", "dog"))
    assert tool.start.shape == (2, 32)
    images, labels, _ = squares(6)
    scores = tool.out_of_fold(images, labels, list("abcdef"))
    assert scores.maps.shape == (6, 2, 8, 8)
    alike = tool.out_of_fold([images[0]] * 6, labels, list("abcdef"))
    assert np.isfinite(alike.maps).all()


def test_a_resnet_tower_is_rejected():
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    text = {"context_length": 8, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}
    with pytest.raises(SegsmithError, match="not a ViT"):
        tower_as_timm(FakeEncoder(open_clip.CLIP(16, vision, text)))


def test_a_sample_holds_the_same_number_of_every_class():
    labels = np.zeros((100, 3), np.float32)
    labels[:, 0] = 1
    labels[:5, 1] = 1
    labels[90:, 2] = 1
    rows = sample_by_class(labels, 30, seed=0)
    assert len(set(rows)) == 30
    assert (np.diff(rows) > 0).all()
    assert labels[rows].sum(0).tolist()[1:] == [5, 10]
    assert (sample_by_class(labels, 100, seed=0) == np.arange(100)).all()


def test_images_outside_the_sample_are_scored_too(monkeypatch):
    images, labels, _ = squares(24)
    groups = [f"p{i // 2}" for i in range(24)]
    tool = classifier(2)
    got = {}
    monkeypatch.setattr(folds, "MAX_TAUGHT", 12)
    scores = tool.out_of_fold(
        images, labels, groups, lambda rows, maps: got.update(zip(rows.tolist(), maps, strict=True))
    )
    assert sorted(got) == list(range(24))
    assert scores.maps.shape[0] == 0
    together = tool.out_of_fold(images, labels, groups)
    np.testing.assert_array_equal(np.stack([got[i] for i in range(24)]), together.maps)
    assert np.isfinite(scores.probabilities).all()
