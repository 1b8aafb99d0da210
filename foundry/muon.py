"""Muon (Keller Jordan, 2024) in float32: momentum that is orthogonalised before it is applied.

torch.optim.Muon computes in bfloat16, which many CPUs only emulate, and one matrix at a time; here, all matrices of
one shape are orthogonalised together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz: (N, a, b) with a <= b -> matrices with the same row space and singular values near 1."""
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Muon for parameters with two or more dimensions; all but the first are flattened (convolutions).

    The step is scaled so that its root mean square equals that of AdamW at the same rate (Moonlight, 2025).
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._same_shape: dict[tuple[int, int], list[Tensor]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                rows, columns = p.shape[0], p[0].numel()
                self._same_shape.setdefault((min(rows, columns), max(rows, columns)), []).append(p)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        rate, momentum = group["lr"], group["momentum"]
        for (_, longest), matrices in self._same_shape.items():
            grads = [p.grad for p in matrices if p.grad is not None]
            assert len(grads) == len(matrices), "every matrix given to Muon must have a gradient"
            for p in matrices:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum"] for p in matrices]
            torch._foreach_lerp_(buffers, grads, 1 - momentum)
            flat = [torch.lerp(g, b, momentum).flatten(1) for g, b in zip(grads, buffers, strict=True)]
            wide = torch.stack([m if m.shape[0] <= m.shape[1] else m.T for m in flat])
            for p, m, update in zip(matrices, flat, orthogonalise(wide), strict=True):
                p.mul_(1 - rate * group["weight_decay"])
                update = update if m.shape[0] <= m.shape[1] else update.T
                p.add_(update.reshape(p.shape), alpha=-rate * 0.2 * longest**0.5)
