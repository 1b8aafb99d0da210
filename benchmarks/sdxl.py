"""Stable Diffusion XL's modules in their published sizes, with random weights."""

from __future__ import annotations

import diffusers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection


def text_encoders(bos: int = 0, eos: int = 1) -> tuple[nn.Module, nn.Module]:
    """Both text encoders; `bos` and `eos` are the tokenizer's ids of the first and the last token."""
    ends = {"bos_token_id": bos, "eos_token_id": eos}
    first = CLIPTextModel(CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, **ends
    ))  # fmt: skip
    second = CLIPTextModelWithProjection(CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
        projection_dim=1280, hidden_act="gelu", **ends,
    ))  # fmt: skip
    return first, second


def unet() -> nn.Module:
    """The denoiser, for latents of 128 x 128."""
    return diffusers.UNet2DConditionModel(
        sample_size=128, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), cross_attention_dim=2048,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
