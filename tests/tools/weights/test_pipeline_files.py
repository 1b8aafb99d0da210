"""Which files of a pipeline are needed, from the names in a repository."""

import pytest

from segsmith.errors import SegsmithError
from segsmith.tools.weights.pipeline_files import AUTO, PipelineIndex, choose_variant, needed_files

INDEX = PipelineIndex("X", dict.fromkeys(("unet", "vae", "text_encoder", "tokenizer"), ("diffusers", "Y")))
UNET, VAE, TEXT = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"
SMALL = ["model_index.json", "unet/config.json", "tokenizer/merges.txt"]


def chosen(names, wanted=AUTO):
    names = [*SMALL, *names]
    needed = needed_files(names, INDEX, choose_variant(names, INDEX, wanted, "org/x"))
    assert set(SMALL) <= set(needed)
    return [name for name in needed if name not in SMALL]


def test_half_precision_is_preferred_and_parts_without_it_are_plain():
    half = [f"{UNET}.fp16.safetensors", f"{TEXT}.fp16.safetensors"]
    names = [f"{UNET}.safetensors", f"{VAE}.safetensors", f"{TEXT}.safetensors", *half]
    assert chosen(names) == [f"{VAE}.safetensors", *half]
    assert chosen(names, "") == [f"{UNET}.safetensors", f"{VAE}.safetensors", f"{TEXT}.safetensors"]


def test_plain_weights_are_taken_where_there_is_nothing_else():
    assert chosen([f"{UNET}.safetensors", f"{UNET}.non_ema.safetensors"]) == [f"{UNET}.safetensors"]
    assert chosen([f"{UNET}.bf16.safetensors"]) == [f"{UNET}.bf16.safetensors"]


@pytest.mark.parametrize(
    ("shards", "index"),
    [
        ("{}.fp16-0000{}-of-00002.safetensors", "{}.safetensors.index.fp16.json"),
        ("{}-0000{}-of-00002.fp16.safetensors", "{}.fp16.safetensors.index.json"),
    ],
    ids=["today's names", "older names"],
)
def test_shards_of_a_variant_come_with_their_index(shards, index):
    half = [index.format(TEXT), *(shards.format(TEXT, number) for number in (1, 2))]
    plain = [f"{TEXT}.safetensors.index.json", f"{TEXT}-00001-of-00001.safetensors"]
    assert chosen([*plain, *half]) == half
    assert chosen([*plain, *half], "") == plain


def test_copies_for_other_programs_are_left_out():
    names = [f"{UNET}.safetensors", "whole.safetensors", "vae_1_0/diffusion_pytorch_model.safetensors"]
    assert chosen(names) == [f"{UNET}.safetensors"]


def test_a_variant_that_does_not_exist_is_one_line():
    with pytest.raises(SegsmithError, match=r"no weights of variant 'fp16'; it has: plain\."):
        chosen([f"{UNET}.safetensors"], "fp16")
    with pytest.raises(SegsmithError, match=r"no weights of variant 'plain'; it has: fp16\."):
        chosen([f"{UNET}.fp16.safetensors"], "")
