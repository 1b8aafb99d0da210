"""``open_clip_config.json`` of a folder or a repository: read with an allow-list before open_clip sees it.

open_clip passes parts of this file on as keyword arguments. With ``trust_remote_code`` among those of the
tokenizer, loading a model would run Python code that comes with it. So only known settings are accepted, and
names of other models only if they are plain names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from segsmith.errors import SegsmithError
from segsmith.terminal_text import printable
from segsmith.tools.weights.hub import hub_file
from segsmith.tools.weights.model_requirements import OPEN_CLIP_CONFIG

MAX_CONFIG_BYTES = 1 << 20
Count = Annotated[int, Field(ge=0, le=16_384)]
"""Of layers, heads, channels, pixels or tokens of a text."""
Vocabulary = Annotated[int, Field(ge=1, le=2_000_000)]
Share = Annotated[float, Field(ge=0, lt=1)]
PlainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$", max_length=100)]
"""A model of timm's registry. A colon would make timm load another repository or folder."""
HubName = Annotated[
    str,
    StringConstraints(
        pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*/)?[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=100
    ),
]
TextModel = Literal[
    "roberta-base", "xlm-roberta-base", "xlm-roberta-large", "google/mt5-base", "google/mt5-xl",
    "facebook/nllb-200-distilled-600M", "facebook/nllb-200-distilled-1.3B",
]  # fmt: skip
"""Text towers of transformers that open_clip's own configurations use."""
Triple = Annotated[list[Annotated[float, Field(ge=-10, le=10)]], Field(min_length=3, max_length=3)]


class Part(BaseModel):
    """Base of every part: an unknown setting is an error, and so is a value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class NormKwargs(Part):
    """Arguments of a layer norm."""

    eps: float | None = Field(None, gt=0, lt=1)


class ActKwargs(Part):
    """Arguments of an activation."""

    approximate: Literal["none", "tanh"] | None = None


class TokenizerKwargs(Part):
    """Arguments of a tokenizer; not among them: code, files and other repositories."""

    clean: Literal["canonicalize", "lower", "whitespace"] | None = None
    strip_sep_token: bool | None = None
    reduction_mask: Literal["", "simple", "random", "shuffle", "syntax"] | None = None


class Tower(Part):
    """What image, text and multimodal towers have in common."""

    layers: Count | list[Count] | None = None
    width: Count | None = None
    heads: Count | None = None
    mlp_ratio: float | None = Field(None, gt=0, le=64)
    ls_init_value: float | None = None
    pool_type: Literal["tok", "avg", "none", "argmax", "first", "last", "eos"] | None = None
    final_ln_after_pool: bool | None = None
    output_tokens: bool | None = None
    act_kwargs: ActKwargs | None = None
    norm_kwargs: NormKwargs | None = None
    block_type: Literal["default", "custom"] | None = None
    qk_norm: bool | None = None
    scaled_cosine_attn: bool | None = None
    scale_heads: bool | None = None
    scale_attn_inner: bool | None = None
    scale_attn: bool | None = None
    scale_fc: bool | None = None


class VisionConfig(Tower):
    """open_clip's CLIPVisionCfg."""

    head_width: Annotated[int, Field(ge=1, le=16_384)] | None = None
    patch_size: Count | None = None
    image_size: Count | list[Count] | None = None
    patch_dropout: Share | None = None
    attentional_pool: bool | Literal["parallel", "cascade"] | None = None
    attn_pooler_queries: Count | None = None
    attn_pooler_heads: Count | None = None
    no_ln_pre: bool | None = None
    pos_embed_type: Literal["learnable", "sin_cos_2d"] | None = None
    timm_model_name: PlainName | None = None
    timm_model_pretrained: bool | None = None
    timm_pool: Literal["", "abs_attn", "rot_attn", "avg", "token", "map", "max", "avgmax"] | None = None
    timm_proj: Literal["", "linear", "mlp", "none"] | None = None
    timm_proj_bias: bool | None = None
    timm_drop: Share | None = None
    timm_drop_path: Share | None = None


class TextConfig(Tower):
    """open_clip's CLIPTextCfg."""

    context_length: Count | None = None
    vocab_size: Vocabulary | None = None
    hf_tokenizer_name: HubName | Literal[""] | None = None
    tokenizer_mode: Literal["", "clips"] | None = None
    tokenizer_kwargs: TokenizerKwargs | None = None
    embed_cls: bool | None = None
    pad_id: Vocabulary | Literal[0] | None = None
    eos_id: Vocabulary | Literal[0] | None = None
    no_causal_mask: bool | None = None
    proj_bias: bool | None = None
    proj_type: Literal["linear", "none"] | None = None
    hf_model_name: TextModel | None = None
    hf_model_pretrained: bool | None = None
    hf_proj_type: Literal["linear", "mlp"] | None = None
    hf_pooler_type: (
        Literal["mean_pooler", "max_pooler", "cls_pooler", "cls_last_hidden_state_pooler"] | None
    ) = None


class MultimodalConfig(TextConfig):
    """open_clip's MultimodalCfg, of CoCa."""

    dim_head: Count | None = None
    n_queries: Count | None = None
    attn_pooler_heads: Count | None = None


class ModelConfig(Part):
    """Arguments of an open_clip model."""

    embed_dim: Count
    vision_cfg: VisionConfig
    text_cfg: TextConfig
    multimodal_cfg: MultimodalConfig | None = None
    custom_text: bool | None = None
    quick_gelu: bool | None = None
    init_logit_scale: float | None = None
    init_logit_bias: float | None = None
    nonscalar_logit_scale: bool | None = None


class PreprocessConfig(Part):
    """How images are prepared."""

    size: Count | list[Count] | None = None
    mode: Literal["RGB"] | None = None
    mean: Triple | None = None
    std: Triple | None = None
    interpolation: Literal["bicubic", "bilinear", "nearest"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    fill_color: Annotated[int, Field(ge=0, le=255)] | None = None


class ClipConfig(Part):
    """The whole file."""

    model_cfg: ModelConfig
    preprocess_cfg: PreprocessConfig = PreprocessConfig()

    @property
    def has_hf_tokenizer(self) -> bool:
        """Is the text split into tokens by transformers, and not by open_clip?"""
        return bool(self.model_cfg.text_cfg.hf_tokenizer_name)


def read_clip_config(file: Path) -> ClipConfig:
    """The checked content of ``open_clip_config.json``. Raises `SegsmithError` for anything that is not allowed."""
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise SegsmithError(f"{file} is too large for a configuration.", REMEDY)
        return ClipConfig.model_validate_json(file.read_bytes())
    except OSError as error:
        raise SegsmithError(f"Cannot read {file}: {error.strerror}.", REMEDY) from None
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise SegsmithError(
            printable(f"{file} is not allowed as a CLIP configuration: {where:.120}: {first['msg']:.120}."),
            REMEDY,
        ) from None


def check_clip(spec: str) -> ClipConfig | None:
    """The checked configuration that comes with a CLIP: a folder, or a repository whose files are on this machine.

    None for a name of open_clip, whose configuration is part of open_clip, and for a repository that has not
    been downloaded. Raises `SegsmithError`; loads nothing.
    """
    if spec.startswith("hf-hub:"):
        file = hub_file(spec.removeprefix("hf-hub:"), OPEN_CLIP_CONFIG)
        return None if file is None else read_clip_config(file)
    folder = Path(spec.removeprefix("local-dir:"))
    if not spec.startswith("local-dir:") and not (spec and folder.is_dir()):
        return None
    if not (folder / OPEN_CLIP_CONFIG).is_file():
        raise SegsmithError(
            f"The folder {folder} contains no {OPEN_CLIP_CONFIG}.",
            "Name a folder that open_clip saved, or name:weights such as ViT-B-32:openai.",
        )
    return read_clip_config(folder / OPEN_CLIP_CONFIG)


REMEDY = (
    "Use a folder or repository that open_clip saved, without settings that run code; or judge.clip = 'mini'."
)
