"""The mini CLIP's image tower, registered with timm.

Importing this module registers the tower, so that `timm.create_model("vit_mini_r10t_s16_128")` and open_clip
configs that name it work.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
from timm.layers.hybrid_embed import HybridEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

STEM = "resnet10t"
TOWER = "vit_mini_r10t_s16_128"

default_cfgs = generate_default_cfgs(
    {
        TOWER: {
            "input_size": (3, 128, 128),
            "pool_size": None,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "patch_embed.backbone.conv1.0",
            "classifier": "head",
        }
    }
)


@register_model
def vit_mini_r10t_s16_128(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT, 192 wide and 4 deep, on the stride-16 features of a ResNet-10-T; 128 px gives 8 x 8 patches.

    A plain ViT of this size learns slowly from little data; a convolutional stem helps (hybrid ViT,
    Dosovitskiy et al. 2021, section 3.1). The final norm is applied before the average over patches, so that an
    image's embedding is exactly the mean of its patches' embeddings.
    """
    stem = timm.create_model(STEM, pretrained=False, features_only=True, out_indices=(3,))
    settings: dict[str, Any] = {
        "img_size": 128,
        "patch_size": 1,
        "embed_dim": 192,
        "depth": 4,
        "num_heads": 3,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
        "dynamic_img_size": True,
        "embed_layer": partial(HybridEmbed, backbone=stem),
    }
    return build_model_with_cfg(
        VisionTransformer, "vit_mini_r10t_s16_128", pretrained, **{**settings, **kwargs}
    )
