"""Parts of the training recipe: learning rate, losses, class weights, and the averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from segsmith.config import TrainerConfig
from segsmith.types import IGNORE

PARTS = 12
"""Number of epochs of a training whose length is given in steps."""
WARMUP = 0.1
"""Share of all steps in which the learning rate rises."""


class Ema:
    """Exponential moving average of a network's weights and buffers.

    The decay rises to `decay` with the number of updates, so that the random initial weights do not dominate the
    average of a short training.
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


def epoch_steps(config: TrainerConfig, n_images: int) -> tuple[int, ...]:
    """Number of optimisation steps of every epoch of a training on `n_images` images.

    With `config.epochs` an epoch is a pass over the images; otherwise it is one of up to `PARTS` equal parts of
    `config.steps`.
    """
    if config.epochs is not None:
        batch = min(config.batch_size, max(n_images, 2))
        return (math.ceil(n_images / batch),) * config.epochs
    parts = min(PARTS, config.steps)
    ends = [config.steps * (part + 1) // parts for part in range(parts)]
    return tuple(stop - start for start, stop in zip([0, *ends], ends, strict=False))


def images_shown(config: TrainerConfig, n_images: int) -> int:
    """Number of images that a training shows, repetitions included."""
    return config.steps * config.batch_size if config.epochs is None else config.epochs * n_images


def real_share(config: TrainerConfig, real: Sequence[bool]) -> float:
    """Minimum share of real images in each epoch, in [0, 1].

    It is `config.real_share`, or more if each real image would otherwise be seen fewer than `config.real_passes`
    times: where real images are many and the training is short, generated images would only displace them. `real`
    says of each training image whether it is real.
    """
    passes = config.real_passes * sum(real) / max(1, images_shown(config, len(real)))
    return max(config.real_share, min(1.0, passes))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step: linear warm-up in the first `WARMUP` of `steps`, then a cosine to 1% of `peak`."""
    climb = max(1, round(WARMUP * steps))
    if step < climb:
        return peak * (step + 1) / climb
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - climb) / max(1, steps - climb))))


def joint_loss(
    logits: Tensor,
    sources: Sequence[tuple[Tensor, float]],
    weights: Tensor,
    balance: Literal["pixels", "sources"],
    averaged: Callable[[Tensor], Tensor] = lambda value: value,
) -> Tensor:
    """Cross-entropy of (B, C + 1, H, W) logits with several sources of (B, H, W) labels; 255 is ignored.

    `sources` are (labels, weight) pairs and `weights` (C + 1,) the class weights. SeSAM "balances" the given labels,
    SAM's and the teacher's confident ones, but the parts of the paper that we could read do not say how.
    ``"pixels"``: the mean over all labelled pixels, each weighted by its source. ``"sources"``: the weighted mean of
    each source's mean loss, so a few labelled points count as much as a whole mask; this is noisier, and the worse
    of the two (docs/weak_labels.md). A source without labelled pixels adds 0; the loss of no sources is 0.

    Where several processes have parts of a batch, `averaged` is the mean of a number over them. The mean of their
    losses is then the loss of the whole batch, whatever share of the labelled pixels each of them has.
    """
    total, norm, share = logits.sum() * 0, logits.new_zeros(()), 0.0
    for labels, weight in sources:
        loss = F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="sum")
        size = weights[labels[labels != IGNORE]].sum()
        if balance == "sources":
            total, share = total + weight * loss / averaged(size).clamp(min=1), share + weight
        else:
            total, norm = total + weight * loss, norm + weight * size
    return total / (max(share, 1e-9) if balance == "sources" else averaged(norm).clamp(min=1))


@torch.no_grad()
def teacher_labels(logits: Tensor, known: Tensor, allowed: Tensor, threshold: float) -> Tensor:
    """(B, H, W) labels for unknown pixels: the teacher's class where its probability is at least `threshold`.

    255 where the teacher is less confident, and where `known` (B, H, W) is true, so that no pixel counts twice.
    `logits` are (B, C + 1, H, W); only the classes that are `allowed` (B, C + 1) in an image are considered. These
    are SeSAM's high-confidence pseudo-labels; we do not know the paper's threshold.
    """
    possible = logits.masked_fill(~allowed[:, :, None, None], -torch.inf)
    confidence, guess = possible.softmax(dim=1).max(dim=1)
    return torch.where(~known & (confidence >= threshold), guess, IGNORE)


def class_weights(pixels: NDArray[np.int64]) -> Tensor:
    """(C + 1,) class weights from (C + 1,) pixel counts: inverse square root of the frequency, mean 1 over pixels."""
    share = torch.tensor(np.maximum(pixels, 1) / max(int(pixels.sum()), 1), dtype=torch.float32)
    weights = share.rsqrt().clamp(max=10 * float(share.rsqrt().min()))
    return weights / (weights * share).sum()
