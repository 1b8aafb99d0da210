"""The recipe's small parts: learning rate, loss, and the average that is evaluated."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from segsmith.tools.protocols import IGNORE

WARMUP = 0.1
"""Share of the steps in which the learning rate climbs."""


class Ema:
    """Exponential moving average of a network's weights and buffers.

    The decay starts low and rises to `decay` with the number of updates, so that a short training is not
    an average over its random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self._decay, self.updates / (self.updates + 9))
        for mean, now in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """One cycle: linear climb in the first `WARMUP` of `steps`, then half a cosine to 1% of `peak`."""
    climb = max(1, round(WARMUP * steps))
    if step < climb:
        return peak * (step + 1) / climb
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - climb) / max(1, steps - climb))))


def known_pixel_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy over known pixels; 0 rather than nan when all are 255."""
    total = F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="sum")
    known = labels[labels != IGNORE]
    return total / weights[known].sum().clamp(min=1)


@torch.no_grad()
def teacher_labels(logits: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """(B, H, W) labels for the unknown pixels: the teacher's class where it is at least `threshold` sure.

    255 where `labels` are known, so that nothing counts twice, and where the teacher is unsure. `logits` are
    (B, C + 1, H, W). SeSAM calls these high-confidence pseudo-labels; its threshold is unknown to us.
    """
    confidence, guess = logits.softmax(dim=1).max(dim=1)
    return torch.where((labels == IGNORE) & (confidence >= threshold), guess, IGNORE)


def class_weights(pixels: NDArray[np.int64]) -> Tensor:
    """(C + 1,) loss weights, the inverse square root of each class's frequency, 1 on average over pixels."""
    share = torch.tensor(np.maximum(pixels, 1) / max(int(pixels.sum()), 1), dtype=torch.float32)
    weights = share.rsqrt().clamp(max=10 * float(share.rsqrt().min()))
    return weights / (weights * share).sum()
