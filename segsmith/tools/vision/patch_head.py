"""The trained half of the relabelling ViT: the top blocks, and a score per class and patch."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from segsmith.segmentation.seeds import top_k_pool

LAYER_DECAY = 0.7
"""Learning rate of each block relative to the block above it; lower, to preserve CLIP's features."""
HEAD_RATE = 10.0
"""Learning rate of the head relative to the top block."""
LOCAL_BLOCKS = 2
"""Number of top blocks in which each token attends only to itself, in training and inference.

Attention spreads the class over all patches, so that background patches score high too. Without it in the last
blocks, each patch is scored by its own content (MaskCLIP, Zhou et al. 2022, section 3.2, does so in the last one).
"""
START_SPREAD = 3.0
"""Standard deviation of a class's pooled logits before training: enough to rank images, without saturation."""
CALIBRATION_BATCH = 256
MIN_SPREAD = 1e-4
"""Below this, the images score alike, and scaling would only amplify rounding errors."""


class PatchHead(nn.Module):
    """The blocks above the frozen ones, the norms, and a linear classifier for every patch."""

    def __init__(
        self,
        trunk: Any,
        frozen: int,
        n_classes: int,
        start: torch.Tensor | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.prefix = trunk.num_prefix_tokens
        self.rope = copy.deepcopy(getattr(trunk, "rope", None))
        self.blocks = copy.deepcopy(trunk.blocks[frozen:])
        # A norm that timm applies after pooling is applied to each patch here.
        self.norm = nn.Sequential(copy.deepcopy(trunk.norm), copy.deepcopy(trunk.fc_norm))
        self.head = nn.Linear(trunk.embed_dim, n_classes)
        weight = torch.randn(n_classes, trunk.embed_dim, generator=generator) * 0.02
        self.has_start = start is not None
        with torch.no_grad():
            self.head.weight.copy_(weight if start is None else start)
            self.head.bias.zero_()
        self.requires_grad_(True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, P + h * w, D) -> (B, C, h, w) logits."""
        alone = torch.full((tokens.shape[1],) * 2, -math.inf, device=tokens.device).fill_diagonal_(0)
        side = math.isqrt(tokens.shape[1] - self.prefix)
        # Eva's blocks take the rotary position embedding as an argument.
        options = {} if self.rope is None else {"rope": self.rope.get_embed(shape=[side, side])}
        for below_top, block in zip(range(len(self.blocks), 0, -1), self.blocks, strict=True):
            tokens = block(tokens, **options, **({"attn_mask": alone} if below_top <= LOCAL_BLOCKS else {}))
        patches = self.norm(tokens)[:, self.prefix :]
        return self.head(patches).transpose(1, 2).unflatten(2, (side, side))

    @torch.no_grad()
    def calibrate(self, tokens: torch.Tensor, rows: torch.Tensor, target: torch.Tensor, top_k: int) -> None:
        """Set scale and bias so that, before training, 0 lies between the scores of a class's images and the scores
        of the others. A class without images scores at most 0 on all of them.

        The images are `rows` of `tokens`, moved to the head's device in batches.
        """
        device = self.head.weight.device
        batches = rows.split(CALIBRATION_BATCH)
        pooled = torch.cat([top_k_pool(self(tokens[part].to(device).float()), top_k) for part in batches])
        spread = float(pooled.std(0, correction=0).mean())
        if self.has_start and spread > MIN_SPREAD:
            self.head.weight.mul_(START_SPREAD / spread)
            pooled = pooled * (START_SPREAD / spread)
        positive = (target > 0.5).float()
        above = (pooled * positive).sum(0) / positive.sum(0).clamp_min(1)
        below = (pooled * (1 - positive)).sum(0) / (1 - positive).sum(0).clamp_min(1)
        top = pooled.max(0).values
        middle = torch.where(positive.sum(0) > 0, (above + below) / 2, top)
        self.head.bias.copy_(-middle)

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """AdamW parameter groups with learning rates by `LAYER_DECAY` and `HEAD_RATE`."""
        depth = len(self.blocks)
        groups = [
            {"params": list(block.parameters()), "lr": rate * LAYER_DECAY ** (depth - 1 - i)}
            for i, block in enumerate(self.blocks)
        ]
        groups.append({"params": list(self.norm.parameters()), "lr": rate})
        groups.append({"params": list(self.head.parameters()), "lr": rate * HEAD_RATE, "weight_decay": 0.0})
        return [group for group in groups if group["params"]]
