"""Sharpens a SAM's masks with a small convolutional network that sees the image and the mask together.

A SAM decodes masks from an embedding of 8 or 16 pixels a side, so small and thin parts get lost. A network that gets
the image at its own resolution, and the mask to correct, finds them again (Cheng et al. 2020, "CascadePSP", section
3.1). The one in the mini SAM's checkpoint is trained by `foundry.mask_refiner` on the simulator's scenes; no other
SAM has one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from segsmith.tools.vision.point_batches import LogitsChanger, LogitsSource, MaskLogits, PointSet
from segsmith.types import Image

MARGIN = 0.2
"""Margin around the masks on each side, as a fraction of their longer side (ours)."""
MIN_MARGIN_PX = 4
LONGEST_PX = 128
"""A larger crop is shrunk to this side, since the network was trained on objects up to this size."""
SCALE = 8.0
"""Logits are divided by it before the network sees them, and cut at twice this size."""


@dataclass(frozen=True)
class RefinerSizes:
    """Sizes of the network; ``refiner`` in the ``config.json`` of a small SAM."""

    widths: tuple[int, ...] = (16, 32, 64, 96)
    """Channels at full resolution, at half of it, and so on."""
    blocks: int = 2
    """Residual blocks at each resolution below the full one, which has one."""

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or any(width < 4 or width % 4 for width in self.widths):
            raise ValueError(f"widths of a mask refiner are two or more multiples of 4, not {self.widths}")


class RefinerNetwork(nn.Module):
    """A U-Net (Ronneberger et al. 2015) that predicts a correction of logits."""

    def __init__(self, sizes: RefinerSizes) -> None:
        super().__init__()
        widths = sizes.widths
        self.factor = 2 ** (len(widths) - 1)
        self.entry = nn.Sequential(_convolution(6, widths[0]), _Residual(widths[0]))
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(
            nn.Sequential(_convolution(a, b, 2), *(_Residual(b) for _ in range(sizes.blocks)))
            for a, b in pairs
        )
        self.lift = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.up = nn.ModuleList(
            nn.Sequential(*(_Residual(a) for _ in range(sizes.blocks if i else 1)))
            for i, (a, _) in enumerate(pairs)
        )
        self.exit = nn.Conv2d(widths[0], 1, 3, 1, 1)
        for parameter in self.exit.parameters():  # untrained, it changes nothing
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor, logits: Tensor, points: Tensor) -> Tensor:
        """(B, 1, H, W) logits to add to `logits`.

        `images` is (B, 3, H, W) float in [0, 255]; `logits` and `points` are (B, 1, H, W) float, `points` 1
        around points and 0 elsewhere. Any H and W will do.
        """
        height, width = images.shape[-2:]
        seen = (logits / SCALE).clamp(-2, 2)
        x = torch.cat([images / 127.5 - 1, seen, logits.sigmoid(), points], dim=1)
        x = F.pad(x, (0, -width % self.factor, 0, -height % self.factor), mode="replicate")
        features = [self.entry(x)]
        for down in self.down:
            features.append(down(features[-1]))
        y = features.pop()
        for lift, up in zip(reversed(self.lift), reversed(self.up), strict=True):
            y = F.interpolate(lift(y), scale_factor=2, mode="bilinear", align_corners=False)
            y = up(y + features.pop())
        return self.exit(y)[..., :height, :width]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.GroupNorm(4, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(4, outputs), nn.ReLU()
    )


@dataclass(frozen=True)
class Crop:
    """What the network sees of one point set: the image, logits and points around all M candidates.

    `image` is (h, w, 3) float32 in [0, 255], `logits` (M, h, w) float32, and `points` (h, w) float32, 0 or
    1. `rows` and `columns` are its place in the image; h and w are smaller than these if it was shrunk.
    """

    image: NDArray[np.float32]
    logits: NDArray[np.float32]
    points: NDArray[np.float32]
    rows: slice
    columns: slice


def crop_of(image: Image, found: MaskLogits, points: PointSet) -> Crop:
    """The crop around all candidates and points, with a margin, inside the image."""
    logits = found.logits
    ys, xs = np.nonzero((logits > 0).any(0).numpy())
    ys, xs = np.append(ys, points[:, 1]), np.append(xs, points[:, 0])
    margin = MARGIN * (max(np.ptp(ys), np.ptp(xs)) + 1) + MIN_MARGIN_PX
    rows, columns = (
        slice(max(0, int(at.min() - margin)), min(limit, int(at.max() + margin) + 1))
        for at, limit in zip((ys, xs), image.shape, strict=False)
    )
    near = np.zeros(image.shape[:2], np.float32)
    for x, y in points.round().astype(int).tolist():
        near[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 1
    stack = torch.cat(
        [
            torch.from_numpy(image[rows, columns].transpose(2, 0, 1).astype(np.float32)),
            logits[:, rows, columns].float(),
            torch.from_numpy(near[rows, columns])[None],
        ]
    )
    scale = LONGEST_PX / max(stack.shape[1:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in stack.shape[1:]]
        stack = F.interpolate(stack[None], size, mode="area")[0]
    values = stack.numpy()
    return Crop(values[:3].transpose(1, 2, 0), values[3:-1], values[-1], rows, columns)


class MaskRefiner(LogitsChanger):
    """A `PointSegmenter` that corrects the masks of another with a `RefinerNetwork`.

    The predicted IoUs stay those of the other.
    """

    def __init__(self, sam: LogitsSource, network: RefinerNetwork) -> None:
        super().__init__(sam)
        self._network = network.eval().requires_grad_(False)

    def _changed(self, image: Image, point_sets: Sequence[PointSet]) -> Iterator[MaskLogits]:
        found = self._sam.logits_many([image], [point_sets])[0]
        for logits, points in zip(found, point_sets, strict=True):
            yield self._refined(image, logits, points)

    @torch.inference_mode()
    def _refined(self, image: Image, found: MaskLogits, points: PointSet) -> MaskLogits:
        crop = crop_of(image, found, points)
        candidates = len(crop.logits)
        correction = self._network(
            torch.from_numpy(crop.image).permute(2, 0, 1).expand(candidates, -1, -1, -1),
            torch.from_numpy(crop.logits)[:, None],
            torch.from_numpy(crop.points).expand(candidates, 1, -1, -1),
        )
        logits = found.logits.float().clone()
        part = logits[:, crop.rows, crop.columns]
        part += F.interpolate(correction, part.shape[1:], mode="bilinear", align_corners=False)[:, 0]
        return MaskLogits(logits, found.scores)
