"""What every `ImageTextEncoder` promises, asked of each way to load one."""

import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from segsmith.errors import SegsmithError
from segsmith.protocols import ImageTextEncoder
from segsmith.tools.vision.clip import OpenClipEncoder


@pytest.fixture(scope="module")
def vit_b_32(tmp_path_factory):
    """Random weights of a full-size ViT-B-32, and a folder that open_clip could have saved."""
    folder = tmp_path_factory.mktemp("vit-b-32")
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32", pretrained=None)
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    config = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=["mini", "mini in bfloat16", "folder", "name:file", "local-dir"])
def encoder(request, vit_b_32):
    weights = vit_b_32 / "open_clip_model.safetensors"
    spec, precision = {
        "mini": ("mini", "auto"),
        "mini in bfloat16": ("mini", "bfloat16"),
        "folder": (str(vit_b_32), "auto"),
        "name:file": (f"ViT-B-32:{weights}", "auto"),
        "local-dir": (f"local-dir:{vit_b_32}", "auto"),
    }[request.param]
    return OpenClipEncoder.load(spec, device="cpu", precision=precision)


def random_images(count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (60 + 10 * i, 80, 3)).astype(np.uint8) for i in range(count)]


def test_it_is_one(encoder):
    assert isinstance(encoder, ImageTextEncoder)
    assert "@" in encoder.name
    assert encoder.logit_scale > 1


def test_vectors_are_float32_of_unit_length_and_one_size(encoder):
    images, texts = encoder.embed_images(random_images(3)), encoder.embed_texts(["a cat", "a dog"])
    assert images.dtype == texts.dtype == np.float32
    assert images.shape[1] == texts.shape[1]
    for vectors in (images, texts):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_an_image_embedding_does_not_depend_on_its_batch(encoder):
    images = random_images(3)
    together = encoder.embed_images(images)
    alone = np.concatenate([encoder.embed_images([image]) for image in images])
    assert (together * alone).sum(1).min() > 0.999


def test_a_text_gives_the_same_vector_in_any_company(encoder):
    first = encoder.embed_texts(["one cat", "two dogs"])
    np.testing.assert_array_equal(encoder.embed_texts(["two dogs"])[0], first[1])


def test_what_is_too_long_is_known(encoder):
    assert encoder.fits("a cat")
    assert not encoder.fits("cat " * 100)


def test_nothing_in_nothing_out(encoder):
    assert len(encoder.embed_images([])) == len(encoder.embed_texts([])) == 0


@pytest.mark.parametrize("damage", ["cut", "other model", "not weights"])
def test_weights_that_are_not_the_ones_cost_one_line(vit_b_32, tmp_path, damage):
    whole = vit_b_32 / "open_clip_model.safetensors"
    name, file = "ViT-B-32", tmp_path / "w.safetensors"
    if damage == "cut":
        file.write_bytes(whole.read_bytes()[:1_000_000])
    elif damage == "not weights":
        file = tmp_path / "w.pt"
        file.write_bytes(b"hello")
    else:
        name, file = "ViT-B-16", whole
    with pytest.raises(SegsmithError, match="Cannot load the CLIP model") as error:
        OpenClipEncoder.load(f"{name}:{file}", device="cpu")
    assert "\n" not in str(error.value)


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"state_dict": Trap()}, tmp_path / "w.pt")
    with pytest.raises(SegsmithError):
        OpenClipEncoder.load(f"ViT-B-32:{tmp_path / 'w.pt'}", device="cpu")
    assert not (tmp_path / "sprung").exists()
