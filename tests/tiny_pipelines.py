"""Diffusion pipelines of a few thousand random weights, saved in the format of the big ones."""

from __future__ import annotations

import string
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load
from safetensors.torch import save as save_bytes
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
)

SIDE = 64
"""Pixels; the tiny VAEs shrink by 2, so latents are 32 x 32."""


def save(kind: str, folder: Path) -> Path:
    """A new pipeline of `kind` (sd, sdxl, sd3, flux, lcm, sprint) in `folder`; the same weights each time."""
    _made(kind).save_pretrained(folder)
    return folder


def hub_repository(kind: str, folder: Path) -> dict[str, bytes]:
    """File name -> content of a pipeline as it is laid out on the hub; `folder` is for temporary files.

    "sdxl" has plain and fp16 weights, a second autoencoder and copies for other programs; "flux" has plain weights
    in shards; "lcm" has plain weights and code that is not needed. Text encoders have the names that older versions
    of transformers gave their tensors.
    """
    files: dict[str, bytes] = {"README.md": b"a model", ".gitattributes": b""}
    _made(kind).save_pretrained(folder / "plain", max_shard_size="40KB" if kind == "flux" else "10GB")
    files |= _read(folder / "plain")
    if kind == "sdxl":
        _made(kind).to(torch.float16).save_pretrained(folder / "half", variant="fp16")
        files |= _read(folder / "half")
        for name in ("config.json", "diffusion_pytorch_model.fp16.safetensors"):
            files[f"vae_1_0/{name}"] = files[f"vae/{name}"]
        files |= {"sd_xl_base_1.0.safetensors": b"?" * 9000, "unet/model.onnx": b"?" * 9000}
    if kind == "flux":
        files |= {"flux1-schnell.safetensors": b"?" * 9000, "ae.safetensors": b"?" * 9000}
    if kind == "lcm":
        files |= {"lcm_pipeline.py": b"raise SystemExit", "LCM_Dreamshaper_v7_4k.safetensors": b"?" * 9000}
    return {
        name: _with_older_names(content) if _is_clip(name) else content for name, content in files.items()
    }


def _made(kind: str):
    torch.manual_seed(0)
    makers = {"sd": _sd, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux, "lcm": _lcm, "sprint": _sprint}
    return makers[kind]()


def _read(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _is_clip(name: str) -> bool:
    return name.startswith("text_encoder") and "/model." in name and name.endswith(".safetensors")


def _with_older_names(content: bytes) -> bytes:
    tensors = load(content)
    if not any("token_embedding" in key for key in tensors):  # not CLIP's text encoder
        return content
    older = {
        k if k.startswith(("text_model.", "text_projection")) else f"text_model.{k}": v
        for k, v in tensors.items()
    }
    older["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return save_bytes(older, {"format": "pt"})


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


def _lcm():
    return diffusers.LatentConsistencyModelPipeline(
        vae=_vae(), text_encoder=_text(), tokenizer=tokenizer(), unet=_unet(32, time_cond_proj_dim=16),
        scheduler=diffusers.LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sprint():
    """SANA-Sprint, which diffusers does not map to text to image; it draws at 1024 px, whatever size is asked for."""
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=32, qk_norm="rms_norm_across_heads", guidance_embeds=True,
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=["ResBlock"] * 5,
        decoder_block_types=["ResBlock"] * 5, encoder_block_out_channels=(8,) * 5, decoder_block_out_channels=(8,) * 5,
        encoder_qkv_multiscales=((),) * 5, decoder_qkv_multiscales=((),) * 5, encoder_layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5, downsample_block_type="conv", upsample_block_type="interpolate",
        decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407,
    ).eval()  # fmt: skip
    words = tokenizer()
    gemma = Gemma2Config(
        head_dim=16, hidden_size=8, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1,
        num_key_value_heads=2, vocab_size=len(words), attn_implementation="eager", pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    return diffusers.SanaSprintPipeline(
        tokenizer=words, text_encoder=Gemma2Model(gemma).eval(), vae=vae, transformer=transformer,
        scheduler=diffusers.SCMScheduler(),
    )  # fmt: skip
