"""The segmentation network, and how its encoder starts from the judge's image tower."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

from segsmith.config import TrainerConfig
from segsmith.errors import SegsmithError

log = logging.getLogger(__name__)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own normalisation (OpenAI), where no tower says otherwise."""

STRIDE = 32
"""Inputs are padded to a multiple of this; no architecture here needs more."""

DECODERS: dict[str, dict[str, Any]] = {
    # Atrous rates for feature maps of 8 to 16 cells a side; the paper's 12-24-36 would only see padding.
    # Depth 4 leaves out the last stage: it has most of the weights, none of them in a CLIP tower's stem.
    "deeplabv3plus": {
        "encoder_depth": 4,
        "decoder_channels": 96,
        "encoder_output_stride": 16,
        "decoder_atrous_rates": [2, 4, 6],
        "decoder_aspp_dropout": 0.1,
    },
    "unet": {"decoder_channels": [128, 96, 64, 32, 24]},
    "fpn": {"decoder_pyramid_channels": 128, "decoder_segmentation_channels": 96},
}
"""Decoder settings by architecture, small enough for two cores; others keep the library's defaults."""


def build_segmenter(config: TrainerConfig, n_classes: int, clip_tower: nn.Module | None = None) -> nn.Module:
    """A network from normalised RGB (B, 3, H, W) to logits (B, n_classes + 1, H, W).

    H and W are multiples of 32; channel 0 is background. With ``encoder_init = "clip"`` every weight of
    `clip_tower`'s convolutional stem whose name and shape fit is copied into the encoder; "pretrained" takes
    timm's own weights of a ``tu-`` encoder from the hub's cache or the hub. Raises `SegsmithError` for an
    unknown architecture or encoder, and when no weight fits.
    """
    model = bare_segmenter(config.architecture, config.encoder, n_classes, decoder_of(config.architecture))
    if config.encoder_init == "clip":
        if clip_tower is None:
            raise SegsmithError(
                "trainer.encoder_init is 'clip', but no image tower was given.",
                "Set trainer.encoder_init to 'none' to start from random weights.",
            )
        copy_stem(model, clip_tower, config.encoder)
        # open_clip notes on the tower how its inputs were normalised; the stem knows no other.
        set_normalisation(
            model,
            getattr(clip_tower, "image_mean", None) or MEAN,
            getattr(clip_tower, "image_std", None) or STD,
        )
    elif config.encoder_init == "pretrained":
        load_pretrained(model, config.encoder)
    elif config.encoder_init != "none":
        raise SegsmithError(
            f"There is no trainer.encoder_init {config.encoder_init!r}.",
            "Type 'clip', 'pretrained' or 'none'.",
        )
    return model


def decoder_of(architecture: str) -> dict[str, Any]:
    """Our settings of an architecture's decoder; empty where the library's defaults serve."""
    return DECODERS.get(architecture.lower(), {})


def bare_segmenter(architecture: str, encoder: str, n_classes: int, decoder: Mapping[str, Any]) -> nn.Module:
    """The network with random weights; nothing is downloaded."""
    if architecture.lower() not in smp.MODEL_ARCHITECTURES_MAPPING:
        names = ", ".join(sorted(a.__name__ for a in smp.MODEL_ARCHITECTURES_MAPPING.values()))
        raise SegsmithError(f"There is no architecture {architecture!r}.", f"Type one of: {names}.")
    try:
        model: nn.Module = smp.create_model(
            architecture, encoder, encoder_weights=None, classes=n_classes + 1, **decoder
        )
    # What the two libraries raise for a name they lack, or an encoder that cannot serve this decoder.
    except (KeyError, ValueError, RuntimeError, NotImplementedError) as error:
        said = str(error).strip("\"'").partition(", supported encoders")[0]
        raise SegsmithError(
            f"Encoder {encoder!r} cannot be used in {architecture}: {said:.200}.",
            "Name an encoder of segmentation-models-pytorch, or 'tu-' and a timm model, e.g. tu-resnet10t.",
        ) from None
    set_normalisation(model, MEAN, STD)
    return model


def load_pretrained(model: nn.Module, encoder: str) -> int:
    """Fill a ``tu-`` encoder with timm's weights of that name; returns the number of tensors copied."""
    name = encoder.removeprefix("tu-")
    if name == encoder or not timm.is_model(name):
        raise SegsmithError(
            f"Encoder {encoder!r} is not a timm model, so it has no pretrained weights here.",
            "Set trainer.encoder to 'tu-' and a timm model, or trainer.encoder_init to 'none'.",
        )
    try:
        source = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SegsmithError(
            f"The weights of {name} cannot be loaded: {reason:.160}.",
            "Type segsmith models pull, or set trainer.encoder_init to 'none'.",
        ) from None
    target: nn.Module = model.encoder.model  # type: ignore[union-attr, assignment]
    own = target.state_dict()
    fitting = {k: v for k, v in source.state_dict().items() if k in own and own[k].shape == v.shape}
    target.load_state_dict(fitting, strict=False)
    settings: Any = source.pretrained_cfg
    set_normalisation(model, settings["mean"], settings["std"])
    return len(fitting)


def copy_stem(model: nn.Module, clip_tower: nn.Module, encoder: str) -> int:
    """Copy what fits from the tower's convolutional stem; returns the number of tensors copied.

    The stem of a timm hybrid ViT is `patch_embed.backbone` (open_clip keeps the timm model in `.trunk`); a
    purely convolutional tower is its own stem.
    """
    stem = _stem(clip_tower)
    # SMP's "tu-" encoders keep the timm model in `.model`; its own encoders have the names at the top.
    encoder_module: Any = model.encoder
    target: nn.Module = getattr(encoder_module, "model", encoder_module)
    own, theirs = target.state_dict(), stem.state_dict()
    fitting = {k: v for k, v in theirs.items() if k in own and own[k].shape == v.shape}
    if not any(v.is_floating_point() and v.ndim > 1 for v in fitting.values()):
        name = (getattr(stem, "pretrained_cfg", None) or {}).get("architecture")
        raise SegsmithError(
            f"No weight of the CLIP image tower fits the encoder {encoder!r}.",
            (f"Set trainer.encoder to 'tu-{name}', or " if name else "Set ")
            + "trainer.encoder_init to 'none'.",
        )
    target.load_state_dict(fitting, strict=False)
    log.info("encoder: %d of %d tensors copied from the CLIP tower", len(fitting), len(own))
    return len(fitting)


def set_normalisation(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let the network remember the three means and deviations of its inputs; `normalise` uses them."""
    for name, values in (("pixel_mean", mean), ("pixel_std", std)):
        # Not persistent: they are in the checkpoint's description, where other readers look for them.
        model.register_buffer(name, torch.tensor(tuple(values)).view(3, 1, 1), persistent=False)


def normalise(model: nn.Module, images: Tensor) -> Tensor:
    """(B, 3, H, W) RGB in [0, 1] -> what `model` expects."""
    return (images - model.get_buffer("pixel_mean")) / model.get_buffer("pixel_std")


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The means and deviations `normalise` uses, in the order red, green, blue."""
    mean, std = model.get_buffer("pixel_mean"), model.get_buffer("pixel_std")
    return tuple(mean.flatten().tolist()), tuple(std.flatten().tolist())


def _stem(tower: nn.Module) -> nn.Module:
    trunk = getattr(tower, "trunk", tower)
    stem = getattr(getattr(trunk, "patch_embed", None), "backbone", None)
    return stem if isinstance(stem, nn.Module) else trunk
