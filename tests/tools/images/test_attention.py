"""The image model's attention to the class names, on tiny pipelines of random weights."""

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from segsmith.config import ImagesConfig, load_config
from segsmith.errors import SegsmithError
from segsmith.protocols import Releasable, Witness
from segsmith.tools.images.attention import (
    AttentionWitness,
    attention_shares,
    check_attention,
    class_prompts,
    open_attention,
    peak_score,
)
from segsmith.tools.images.diffusion import DiffusionBackend
from segsmith.types import ImageRequest
from tests import tiny_pipelines

CLASSES = ("cat", "dog", "potted plant")
IMAGES = [np.random.default_rng(k).integers(0, 255, (64, 64, 3), np.uint8) for k in range(3)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Kind of pipeline -> settings of a tiny one."""

    def made(kind):
        folder = str(tmp_path_factory.getbasetemp() / f"tiny-{kind}")
        if kind not in there:
            there[kind] = tiny_pipelines.save(kind, tmp_path_factory.getbasetemp() / f"tiny-{kind}")
        return ImagesConfig(backend="diffusion", model=folder, size=64, steps=2, batch_size=2)

    there = {}
    return made


def witness(images, classes=CLASSES):
    return AttentionWitness(DiffusionBackend(images), classes, images)


class Watching(AttnProcessor):
    """The plain attention of diffusers, whose probabilities are copied on the way."""

    def __init__(self, seen):
        self.seen = seen

    def __call__(self, attn, *arguments, **named):
        inner = attn.get_attention_scores

        def scores(*given):
            probabilities = inner(*given)
            self.seen.append((attn.heads, probabilities))
            return probabilities

        attn.get_attention_scores = scores
        try:
            return super().__call__(attn, *arguments, **named)
        finally:
            del attn.get_attention_scores


@pytest.mark.parametrize("kind", ["sd", "sdxl", "lcm"])
def test_shares_are_those_of_the_attention_that_the_network_computes(settings, kind):
    pipe = DiffusionBackend(settings(kind)).pipeline()
    (prompt,) = class_prompts(pipe.tokenizer, CLASSES)
    seen = []
    pipe.unet.set_attn_processor(
        {name: Watching(seen) if "attn2" in name else AttnProcessor() for name in pipe.unet.attn_processors}
    )
    found = attention_shares(pipe, IMAGES[:2], ["a", "b"], prompt, 64)
    assert found.shape == (2, 3, 16, 16)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
    expected = torch.zeros(2, 3, 256)
    for heads, probabilities in seen:
        of_images = probabilities.reshape(2, heads, 256, -1).mean(1)
        expected += torch.stack([of_images[..., list(t)].mean(-1) for t in prompt.tokens.values()], 1)
    layers = [name for name in pipe.unet.attn_processors if "attn2" in name]
    # LCM spreads all steps over the part of the schedule that it takes.
    assert len(seen) == (5 if kind == "lcm" else 3) * len(layers)
    expected = (expected / expected.sum(1, keepdim=True)).reshape(found.shape)
    assert np.allclose(found, expected.numpy(), atol=1e-5)


def test_it_speaks_about_every_class_whatever_the_batch_and_leaves_drawing_as_it_was(settings):
    images = settings("sd")
    backend = DiffusionBackend(images)
    (before,) = backend.draw([ImageRequest("a cat", 7)])
    attending = AttentionWitness(backend, CLASSES, images)
    assert isinstance(attending, Witness)
    assert isinstance(attending, Releasable)
    together = attending.testify(IMAGES, ["a", "b", "c"])
    alone = attending.testify(IMAGES[1:2], ["b"])[0]
    assert [set(said.scores) for said in together] == [set(CLASSES)] * 3
    assert together[1].scores == pytest.approx(alone.scores, abs=1e-4)
    assert all(0 <= score <= 1 for said in together for score in said.scores.values())
    (after,) = backend.draw([ImageRequest("a cat", 7)])
    assert (before.image == after.image).all()
    attending.release()
    assert attending.testify(IMAGES[1:2], ["b"])[0].scores == alone.scores


def test_a_map_is_kept_where_a_class_has_more_than_its_share(settings, monkeypatch):
    shares = np.full((3, 16, 16), 1 / 3, np.float32)
    shares[:, 4:10, 4:10] = np.array([0.8, 0.1, 0.1])[:, None, None]
    monkeypatch.setattr("segsmith.tools.images.attention.attention_shares", lambda *given: shares[None])
    (said,) = witness(settings("sd")).testify(IMAGES[:1], ["a"])
    assert said.scores == pytest.approx({"cat": 0.7, "dog": 0, "potted plant": 0}, abs=1e-3)
    assert list(said.maps) == ["cat"]
    assert said.maps["cat"][5, 5] == 255 > said.maps["cat"][0, 0] == round(255 / 2.4)


def test_an_even_share_says_nothing_and_all_of_it_everything():
    assert peak_score(np.full((8, 8), 0.25, np.float32), 4) == 0
    assert peak_score(np.ones((8, 8), np.float32), 4) == 1


def test_long_lists_are_split_and_no_class_is_alone():
    tokenizer = tiny_pipelines.tokenizer()  # a token for each letter
    classes = [f"class {'x' * (k % 7)}{k}" for k in range(21)]
    prompts = class_prompts(tokenizer, classes)
    assert [name for prompt in prompts for name in prompt.tokens] == classes
    assert all(len(prompt.tokens) > 1 for prompt in prompts)
    for prompt in prompts:
        ids = tokenizer(prompt.text).input_ids
        assert len(ids) <= tokenizer.model_max_length
        for name, where in prompt.tokens.items():
            letters = tokenizer.convert_ids_to_tokens([ids[position] for position in where])
            assert "".join(letters).replace("</w>", "") == name.replace(" ", "")


def test_a_long_name_competes_with_one_of_another_list():
    short, long = "cat", "x" * 70
    prompts = class_prompts(tiny_pipelines.tokenizer(), [short, "dog", long])
    assert [list(prompt.tokens) for prompt in prompts] == [[short, "dog"], [long, short]]


def test_one_class_has_nothing_to_compete_with(settings):
    assert witness(settings("sd"), ("cat",)).testify(IMAGES, ["a", "b", "c"]) == [None] * 3


def config(images):
    settings = {"classes": CLASSES, "images": images, "witnesses": {"attention": "generator"}}
    return load_config(preset="gpu", flags=settings)


def test_the_model_of_a_config_is_opened_without_what_hooks_cannot_see_into(settings):
    images = settings("sd").model_dump(include={"backend", "model", "size", "steps", "batch_size"})
    attending = open_attention(config({**images, "variant": None, "compile": True}))
    assert attending.testify(IMAGES[:1], ["a"])[0].scores.keys() == set(CLASSES)


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        ({"backend": "hosted", "model": "gpt-image-2"}, "needs a local diffusion model"),
        ({"models": [{"model": "a/b", "share": 0.5}, {"model": "c/d", "share": 0.5}]}, "names several"),
        ({"backend": "diffusion", "model": "flux"}, "cannot read the attention of FluxPipeline"),
    ],
)
def test_other_image_models_are_refused_with_what_to_type(settings, images, problem):
    if images.get("model") == "flux":
        images = {**images, "model": settings("flux").model, "variant": None}
    with pytest.raises(SegsmithError, match=problem) as error:
        check_attention(config(images))
    assert "witnesses.attention = 'off'" in str(error.value.remedy)
