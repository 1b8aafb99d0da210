"""The judge's whole image tower as the encoder of a segmenter, with its text features as a classifier of patches.

Importing this module registers the encoder with segmentation-models-pytorch under the name of the tower.
"""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn

from segsmith.segmentation.mini_tower import TOWER

TEXT_SCALE = 10.0
"""Logit of a patch that points exactly into the direction of its class (ours)."""


class TowerEncoder(nn.Module, EncoderMixin):
    """A whole hybrid ViT as a segmentation encoder: the stem's features at strides 2, 4 and 8, the ViT's at 16.

    `forward` takes (B, 3, H, W) with H and W multiples of 16 and returns the input and four feature maps.
    """

    def __init__(self, depth: int = 4, output_stride: int = 16) -> None:
        super().__init__()
        if depth != 4 or output_stride != 16:
            raise ValueError("this encoder has depth 4 and output stride 16")
        vit: Any = timm.create_model(TOWER, num_classes=0)
        self.model = vit
        self._grid: tuple[int, int] = vit.patch_embed.grid_size
        self._depth, self._in_channels, self._output_stride = 4, 3, 16
        with torch.no_grad():
            sizes = [part.shape[1] for part in self._stem(torch.zeros(1, 3, 32, 32))[:3]]
        self._out_channels = [3, *sizes, vit.embed_dim]

    def forward(self, images: Tensor) -> list[Tensor]:
        *fine, coarse = self._stem(images)
        height, width = coarse.shape[-2:]
        vit: Any = self.model
        # timm's own interpolation depends on the size in a way that a traced model cannot.
        positions = vit.pos_embed.transpose(1, 2).reshape(1, -1, *self._grid)
        positions = F.interpolate(positions, (height, width), mode="bicubic")
        tokens = (vit.patch_embed.proj(coarse) + positions).flatten(2).transpose(1, 2)
        tokens = vit.norm(vit.blocks(vit.norm_pre(tokens)))
        patches = tokens.transpose(1, 2).reshape(images.shape[0], -1, height, width)
        return [images, *fine, patches]

    def _stem(self, images: Tensor) -> list[Tensor]:
        vit: Any = self.model
        stem = vit.patch_embed.backbone
        half = stem.act1(stem.bn1(stem.conv1(images)))
        quarter = stem.layer1(stem.maxpool(half))
        eighth = stem.layer2(quarter)
        return [half, quarter, eighth, stem.layer3(eighth)]

    def make_dilated(self, output_stride: int) -> None:
        """Do nothing: the last features already have stride 16."""


class TextGuided(nn.Module):
    """A segmentation network whose logits are added to those of a linear classifier of its encoder's patches.

    The classifier can start from a CLIP's text features, so that it knows the classes before any training, as in
    MaskCLIP (Zhou et al. 2022); the decoder then learns what the coarse patches lack.
    """

    def __init__(self, network: nn.Module, n_outputs: int) -> None:
        super().__init__()
        self.network = network
        width = self.encoder.out_channels[-1]
        self.classifier = nn.Conv2d(width, n_outputs, 1)
        nn.init.zeros_(self.classifier.weight)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)

    @property
    def encoder(self) -> Any:
        return self.network.encoder

    def start_from_texts(self, directions: Tensor) -> None:
        """Let patches that point into a row of `directions` (C, D) score high for that class."""
        with torch.no_grad():
            unit = F.normalize(directions, dim=1)
            self.classifier.weight[1:, :, 0, 0] = TEXT_SCALE * unit
            # At first the decoder, which has random weights, only adds a little.
            self.network.segmentation_head[0].weight.mul_(0.1)  # type: ignore[index, union-attr]

    def forward(self, images: Tensor) -> Tensor:
        network: Any = self.network
        features = network.encoder(images)
        fine = network.segmentation_head(network.decoder(features))
        coarse = self.classifier(F.normalize(features[-1], dim=1))
        return fine + F.interpolate(coarse, images.shape[-2:], mode="bilinear")


smp.encoders.encoders[TOWER] = {"encoder": TowerEncoder, "pretrained_settings": {}, "params": {}}
