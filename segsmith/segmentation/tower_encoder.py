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

TEXT_SCALE = 20.0
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
    """A segmentation network whose decoder says where objects are, and its encoder's patches which class they show.

    The patches are scored by a linear classifier that can start from a CLIP's text features, so that it knows the
    classes before any training (MaskCLIP, Zhou et al. 2022). The decoder only divides each pixel's probability
    between background and objects. So if the classifier is frozen with the encoder, only outlines are learnt from
    the training images, and these differ less between styles than what objects look like: grouping and classifying
    are decoupled as in ZegFormer (Ding et al. 2022).

    Where background is no class there is nothing to divide: the decoder's logits are added to the classifier's.
    """

    def __init__(self, network: nn.Module, n_outputs: int) -> None:
        super().__init__()
        self.network = network
        self.has_background = True
        width = self.encoder.out_channels[-1]
        self.classifier = nn.Conv2d(width, n_outputs, 1)
        nn.init.zeros_(self.classifier.weight)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)

    @property
    def encoder(self) -> Any:
        return self.network.encoder

    def start_from_texts(self, directions: Tensor, *, frozen: bool) -> None:
        """Let patches that point into a row of `directions` (C, D) score high for that class.

        With `frozen`, the classifier is not trained further.
        """
        with torch.no_grad():
            self.classifier.weight[1:, :, 0, 0] = TEXT_SCALE * F.normalize(directions, dim=1)
        self.classifier.requires_grad_(not frozen)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, C + 1, H, W); with background they are logarithms of probabilities."""
        network: Any = self.network
        features = network.encoder(images)
        fine = network.segmentation_head(network.decoder(features))
        coarse = F.interpolate(
            self.classifier(F.normalize(features[-1], dim=1)), images.shape[-2:], mode="bilinear"
        )
        if not self.has_background:
            return fine + coarse
        shares = fine.log_softmax(1)
        objects = shares[:, 1:].logsumexp(1, keepdim=True)
        return torch.cat([shares[:, :1], objects + coarse[:, 1:].log_softmax(1)], 1)


smp.encoders.encoders[TOWER] = {"encoder": TowerEncoder, "pretrained_settings": {}, "params": {}}
