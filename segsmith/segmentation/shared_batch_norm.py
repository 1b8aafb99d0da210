"""Batch normalisation over the parts of a batch that several processes have, on any device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SharedStatistics(nn.BatchNorm2d):
    """Placed before a class of batch normalisation by `share_batch_norm`. torch's SyncBatchNorm needs a GPU."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (B, C, H, W) by mean and variance over all processes, whose parts have the same size."""
        if not self.training:
            return super().forward(images)
        processes, values = dist.get_world_size(), images.float()
        mean = _sum(values.mean((0, 2, 3))) / processes
        centred = values - mean[:, None, None]
        variance = _sum(centred.square().mean((0, 2, 3))) / processes
        self._remember(mean.detach(), variance.detach(), values.numel() // len(mean) * processes)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        normalised = centred * scale[:, None, None]
        if self.affine:
            normalised = normalised + self.bias[:, None, None]
        normalised = normalised.to(images.dtype)
        for name in ("drop", "act"):  # timm's BatchNormAct2d applies these, too
            layer = getattr(self, name, None)
            normalised = normalised if layer is None else layer(normalised)
        return normalised

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance * count / max(1, count - 1), rate)


def _sum(value: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(value)
    return total


def share_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, whose batch normalisation then works as if one process had the parts of all processes."""
    if device.type == "cuda":
        from timm.layers.norm_act import convert_sync_batchnorm

        shared: nn.Module = convert_sync_batchnorm(model)
        return shared
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            kind = type(module)
            module.__class__ = type(f"Shared{kind.__name__}", (SharedStatistics, kind), {})
    return model
