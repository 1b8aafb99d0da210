"""Parts that a small SAM needs beside segment-anything's own classes, which run it all unchanged.

`ConvStem` lets a small ViT train quickly. The skip path hands the stem's fine features to the mask decoder,
as HQ-SAM (Ke et al. 2023, section 3.2) and SAM 2 (Ravi et al. 2024, section 4) do for large models: borders
are drawn from what was seen at a half and a quarter of the input's resolution, not from 8 px patches alone.
The fine features travel as further channels of the image embedding, so that segment-anything's forward
path, which knows one embedding per image, needs no change.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn


class ConvStem(nn.Module):
    """Strided 3x3 convolutions from (B, 3, H, W) to (B, H / 2^k, W / 2^k, C), in place of `PatchEmbed`.

    A small ViT trains far quicker on it (Xiao et al. 2021, "Early convolutions help transformers see
    better"); everything behind it stays segment-anything's.
    """

    def __init__(self, widths: tuple[int, ...], out_width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in widths:
            layers += [nn.Conv2d(inputs, width, 3, 2, 1), nn.GroupNorm(8, width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(inputs, out_width, 3, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.pyramid(x)[-1].permute(0, 2, 3, 1)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """What follows each convolution's activation, finest first: (B, w, H / 2, W / 2), (B, w', H / 4, ...) ..."""
        levels = []
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                levels.append(x)
        return [*levels, x]


class SkipEncoder(ImageEncoderViT):
    """SAM's image encoder with a `ConvStem` whose two finest levels are appended to the embedding.

    Output: (B, C + 4 * C/4 + 16 * C/8, h, w) for C = `out_chans` and patches of 8 px; the appended channels
    are the fine features, folded so that one position of the embedding holds its whole patch.
    """

    def __init__(self, stem_widths: tuple[int, int], out_chans: int, embed_dim: int, **sizes: Any) -> None:
        super().__init__(out_chans=out_chans, embed_dim=embed_dim, **sizes)
        self.patch_embed: nn.Module = ConvStem(stem_widths, embed_dim)
        self.fine = nn.Conv2d(stem_widths[0], out_chans // 8, 1)
        self.middle = nn.Conv2d(stem_widths[1], out_chans // 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine, middle, coarse = self.patch_embed.pyramid(x)  # type: ignore[operator]
        hidden = coarse.permute(0, 2, 3, 1) + self.pos_embed
        for block in self.blocks:
            hidden = block(hidden)
        skips = F.pixel_unshuffle(self.middle(middle), 2), F.pixel_unshuffle(self.fine(fine), 4)
        return torch.cat([self.neck(hidden.permute(0, 3, 1, 2)), *skips], dim=1)


class SkipPromptEncoder(PromptEncoder):
    """SAM's prompt encoder, its dense embedding filled with zeros where the skip channels are."""

    def forward(self, points: Any, boxes: Any, masks: Any) -> tuple[Tensor, Tensor]:
        sparse, dense = super().forward(points, boxes, masks)
        return sparse, F.pad(dense, (0, 0, 0, 0, 0, 3 * self.embed_dim))


class SkipTransformer(TwoWayTransformer):
    """SAM's two-way transformer over the first C channels; the skip channels go past it."""

    def forward(self, image_embedding: Tensor, image_pe: Tensor, point_embedding: Tensor) -> Any:
        seen, past = image_embedding.tensor_split([self.embedding_dim], dim=1)
        tokens, keys = super().forward(seen, image_pe, point_embedding)
        return tokens, torch.cat([keys, past.flatten(2).transpose(1, 2)], dim=2)


class SkipUpscaling(nn.Module):
    """Four times larger: (P, 4 C, h, w) to (P, C / 8, 4 h, 4 w), with the skip channels added on the way.

    The closing convolutions begin as the identity, so a model without a skip path can go on with one.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.first = nn.ConvTranspose2d(width, width // 4, 2, 2)
        self.norm = LayerNorm2d(width // 4)
        self.second = nn.ConvTranspose2d(width // 4, width // 8, 2, 2)
        last = nn.Conv2d(width // 4, width // 8, 3, padding=1, bias=False)
        nn.init.zeros_(last.weight)
        self.mix = nn.Sequential(nn.Conv2d(width // 8, width // 4, 3, padding=1), nn.GELU(), last)

    def forward(self, source: Tensor) -> Tensor:
        coarse, middle, fine = source.split([self.width, self.width, 2 * self.width], dim=1)
        x = F.gelu(self.norm(self.first(coarse) + F.pixel_shuffle(middle, 2)))
        x = F.gelu(self.second(x) + F.pixel_shuffle(fine, 4))
        return x + self.mix(x)
