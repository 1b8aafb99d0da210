"""What every `PatchClassifier` promises, asked of each tower a labeler can start from."""

import json

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from segsmith.config import LabelerConfig
from segsmith.errors import SegsmithError
from segsmith.protocols import PatchClassifier
from segsmith.segmentation import folds
from segsmith.tools.vision import vit
from segsmith.tools.vision.clip import OpenClipEncoder
from segsmith.tools.vision.vit import TimmPatchClassifier

SETTINGS = LabelerConfig(folds=2, epochs=1, batch_size=4, top_k=2)
NAME = "vit_tiny_patch16_224"


HUB_TOWERS = {
    "PE-Core": {
        "timm_model_name": "vit_pe_core_test",
        "timm_pool": "map",
        "timm_proj": None,
        "image_size": 64,
    },
    "SigLIP2": {
        "timm_model_name": "vit_siglip_test",
        "timm_pool": "map",
        "timm_proj": "none",
        "image_size": 64,
    },
}
"""The towers in the layout of the hub's PE-Core and ViT-*-SigLIP2 repositories, but small."""


@timm.models.register_model
def vit_pe_core_test(pretrained=False, **kwargs):
    """timm's ``vit_pe_core_tiny_patch16_384`` with fewer and smaller blocks, for small images."""
    small = {"img_size": 64, "embed_dim": 48, "depth": 4, "attn_pool_num_heads": 3, "ref_feat_shape": (4, 4)}
    return timm.models.eva.vit_pe_core_tiny_patch16_384(pretrained, **{**kwargs, **small})


@timm.models.register_model
def vit_siglip_test(pretrained=False, **kwargs):
    """timm's ``vit_base_patch16_siglip_224`` with fewer and smaller blocks, for small images."""
    small = {"img_size": 64, "embed_dim": 48, "depth": 4, "num_heads": 3}
    return timm.models.vision_transformer.vit_base_patch16_siglip_224(pretrained, **{**kwargs, **small})


def save_hub_clip(folder, **vision):
    """A folder like open_clip's repositories on the hub: configuration and one safetensors file, random weights."""
    text = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    tower = {"timm_model_pretrained": False, **vision}
    embed_dim = 48 if vision["timm_proj"] == "none" else 16
    config = {
        "model_cfg": {"embed_dim": embed_dim, "vision_cfg": tower, "text_cfg": text, "custom_text": True}
    }
    values = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({**config, "preprocess_cfg": values}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("timm") / "vit.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(NAME, num_classes=10).state_dict(), file)
    return file


@pytest.fixture(
    scope="module",
    params=[
        "mini CLIP's tower",
        "mini, bfloat16",
        "open_clip's ViT",
        "timm file",
        "PE-Core",
        "SigLIP2",
    ],
)
def classifier(request, timm_file, tmp_path_factory):
    if request.param == "timm file":
        return TimmPatchClassifier.from_timm(f"{NAME}:{timm_file}", 2, SETTINGS, 0, device="cpu")
    if request.param in HUB_TOWERS:
        folder = save_hub_clip(tmp_path_factory.mktemp("hub"), **HUB_TOWERS[request.param])
        encoder = OpenClipEncoder.load(str(folder), device="cpu")
    elif request.param == "open_clip's ViT":
        torch.manual_seed(0)
        vision = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
        text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
        model = open_clip.CLIP(16, vision, text)
        encoder = OpenClipEncoder(
            model, open_clip.image_transform(64, False), open_clip.SimpleTokenizer(), name="x"
        )
        encoder.model.visual.preprocess_cfg = {"size": 64, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    else:
        precision = "bfloat16" if "bfloat16" in request.param else "auto"
        encoder = OpenClipEncoder.load("mini", device="cpu", precision=precision)
    return TimmPatchClassifier.from_encoder(encoder, 2, SETTINGS, 0, class_names=("cat", "dog"))


@pytest.fixture(scope="module")
def asked():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (70, 90, 3)).astype(np.uint8) for _ in range(6)]
    return images, np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0, 1]], list("aabbcc")


def test_a_model_trained_on_all_images_scores_others(classifier, asked):
    images, labels, _ = asked
    score = classifier.taught(images, labels)
    found = score(images[:5])
    assert found.shape == (5, 2)
    assert ((found >= 0) & (found <= 1)).all()
    assert score([]).shape == (0, 2)
    np.testing.assert_allclose(classifier.taught(images, labels)(images[:5]), found, atol=1e-3)


def test_scores_are_probabilities_per_patch_and_image(classifier, asked):
    assert isinstance(classifier, PatchClassifier)
    scores = classifier.out_of_fold(*asked)
    assert scores.probabilities.shape == (6, 2)
    assert scores.maps.shape[:2] == (6, 2)
    assert scores.maps.shape[2] == scores.maps.shape[3] > 1
    for values in (scores.maps, scores.probabilities):
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert 0 <= values.min() <= values.max() <= 1


def test_the_same_question_gets_the_same_answer(classifier, asked):
    first, again = classifier.out_of_fold(*asked), classifier.out_of_fold(*asked)
    np.testing.assert_array_equal(first.maps, again.maps)


@pytest.mark.parametrize("at_most", [100, 4], ids=["all images taught", "a sample taught"])
def test_steps_elsewhere_give_the_same_scores(classifier, asked, monkeypatch, at_most):
    monkeypatch.setattr(folds, "MAX_TAUGHT", at_most)
    images, labels, groups = asked
    expected = classifier.out_of_fold(*asked)
    plan = folds.plan_folds(labels, groups, SETTINGS.folds, SETTINGS.batch_size, 0)
    features = classifier.features(([images[i] for i in batch] for batch in plan.taught), len(plan.order))
    for fold, batches in enumerate(plan.held_out):
        score = classifier.scorer(classifier.teach(features, labels[plan.order], plan.kept(fold), fold))
        for where in batches:
            found = score([images[i] for i in where])
            np.testing.assert_array_equal(found.maps, expected.maps[where])
            np.testing.assert_array_equal(found.probabilities, expected.probabilities[where])


def test_weights_of_another_model_cost_one_line(classifier):
    with pytest.raises(SegsmithError, match="cannot use weights"):
        classifier.scorer(b"nothing")


def test_features_that_do_not_fit_into_memory_give_the_same_scores(classifier, asked, monkeypatch):
    before = classifier.out_of_fold(*asked)
    monkeypatch.setattr(vit, "MAX_FEATURES_IN_MEMORY", 0)
    np.testing.assert_array_equal(classifier.out_of_fold(*asked).maps, before.maps)


def test_weights_of_the_file_are_the_ones_used(timm_file):
    used = TimmPatchClassifier.from_timm(f"{NAME}:{timm_file}", 2, SETTINGS, 0, device="cpu")
    torch.manual_seed(0)
    original = timm.create_model(NAME, num_classes=10)
    torch.testing.assert_close(used.trunk.state_dict()["blocks.3.attn.qkv.weight"],
                               original.state_dict()["blocks.3.attn.qkv.weight"])  # fmt: skip


@pytest.mark.parametrize("damage", ["missing", "cut", "other model"])
def test_a_file_that_is_not_the_one_costs_one_line(timm_file, tmp_path, damage):
    name, file = NAME, tmp_path / "w.safetensors"
    if damage == "cut":
        file.write_bytes(timm_file.read_bytes()[:100_000])
    elif damage == "other model":
        name, file = "vit_small_patch16_224", timm_file
    with pytest.raises(SegsmithError) as error:
        TimmPatchClassifier.from_timm(f"{name}:{file}", 2, SETTINGS, 0, device="cpu")
    assert "\n" not in str(error.value)
    assert "labeler.vit" in str(error.value)
