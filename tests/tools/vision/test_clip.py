import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file

import segsmith.tools.vision.mini_clip as mini
from segsmith.errors import SegsmithError
from segsmith.protocols import ImageTextEncoder
from segsmith.tools.vision import clip
from segsmith.tools.vision.clip import OpenClipEncoder, check_encoder

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
TIMM_VISION = {"image_size": 128, "timm_model_name": mini.TOWER, "timm_pool": "avg", "timm_proj": "linear"}
PLAIN_VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}


def save_clip(folder: Path, vision: dict, *, custom_text: bool) -> Path:
    """A randomly initialised CLIP in the form of the packaged checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    half = [0.5, 0.5, 0.5]
    model_cfg = {"embed_dim": 16, "custom_text": custom_text, "vision_cfg": vision, "text_cfg": TEXT}
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": half, "std": half, "resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(halves, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("timm_clip"), TIMM_VISION, custom_text=True)


@pytest.fixture(scope="module")
def encoder(timm_folder):
    return OpenClipEncoder.load(str(timm_folder), device="cpu")


def random_images(count: int, size: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, size + 8 * i, 3)).astype(np.uint8) for i in range(count)]


def test_is_an_image_text_encoder_in_float32(encoder):
    assert isinstance(encoder, ImageTextEncoder)
    assert all(p.dtype == torch.float32 for p in encoder.model.parameters())
    assert encoder.logit_scale > 1


def test_image_vectors_are_unit_and_independent_of_the_batch(encoder):
    images = random_images(5)
    vectors = encoder.embed_images(images)
    assert vectors.shape == (5, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    encoder.batches.size, before = 2, encoder.batches.size
    np.testing.assert_allclose(encoder.embed_images(images), vectors, atol=1e-5)
    encoder.batches.size = before
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-4


def test_text_vectors_keep_order_with_repeats_and_cache(encoder):
    texts = ["a dog", "a cat", "a dog", "a bus at night"]
    first = encoder.embed_texts(texts)
    again = encoder.embed_texts(texts[::-1])[::-1]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[0], first[2])
    assert np.abs(first[0] - first[1]).max() > 1e-4
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)


def test_a_text_is_computed_once_until_it_is_forgotten(encoder, monkeypatch):
    seen: list[str] = []
    tokenizer = encoder.tokenizer

    def spy(texts, **kwargs):
        seen.extend(texts)
        return tokenizer(texts, **kwargs)

    monkeypatch.setattr(encoder, "tokenizer", spy)
    monkeypatch.setattr(clip, "TEXT_CACHE", 2)
    encoder.embed_texts(["one", "two"])
    encoder.embed_texts(["one", "two", "one"])
    assert seen == ["one", "two"]
    encoder.embed_texts(["three"])  # pushes out "one" or "two", whichever was used longest ago
    encoder.embed_texts(["three"])
    encoder.embed_texts(["one", "two"])
    assert seen.count("three") == 1
    assert len(seen) == 4


def test_nothing_in_nothing_out(encoder):
    assert encoder.embed_images([]).shape == (0, 16)
    assert encoder.embed_texts([]).shape == (0, 16)


def test_fits_counts_start_and_end(encoder):
    assert encoder.fits(" ".join(["dog"] * 10))
    assert not encoder.fits(" ".join(["dog"] * 11))
    assert encoder.fits("")


def test_name_tells_weights_apart(timm_folder, encoder, tmp_path):
    assert OpenClipEncoder.load(str(timm_folder), device="cpu").name == encoder.name
    state = open_clip.factory.load_state_dict(str(timm_folder / "open_clip_model.safetensors"))
    state["text.text_projection"] = state["text.text_projection"] + 0.1
    (tmp_path / "open_clip_config.json").write_bytes((timm_folder / "open_clip_config.json").read_bytes())
    save_file(state, tmp_path / "open_clip_model.safetensors")
    other = OpenClipEncoder.load(str(tmp_path), device="cpu").name
    assert other.rpartition("@")[2] != encoder.name.rpartition("@")[2]


def test_plain_open_clip_name_with_a_weights_file(tmp_path, monkeypatch):
    folder = save_clip(tmp_path / "plain", PLAIN_VISION, custom_text=False)
    config = tmp_path / "tiny-test-clip.json"
    config.write_text(json.dumps(json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]))
    open_clip.add_model_config(config)
    weights = folder / "open_clip_model.safetensors"
    encoder = OpenClipEncoder.load(f"tiny-test-clip:{weights}", device="cpu")
    assert encoder.embed_images(random_images(2)).shape == (2, 16)
    assert encoder.stem_state() == {}
    with pytest.raises(SegsmithError, match="Cannot load"):
        OpenClipEncoder.load(f"ViT-B-32:{weights}", device="cpu")


def test_stem_loads_into_the_segmenters_encoder(encoder):
    import segmentation_models_pytorch as smp

    network = smp.create_model("DeepLabV3Plus", "tu-resnet10t", encoder_weights=None, classes=2)
    stem = encoder.stem_state()
    result = network.encoder.model.load_state_dict(stem, strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith("layer4.") for key in result.missing_keys)
    key = "layer3.0.conv2.weight"
    torch.testing.assert_close(network.encoder.model.state_dict()[key], stem[key])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("ViT-B-33:openai", "Did you mean"),
        ("ViT-B-32", "laion2b_s34b_b79k"),
        ("ViT-B-32:no_such_tag", "no_such_tag"),
        ("/no/such/folder", "name:weights"),
        ("", "mini"),
    ],
)
def test_wrong_spec_says_what_to_type(spec, said):
    with pytest.raises(SegsmithError, match=said):
        OpenClipEncoder.load(spec)


def test_folder_without_config_or_weights(tmp_path, timm_folder):
    with pytest.raises(SegsmithError, match=r"open_clip_config\.json"):
        OpenClipEncoder.load(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_bytes((timm_folder / "open_clip_config.json").read_bytes())
    with pytest.raises(SegsmithError, match=r"pretrained weights .* could not be"):
        OpenClipEncoder.load(str(tmp_path))


def test_missing_packaged_checkpoint_names_the_recipe():
    with pytest.raises(SegsmithError, match="make checkpoints"):
        mini.packaged_checkpoint("no_such_checkpoint")


def test_own_vocabulary_splits_known_words_as_clip_does(tmp_path):
    text = pytest.importorskip("foundry.mini_clip_text")
    known = ["a photo of a hippopotamus at golden hour", "two potted plants in the fog"]
    size = text.write_vocabulary(known, tmp_path / clip.BPE_FILE)
    small = open_clip.SimpleTokenizer(bpe_path=str(tmp_path / clip.BPE_FILE))
    full = open_clip.SimpleTokenizer()
    assert size == small.vocab_size < 8000
    for sentence in known:
        assert [small.decoder[i] for i in small.encode(sentence)] == [
            full.decoder[i] for i in full.encode(sentence)
        ]
    assert small.decode(small.encode("zorgblatt")).strip() == "zorgblatt"


def test_packaged_mini_clip_knows_its_world():
    pytest.importorskip("resvg_py")
    from segsmith.world.language import ObjectSpec, SceneSpec
    from segsmith.world.nouns import VOC_CLASSES
    from segsmith.world.scene import compose

    encoder = OpenClipEncoder.load("mini")
    scenes = [
        compose(SceneSpec((ObjectSpec(noun),), place, "day", "clear"), 700_000 + i, style=style)
        for i, noun in enumerate(VOC_CLASSES)
        for place, style in (("street", "twemoji"), ("kitchen", "openmoji"))
    ]
    images = encoder.embed_images([scene.image for scene in scenes])
    texts = encoder.embed_texts([f"a photo of a {noun}" for noun in VOC_CLASSES])
    answers = (images @ texts.T).argmax(1)
    right = np.mean(answers == np.repeat(np.arange(20), 2))
    assert right > 0.6  # chance is 0.05
    places = encoder.embed_texts(["a photo of a street", "a photo of a kitchen"])
    assert np.mean((images @ places.T).argmax(1) == np.tile([0, 1], 20)) > 0.9


@pytest.mark.parametrize("side", [300, 97, 64])
def test_images_resized_together_are_those_that_open_clip_prepares(encoder, side):
    """Up to the rounding of one level of 255; images that have the tower's size are the same bits."""
    y, x = np.mgrid[:side, :side] / side
    image = np.stack([255 * y, 255 * x, 127 + 127 * np.sin(9 * x * y)], axis=2).astype(np.uint8)
    size = encoder.preprocess_config["size"]
    for images in ([image, image[::-1].copy()], [image[:50, :40], image]):
        expected = torch.stack([encoder.preprocess(PILImage.fromarray(image)) for image in images])
        difference = (encoder._prepared(images) - expected).abs().max()
        assert difference <= 2.5 / 255 / 0.5
        assert difference == 0 or side not in (size, (size, size))


@pytest.mark.parametrize("damage", ["none", "truncated", "other shapes"])
def test_a_large_clip_is_checked_by_its_header(tmp_path, timm_folder, monkeypatch, damage):
    folder = tmp_path / "clip"
    shutil.copytree(timm_folder, folder)
    weights = folder / "open_clip_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "other shapes":
        state = load_file(weights)
        save_file({**state, "text.text_projection": state["text.text_projection"][:, :8].clone()}, weights)
    monkeypatch.setattr(clip, "HEADER_ONLY", 0)

    def load(*_, **__):
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(OpenClipEncoder, "load", load)
    if damage == "none":
        check_encoder(str(folder), folder)
        return
    with pytest.raises(SegsmithError) as error:
        check_encoder(str(folder), folder)
    assert "\n" not in str(error.value)
    assert ("text_projection" if damage == "other shapes" else weights.name) in str(error.value)
    assert error.value.remedy
