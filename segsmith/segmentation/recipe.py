"""The recipe's small parts: learning rate, loss, and the average that is evaluated."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from segsmith.config import TrainerConfig
from segsmith.types import IGNORE

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


def real_share(config: TrainerConfig, real: Sequence[bool]) -> float:
    """Least share of real pictures in every epoch: `config.real_share`, or what `config.real_passes` takes.

    A generated picture stands in for a real one that is not there. Where real ones are many and the training is
    short, it would only keep them from being seen.
    """
    passes = config.real_passes * sum(real) / (config.epochs * max(1, len(real)))
    return max(config.real_share, min(1.0, passes))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """One cycle: linear climb in the first `WARMUP` of `steps`, then half a cosine to 1% of `peak`."""
    climb = max(1, round(WARMUP * steps))
    if step < climb:
        return peak * (step + 1) / climb
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - climb) / max(1, steps - climb))))


def joint_loss(
    logits: Tensor,
    sources: Sequence[tuple[Tensor, float]],
    weights: Tensor,
    balance: Literal["pixels", "sources"],
) -> Tensor:
    """Cross-entropy with several sources of (B, H, W) labels, each with its weight; 255 says nothing.

    SeSAM "balances" given, SAM and confident teacher labels; how is not known to us. ``"pixels"``: the mean
    over all labelled pixels, each with its source's weight. ``"sources"``: the mean over each source's own
    pixels, averaged by the weights, so that a few drawn points count as much as a whole mask: a noisy loss,
    and the worse of the two (docs/weak_labels.md). `weights` are the classes'. A source without a known pixel
    adds 0; no source at all gives 0 and no gradient.
    """
    total, norm, share = logits.sum() * 0, logits.new_zeros(()), 0.0
    for labels, weight in sources:
        loss = F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="sum")
        size = weights[labels[labels != IGNORE]].sum()
        if balance == "sources":
            total, share = total + weight * loss / size.clamp(min=1), share + weight
        else:
            total, norm = total + weight * loss, norm + weight * size
    return total / (max(share, 1e-9) if balance == "sources" else norm.clamp(min=1))


@torch.no_grad()
def teacher_labels(logits: Tensor, known: Tensor, allowed: Tensor, threshold: float) -> Tensor:
    """(B, H, W) labels for the unknown pixels: the teacher's class where it is at least `threshold` sure.

    255 where `known` (B, H, W) is true, so that nothing counts twice, and where the teacher is unsure.
    `logits` are (B, C + 1, H, W); a class that is not `allowed` (B, C + 1) in a picture is out of the question
    there. SeSAM calls these high-confidence pseudo-labels; its threshold is unknown to us.
    """
    possible = logits.masked_fill(~allowed[:, :, None, None], -torch.inf)
    confidence, guess = possible.softmax(dim=1).max(dim=1)
    return torch.where(~known & (confidence >= threshold), guess, IGNORE)


def class_weights(pixels: NDArray[np.int64]) -> Tensor:
    """(C + 1,) loss weights, the inverse square root of each class's frequency, 1 on average over pixels."""
    share = torch.tensor(np.maximum(pixels, 1) / max(int(pixels.sum()), 1), dtype=torch.float32)
    weights = share.rsqrt().clamp(max=10 * float(share.rsqrt().min()))
    return weights / (weights * share).sum()
