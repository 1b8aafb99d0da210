"""The segmentation network, and the initialisation of its encoder from the judge's image tower."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import segmentation_models_pytorch as smp
import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from segsmith.config import TrainerConfig
from segsmith.errors import SegsmithError
from segsmith.model_loading import READ_ERRORS, cached_first
from segsmith.segmentation.mini_tower import TOWER
from segsmith.segmentation.tower_encoder import TextGuided

log = logging.getLogger(__name__)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's normalisation (OpenAI), unless the image tower has another."""

TIMM_NAME = re.compile(r"[a-z0-9_]{1,80}(\.[a-z0-9_]{1,80})?", re.ASCII)
"""A model of timm, with the tag of its weights or without."""
ENCODER_REMEDY = (
    "Use an encoder of segmentation-models-pytorch, or 'tu-' and a timm model, e.g. tu-resnet10t."
)
VIT_REMEDY = "Use 'tu-' and a plain ViT of timm, e.g. tu-vit_small_patch14_reg4_dinov2.lvd142m."

NEVER = -1000.0
"""Logit of a channel that is never predicted; float16 holds it, and interpolation keeps three decimals of it."""
STRIDE = 32
"""Inputs are padded to a multiple of this, which suits all supported architectures."""
VIT_PATCH = 16
"""Side in pixels of a ViT's patches under a DPT decoder: half of `STRIDE`, because its last stage halves the grid."""

JUDGE = "judge"
"""Value of ``trainer.encoder`` for the judge's image tower."""

DECODERS: dict[str, dict[str, Any]] = {
    # Atrous rates for feature maps of 8 to 16 cells per side; the paper's 12-24-36 would only reach padding.
    # Depth 4 omits the last stage, which has most of the weights, none of which a CLIP tower's stem provides.
    "deeplabv3plus": {
        "encoder_depth": 4,
        "decoder_channels": 96,
        "encoder_output_stride": 16,
        "decoder_atrous_rates": [2, 4, 6],
        "decoder_aspp_dropout": 0.1,
    },
    "unet": {"decoder_channels": [128, 96, 64, 32, 24]},
    "fpn": {"decoder_pyramid_channels": 128, "decoder_segmentation_channels": 96},
    # The widths of Depth Anything V2's small model, which has a DPT on the small DINOv2 (arXiv 2406.09414).
    "dpt": {"decoder_intermediate_channels": [48, 96, 192, 384], "decoder_fusion_channels": 64},
}
"""Decoder settings by architecture, small enough for two cores; others use the library's defaults."""


Channels = Annotated[int, Field(ge=1, le=1024)]
Rate = Annotated[int, Field(ge=1, le=64)]


class DecoderSettings(BaseModel):
    """The decoder settings that a checkpoint may have: those of `DECODERS`, within bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder_depth: int = Field(5, ge=3, le=5)
    decoder_channels: Channels | Annotated[list[Channels], Field(min_length=1, max_length=5)] = 256
    encoder_output_stride: Literal[8, 16] = 16
    decoder_atrous_rates: Annotated[list[Rate], Field(min_length=3, max_length=3)] = [12, 24, 36]
    decoder_aspp_dropout: float = Field(0.5, ge=0, lt=1)
    decoder_pyramid_channels: Channels = 256
    decoder_segmentation_channels: Channels = 128
    decoder_intermediate_channels: Annotated[list[Channels], Field(min_length=3, max_length=5)] = [
        256,
        512,
        1024,
        1024,
    ]
    decoder_fusion_channels: Channels = 256


def build_segmenter(
    config: TrainerConfig,
    n_classes: int,
    clip_tower: nn.Module | None = None,
    directions: Tensor | None = None,
) -> nn.Module:
    """A network from normalised RGB (B, 3, H, W) to logits (B, n_classes + 1, H, W).

    H and W must be multiples of `STRIDE`; channel 0 is background. ``encoder_init = "clip"`` copies every weight of
    `clip_tower`'s convolutional stem whose name and shape match into the encoder; "pretrained" loads timm's weights
    for a ``tu-`` encoder from the hub or its cache. The encoder ``judge`` is the whole of `clip_tower`; `directions`,
    (n_classes, D) in the space of its patches, then start its classifier (`class_directions` makes them), which is
    frozen with the encoder. Raises `SegsmithError` for an unknown architecture or encoder, and if no weight matches.
    """
    if config.freeze_encoder and config.encoder_init == "none":
        raise SegsmithError(
            "trainer.freeze_encoder would keep the random weights of trainer.encoder_init 'none'.",
            "Set trainer.freeze_encoder to false.",
        )
    encoder = encoder_of(config, clip_tower)
    model = bare_segmenter(config.architecture, encoder, n_classes, decoder_of(config.architecture))
    if isinstance(model, TextGuided) and directions is not None:
        model.start_from_texts(directions, frozen=config.freeze_encoder)
    if config.encoder_init == "clip":
        if clip_tower is None:
            raise SegsmithError(
                "trainer.encoder_init is 'clip', but there is no image tower.",
                "Set trainer.encoder_init to 'none' to start from random weights.",
            )
        copy_tower(model, clip_tower, encoder)
        # The stem needs inputs normalised as in its training; open_clip keeps these values on the tower.
        set_normalisation(
            model,
            getattr(clip_tower, "image_mean", None) or MEAN,
            getattr(clip_tower, "image_std", None) or STD,
        )
    elif config.encoder_init == "pretrained":
        load_pretrained(model, encoder)
    elif config.encoder_init != "none":
        raise SegsmithError(
            f"There is no trainer.encoder_init {config.encoder_init!r}.",
            "Type 'clip', 'pretrained' or 'none'.",
        )
    set_input_side(model, config.size)
    return model


def encoder_of(config: TrainerConfig, clip_tower: nn.Module | None) -> str:
    """The encoder's name in the libraries; `JUDGE` is resolved to the architecture of `clip_tower`.

    Raises `SegsmithError` where that tower cannot be an encoder.
    """
    if config.encoder != JUDGE:
        return config.encoder
    if config.encoder_init != "clip" or clip_tower is None:
        raise SegsmithError(
            "trainer.encoder is 'judge', but the encoder does not start from the judge's image tower.",
            "Set trainer.encoder_init to 'clip', or trainer.encoder to another encoder, e.g. tu-resnet10t.",
        )
    trunk = getattr(clip_tower, "trunk", clip_tower)
    name = (getattr(trunk, "pretrained_cfg", None) or {}).get("architecture")
    if name != TOWER or config.architecture.lower() != "deeplabv3plus":
        raise SegsmithError(
            "trainer.encoder is 'judge', which needs judge.clip 'mini' and trainer.architecture DeepLabV3Plus.",
            "Set trainer.freeze_encoder to false, and trainer.encoder to an encoder of segmentation-models-pytorch, "
            "or 'tu-' and a timm model.",
        )
    return TOWER


def encoder_module_of(model: nn.Module) -> nn.Module:
    """The encoder of a segmenter."""
    encoder = model.encoder
    assert isinstance(encoder, nn.Module)
    return encoder


def without_background(model: nn.Module) -> None:
    """Make channel 0 a constant `NEVER`, for data in which every pixel belongs to a class.

    The channel stays, so that the index of a channel is that of its class in every label map. Its probability is 0 in
    every softmax, so no gradient reaches it.
    """
    if isinstance(model, TextGuided):
        model.has_background = False
    head = [part for part in model.modules() if isinstance(part, nn.Conv2d)][-1]
    assert head.bias is not None
    with torch.no_grad():
        head.weight[0] = 0
        head.bias[0] = NEVER


def decoder_of(architecture: str) -> dict[str, Any]:
    """Our decoder settings for an architecture; empty if the library's defaults are used."""
    return DECODERS.get(architecture.lower(), {})


def bare_segmenter(architecture: str, encoder: str, n_classes: int, decoder: Mapping[str, Any]) -> nn.Module:
    """The network with random weights; nothing is downloaded.

    `architecture` and `encoder` must be names that the installed libraries have in their lists: timm would open
    others, such as ``hf_hub:...``, on the hub or as a folder. Raises `SegsmithError` for unusable names.
    """
    if architecture.lower() not in smp.MODEL_ARCHITECTURES_MAPPING:
        names = ", ".join(sorted(a.__name__ for a in smp.MODEL_ARCHITECTURES_MAPPING.values()))
        raise SegsmithError(f"There is no architecture {architecture[:60]!r}.", f"Type one of: {names}.")
    if not is_known_encoder(encoder):
        raise SegsmithError(f"There is no encoder {encoder[:60]!r}.", ENCODER_REMEDY)
    try:
        model: nn.Module = smp.create_model(
            architecture,
            encoder,
            encoder_weights=None,
            classes=n_classes + 1,
            **decoder,
            **vit_settings(architecture),
        )
        if encoder == TOWER:
            model = TextGuided(model, n_classes + 1)
    # The errors of both libraries for an encoder or settings that the decoder cannot use.
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SegsmithError(
            f"Encoder {encoder!r} cannot be used in {architecture}: {reason:.200}.",
            VIT_REMEDY if vit_settings(architecture) else ENCODER_REMEDY,
        ) from None
    set_normalisation(model, MEAN, STD)
    return model


def vit_settings(architecture: str) -> dict[str, Any]:
    """Settings of the timm model in an architecture whose encoder is a plain ViT; empty for the others.

    The ViT takes images of any size, and has patches of `VIT_PATCH` pixels, since the decoder needs a power of two:
    weights of DINOv2's 14 are resampled by timm as they are loaded (FlexiViT, arXiv 2212.08013), positions as well.
    """
    return {"dynamic_img_size": True, "patch_size": VIT_PATCH} if architecture.lower() == "dpt" else {}


def fix_size(model: nn.Module, size: tuple[int, int]) -> tuple[int, int] | None:
    """Resample a ViT's positions once, for images of `size` (H, W), rounded up to multiples of `STRIDE`.

    For formats that cannot resample them. Returns the size, or None for a network that has no positions.
    """
    vit: Any = getattr(model.encoder, "model", None)
    if not getattr(vit, "dynamic_img_size", False):
        return None
    height, width = padded_size(size)
    vit.set_input_size(img_size=(height, width))
    return height, width


def padded_size(size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
    """`size` (H, W) times `scale`, rounded up to multiples of `STRIDE`."""
    height, width = (math.ceil(side * scale / STRIDE) * STRIDE for side in size)
    return height, width


def is_known_encoder(name: str) -> bool:
    """Whether segmentation-models-pytorch has this encoder, or timm, for a name that starts with ``tu-``."""
    timm_name = name.removeprefix("tu-")
    if timm_name == name:
        return name in smp.encoders.encoders
    return bool(TIMM_NAME.fullmatch(timm_name)) and timm.is_model(timm_name)


def load_pretrained(model: nn.Module, encoder: str) -> int:
    """Copy timm's pretrained weights into a ``tu-`` encoder; returns the number of tensors copied.

    Raises `SegsmithError` for other encoders, and if the weights cannot be loaded.
    """
    name = encoder.removeprefix("tu-")
    if name == encoder or not timm.is_model(name):
        raise SegsmithError(
            f"Encoder {encoder!r} is not a timm model, so there are no pretrained weights for it.",
            "Set trainer.encoder to 'tu-' and a timm model, or trainer.encoder_init to 'none'.",
        )
    try:
        settings = vit_settings(model.__class__.__name__)
        source = cached_first(lambda: timm.create_model(name, pretrained=True, **settings))
    except READ_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SegsmithError(
            f"The weights of {name} cannot be loaded: {reason:.160}.",
            "Type segsmith models pull, or set trainer.encoder_init to 'none'.",
        ) from None
    target: nn.Module = model.encoder.model  # type: ignore[union-attr, assignment]
    matching = _matching(target.state_dict(), source.state_dict())
    target.load_state_dict(matching, strict=False)
    trained: Any = source.pretrained_cfg
    set_normalisation(model, trained["mean"], trained["std"])
    return len(matching)


def copy_tower(model: nn.Module, clip_tower: nn.Module, encoder: str) -> int:
    """Copy matching weights from the tower, or from its convolutional stem; returns the number of tensors copied.

    The encoder `TOWER` takes the whole tower, others its stem. That of a timm hybrid ViT is `patch_embed.backbone`
    (open_clip keeps the timm model in `.trunk`); the stem of a convolutional tower is the whole tower. Raises
    `SegsmithError` if no weight matches.
    """
    stem = getattr(clip_tower, "trunk", clip_tower) if encoder == TOWER else _stem(clip_tower)
    # SMP's "tu-" encoders keep the timm model in `.model`; its own encoders have no such attribute.
    encoder_module: Any = model.encoder
    target: nn.Module = getattr(encoder_module, "model", encoder_module)
    own = target.state_dict()
    matching = _matching(own, stem.state_dict())
    if not any(v.is_floating_point() and v.ndim > 1 for v in matching.values()):
        name = (getattr(stem, "pretrained_cfg", None) or {}).get("architecture")
        raise SegsmithError(
            f"No weight of the CLIP image tower matches the encoder {encoder!r}.",
            (f"Set trainer.encoder to 'tu-{name}', or " if name else "Set ")
            + "trainer.encoder_init to 'none'.",
        )
    target.load_state_dict(matching, strict=False)
    log.info("encoder: %d of %d tensors copied from the CLIP tower", len(matching), len(own))
    return len(matching)


def set_normalisation(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Store the means and standard deviations of RGB in [0, 1] on the network, for `normalise`."""
    for name, values in (("pixel_mean", mean), ("pixel_std", std)):
        # Not persistent: the checkpoint's description has them, where other programs can read them.
        model.register_buffer(name, torch.tensor(tuple(values)).view(3, 1, 1), persistent=False)


def set_input_side(model: nn.Module, side: int) -> None:
    """Let `predict` resize images to a longer side of `side` pixels for this model; 0: not at all."""
    model.input_side = side  # type: ignore[assignment]  # a plain attribute, no part of the state


def input_size(model: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) at which `model` sees an image of `size`; see `set_input_side`."""
    return resized(size, getattr(model, "input_side", 0))


def resized(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(H, W) with the longer side `side` and the same ratio; `size` itself where `side` is 0."""
    if not side:
        return size
    height, width = (max(1, round(length * side / max(size))) for length in size)
    return height, width


def normalise(model: nn.Module, images: Tensor) -> Tensor:
    """Normalise (B, 3, H, W) RGB in [0, 1] as `model` expects it."""
    return (images - model.get_buffer("pixel_mean")) / model.get_buffer("pixel_std")


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The means and standard deviations that `normalise` uses, in the order red, green, blue."""
    mean, std = model.get_buffer("pixel_mean"), model.get_buffer("pixel_std")
    return tuple(mean.flatten().tolist()), tuple(std.flatten().tolist())


def _matching(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `theirs` that `own` has under the same name with the same shape."""
    return {k: v for k, v in theirs.items() if k in own and own[k].shape == v.shape}


def _stem(tower: nn.Module) -> nn.Module:
    trunk = getattr(tower, "trunk", tower)
    stem = getattr(getattr(trunk, "patch_embed", None), "backbone", None)
    return stem if isinstance(stem, nn.Module) else trunk
