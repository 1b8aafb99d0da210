"""Diffusion pipelines of a few thousand random weights, saved in the format of the big ones."""

from __future__ import annotations

import string
from pathlib import Path

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

SIDE = 64
"""Pixels; the tiny VAEs shrink by 2, so latents are 32 x 32."""


def save(kind: str, folder: Path) -> Path:
    """A new pipeline of `kind` (sd, sdxl, sd3, flux) in `folder`; the same weights each time."""
    torch.manual_seed(0)
    {"sd": _sd, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}[kind]().save_pretrained(folder)
    return folder


def tokenizer() -> CLIPTokenizer:
    """CLIP's format with no merges: every letter is a token."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _text(projection: bool = False, width: int = 32):
    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=37, projection_dim=32, num_hidden_layers=2,
        num_attention_heads=4, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def _t5():
    size = len(tokenizer())
    return T5EncoderModel(
        T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    ).eval()


def _vae(channels: int = 4, shift: float | None = None):
    return diffusers.AutoencoderKL(
        block_out_channels=[8, 16], in_channels=3, out_channels=3, latent_channels=channels, norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, sample_size=SIDE,
        shift_factor=shift,
    ).eval()  # fmt: skip


def _unet(cross: int, **more):
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=SIDE // 2, in_channels=4, out_channels=4,
        norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=cross, attention_head_dim=4, **more,
    ).eval()  # fmt: skip


def _sd():
    return diffusers.StableDiffusionPipeline(
        vae=_vae(), text_encoder=_text(), tokenizer=tokenizer(), unet=_unet(32),
        scheduler=diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl():
    unet = _unet(
        64, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=6 * 8 + 32,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_text(), text_encoder_2=_text(projection=True), tokenizer=tokenizer(),
        tokenizer_2=tokenizer(), unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"
        ),
    )  # fmt: skip


def _sd3():
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=SIDE // 2, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64,
        out_channels=4, pos_embed_max_size=SIDE // 2,
    ).eval()  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(shift=0.1), text_encoder=_text(projection=True), tokenizer=tokenizer(),
        text_encoder_2=_text(projection=True), tokenizer_2=tokenizer(),
        text_encoder_3=_t5(), tokenizer_3=tokenizer(),
    )  # fmt: skip


def _flux():
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=_vae(channels=1, shift=0.0),
        text_encoder=_text(), tokenizer=tokenizer(), text_encoder_2=_t5(), tokenizer_2=tokenizer(), transformer=transformer,
    )  # fmt: skip
