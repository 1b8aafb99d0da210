"""CLIP image towers as timm models, so that the labeler can start from any of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeGuard

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from segsmith.errors import SegsmithError
from segsmith.tools.vision.clip import OpenClipEncoder

BACKGROUND_TEXTS = ("an empty scene", "a photo of nothing", "background", "a photo of an empty place")


def is_vit(trunk: object) -> TypeGuard[VisionTransformer | Eva]:
    """Whether a timm model is a ViT whose patches can be scored: plain, or with rotary positions (Eva, PE-Core).

    Not one whose positions differ from block to block.
    """
    return isinstance(trunk, VisionTransformer) or (isinstance(trunk, Eva) and not trunk.rope_mixed)


def tower_as_timm(encoder: OpenClipEncoder) -> tuple[VisionTransformer | Eva, torch.Tensor | None]:
    """A copy of the CLIP image tower as a timm ViT, and its (E, D) projection of tokens, if linear.

    Towers that pool by attention, such as SigLIP's and PE-Core's, have no projection of single tokens. open_clip's
    own ViT is converted with timm's checkpoint filter.
    """
    tower: Any = encoder.tower
    trunk = getattr(tower, "trunk", None)
    if is_vit(trunk):
        pools = getattr(trunk, "attn_pool", None) is not None
        projection = getattr(tower.head, "proj", None if pools else trunk.head)
        weight = projection.weight if isinstance(projection, nn.Linear) else None
        return copy.deepcopy(trunk), None if weight is None else weight.detach().cpu().float()
    if not hasattr(tower, "class_embedding") or not hasattr(tower, "conv1"):
        raise SegsmithError(
            f"The image tower of {encoder.name} is not a ViT, so the labeler cannot start from it.",
            "Set judge.clip to a CLIP with a ViT, such as 'mini' or ViT-B-16:openai.",
        )
    block = tower.transformer.resblocks[0]
    rebuilt = VisionTransformer(
        img_size=tower.image_size,
        patch_size=tower.patch_size,
        embed_dim=tower.conv1.out_channels,
        depth=len(tower.transformer.resblocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.c_fc.out_features / block.mlp.c_fc.in_features,
        pre_norm=True,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=block.ln_1.eps),
        act_layer="quick_gelu" if type(block.mlp.gelu).__name__ == "QuickGELU" else "gelu",
        dynamic_img_size=True,
    )
    state = {f"visual.{key}": value.detach().cpu() for key, value in tower.state_dict().items()}
    converted = checkpoint_filter_fn(state, rebuilt)
    rebuilt.load_state_dict({k: v for k, v in converted.items() if not k.startswith("head.")})
    return rebuilt, tower.proj.detach().cpu().float().T


def class_directions(
    encoder: OpenClipEncoder, names: Sequence[str], projection: torch.Tensor | None = None
) -> torch.Tensor:
    """(C, D) directions in the space of a tower's tokens: towards a class, and away from background texts.

    `projection` is that of `tower_as_timm`, which is asked where it is not given. A token's scalar product with a row
    is its similarity to the class's text minus that to the background's.
    """
    if projection is None:
        projection = tower_as_timm(encoder)[1]
    assert projection is not None, "the tower has no projection of single tokens"
    texts = torch.from_numpy(encoder.embed_texts([f"a photo of a {name}" for name in names]))
    nothing = torch.from_numpy(encoder.embed_texts(BACKGROUND_TEXTS)).mean(0)
    return (texts - nothing) @ projection
