import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from segsmith.config import TrainerConfig
from segsmith.errors import SegsmithError
from segsmith.segmentation.network import build_segmenter, copy_tower, normalise, without_background
from segsmith.tools.vision.clip import OpenClipEncoder
from segsmith.tools.vision.clip_to_timm import class_directions, tower_as_timm

TINY = "tu-test_resnet"


class Hybrid(nn.Module):
    """The structure of open_clip's wrapper around a timm hybrid ViT."""

    def __init__(self, stem):
        super().__init__()
        backbone = timm.create_model(stem, features_only=True, out_indices=(3,))
        embed = nn.Module()
        embed.backbone = backbone
        self.trunk = nn.Module()
        self.trunk.patch_embed = embed
        self.trunk.blocks = nn.Linear(4, 4)


def build(tower=None, **changes):
    settings = {"encoder": TINY, "encoder_init": "none", **changes}
    return build_segmenter(TrainerConfig(**settings), 3, tower)


@pytest.mark.parametrize("architecture", ["DeepLabV3Plus", "Unet", "FPN"])
def test_logits_have_one_channel_for_background_and_one_per_class(architecture):
    model = build(architecture=architecture).eval()
    assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 4, 64, 96)


def test_the_encoder_starts_with_the_weights_of_the_towers_stem():
    tower = Hybrid("test_resnet")
    model = build(tower, encoder_init="clip")
    stem, encoder = tower.trunk.patch_embed.backbone.state_dict(), model.encoder.model.state_dict()
    assert len(stem) > 10
    for name, value in stem.items():
        assert torch.equal(encoder[name], value), name


def test_the_judges_whole_tower_is_an_encoder_whose_patches_are_scored_by_the_text_features():
    encoder = OpenClipEncoder.load("mini", "cpu")
    directions = class_directions(encoder, ["cat", "bus", "boat"])
    model = build_segmenter(
        TrainerConfig(encoder="judge", freeze_encoder=True), 3, encoder.tower, directions
    ).eval()
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.encoder(images)
        patches = tower_as_timm(encoder)[0].forward_intermediates(
            images, indices=[3], norm=True, intermediates_only=True
        )[0]
        logits = model(images)
    assert [part.shape[-2:] for part in features] == [(128 // k, 128 // k) for k in (1, 2, 4, 8, 16)]
    assert torch.allclose(features[-1], patches, atol=1e-4)
    rows = model.classifier.weight[1:, :, 0, 0]
    assert torch.allclose(F.cosine_similarity(rows, directions), torch.ones(3), atol=1e-5)
    assert logits.shape == (2, 4, 128, 128)
    assert model(images[..., :96, :]).shape == (2, 4, 96, 128)
    assert torch.allclose(logits.exp().sum(1), torch.ones(2, 128, 128), atol=1e-5)


@pytest.mark.parametrize("background", [True, False])
def test_the_decoder_says_where_objects_are_and_the_frozen_texts_say_which(background):
    """Only where background is no class, the decoder may tell the classes apart."""
    encoder = OpenClipEncoder.load("mini", "cpu")
    directions = class_directions(encoder, ["cat", "bus", "boat"])
    model = build_segmenter(
        TrainerConfig(encoder="judge", freeze_encoder=True), 3, encoder.tower, directions
    ).eval()
    assert not model.classifier.weight.requires_grad
    if not background:
        without_background(model)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen, head = [], model.network.segmentation_head[0]
    with torch.no_grad():
        for _ in range(2):
            logits = model(images)
            seen.append((logits.softmax(1)[:, 0], logits[:, 1:].softmax(1)))
            head.bias[2] += 5  # the decoder prefers the class bus
    (nothing, classes), (nothing_then, classes_then) = seen
    assert torch.allclose(classes, classes_then, atol=1e-5) == background
    assert bool((nothing_then < nothing).all()) == background


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": "judge"}, "does not start from"),
        ({"encoder": "judge", "encoder_init": "clip"}, "needs judge.clip 'mini'"),
        ({"freeze_encoder": True}, "random weights"),
    ],
)
def test_an_encoder_that_cannot_be_the_judges_or_frozen_is_rejected(changes, words):
    with pytest.raises(SegsmithError, match=words):
        build(Hybrid("test_resnet"), **changes)


def test_the_stem_of_a_convolutional_tower_is_the_whole_tower():
    tower = timm.create_model("test_resnet", num_classes=0)
    model = build()
    assert copy_tower(model, tower, TINY) == len(model.encoder.model.state_dict())


def test_the_error_for_a_stem_that_does_not_match_names_the_encoder_that_would():
    with pytest.raises(SegsmithError, match=r"tu-test_resnet"):
        build(Hybrid("test_resnet"), encoder="tu-test_efficientnet", encoder_init="clip")


def test_the_error_for_a_tower_without_convolutions_suggests_random_weights():
    with pytest.raises(SegsmithError, match=r"encoder_init to 'none'"):
        build(nn.Linear(3, 3), encoder_init="clip")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder_init": "clip"}, "no image tower"),
        ({"encoder_init": "imagenet"}, "'pretrained' or 'none'"),
        ({"architecture": "DeepLabV4"}, "DeepLabV3Plus"),
        ({"encoder": "tu-no_such_net"}, "no_such_net"),
        ({"encoder": "no_such_net"}, "no_such_net"),
    ],
)
def test_unusable_settings_are_rejected(changes, words):
    with pytest.raises(SegsmithError) as caught:
        build(**changes)
    assert words in str(caught.value)


def normalised_grey(model):
    return normalise(model, torch.full((1, 3, 1, 1), 0.5)).flatten().tolist()


def test_normalisation_is_openais_unless_the_tower_has_another():
    tower = Hybrid("test_resnet")
    clips = pytest.approx([0.0690, 0.1614, 0.3328], abs=1e-3)
    assert normalised_grey(build()) == clips
    assert normalised_grey(build(tower, encoder_init="clip")) == clips
    tower.image_mean, tower.image_std = (0.25, 0.5, 0.75), (0.5, 0.5, 0.5)
    model = build(tower, encoder_init="clip")
    assert normalised_grey(model) == pytest.approx([0.5, 0, -0.5])
    assert not [name for name in model.state_dict() if "pixel" in name]
