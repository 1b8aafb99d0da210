"""Augmentation of training batches: geometric (`place`, the weak view) and photometric (`restyle`, the strong view).

Images are (B, 3, H, W) in [0, 1], labels (B, S, H, W). All randomness comes from `generator`, a CPU generator, so the
same state gives the same batch on the same kind of device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from segsmith.types import IGNORE

TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
"""Matrix from RGB to brightness and two colour axes; a rotation of these two changes only the hue."""


HOLE = 0.3
"""Longest side of a rectangle that is cut out of a photograph, as a share of the image's (ours)."""


@dataclass(frozen=True)
class BatchPart:
    """One of `parts` equal parts of a batch, each in another process.

    The random numbers are those of the whole batch, so the number of processes does not change any image. All
    processes need a generator in the same state.
    """

    generator: torch.Generator
    parts: int
    index: int

    def of(self, whole: Tensor) -> Tensor:
        """The rows of this part."""
        return whole.tensor_split(self.parts)[self.index]


Random = torch.Generator | BatchPart


def restyle(
    images: Tensor, kind: Literal["photographs", "sprites"], generator: Random
) -> tuple[Tensor, Tensor]:
    """Vary (B, 3, H, W) images in [0, 1] as images of their kind differ; no pixel moves.

    Sprites differ in hue, outline, sharpness and noise, so the network learns shapes rather than one style.
    Photographs keep their hues but for a small shift, because the colour of sky, road and grass is informative; they
    vary in brightness, contrast and saturation up to grey, sharpness and noise, and lose a rectangle (cut-out). Also
    returns the (B, H, W) bool pixels that were cut out, in which a label says nothing about the image.
    """
    holes = torch.zeros((len(images), *images.shape[-2:]), dtype=torch.bool, device=images.device)
    images = _ink(_colour(images, generator), generator) if kind == "sprites" else _jitter(images, generator)
    images = _noise(_blur(images, generator), generator).clamp(0, 1)
    if kind == "photographs":
        images, holes = _cut_out(images, generator)
    return images, holes


def place(images: Tensor, labels: Tensor, size: tuple[int, int], generator: Random) -> tuple[Tensor, Tensor]:
    """Flip, scale and crop images (B, 3, H, W) and labels (B, S, H, W) alike, to `size` (H, W).

    Images are reflected at their edges; labels are 255 there. Returns float images and int64 labels.
    """
    count, (height, width) = len(images), images.shape[-2:]
    zoom = torch.exp(_uniform(count, math.log(0.7), math.log(1.6), generator))
    flip = 1 - 2 * _chosen(count, 0.5, generator)
    # In affine_grid's coordinates the image spans [-1, 1]; the window spans 2 `half` and may move within the image.
    half = torch.stack([size[1] / width / zoom, size[0] / height / zoom], dim=1)
    shift = _uniform((count, 2), -1, 1, generator) * (1 - half).abs()
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = half[:, 0] * flip, half[:, 1], shift
    grid = F.affine_grid(theta, [count, 1, *size], align_corners=False).to(images.device)
    moved = F.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
    # Labels are shifted by one so that the zeros outside the image differ from background.
    shifted = (labels + 1).float()
    placed = F.grid_sample(shifted, grid, "nearest", "zeros", align_corners=False).long() - 1
    return moved, torch.where(placed < 0, IGNORE, placed)


def _colour(images: Tensor, generator: Random) -> Tensor:
    """Vary brightness, contrast, saturation and hue, independently for each image."""
    count = len(images)
    contrast, saturation = _uniform(count, 0.7, 1.3, generator), _uniform(count, 0.0, 1.5, generator)
    offset = _uniform(count, -0.12, 0.12, generator)
    # Half of the images keep their hues, since hue is informative about the class.
    turn = _uniform(count, -math.pi, math.pi, generator) * _chosen(count, 0.5, generator)
    return _recoloured(images, contrast, saturation, offset, turn)


def _jitter(images: Tensor, generator: Random) -> Tensor:
    """Vary brightness, contrast and saturation, and hue a little; a tenth of the images become grey."""
    count = len(images)
    contrast, offset = _uniform(count, 0.7, 1.3, generator), _uniform(count, -0.12, 0.12, generator)
    saturation = _uniform(count, 0.6, 1.4, generator) * _chosen(count, 0.9, generator)
    return _recoloured(images, contrast, saturation, offset, _uniform(count, -0.15, 0.15, generator))


def _recoloured(images: Tensor, contrast: Tensor, saturation: Tensor, offset: Tensor, turn: Tensor) -> Tensor:
    """Images with contrast around 0.5, saturation, brightness offset and hue (radians) changed by (B,) values."""
    cos, sin = saturation * turn.cos(), saturation * turn.sin()
    rotation = torch.zeros(len(images), 3, 3)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1], rotation[:, 1, 2], rotation[:, 2, 1], rotation[:, 2, 2] = cos, -sin, sin, cos
    axes = torch.tensor(TO_YIQ)
    matrix = contrast.view(-1, 1, 1) * (torch.linalg.inv(axes) @ rotation @ axes)
    mixed = torch.einsum("bij,bjhw->bihw", matrix.to(images), images)
    return mixed + (offset + 0.5 * (1 - contrast)).view(-1, 1, 1, 1).to(images)


def _cut_out(images: Tensor, generator: Random) -> tuple[Tensor, Tensor]:
    """Paint a rectangle of half of the images in the image's mean colour; also returns the (B, H, W) bool pixels."""
    count, (height, width) = len(images), images.shape[-2:]
    sides = _uniform((count, 2), 0.5 * HOLE, HOLE, generator) * _chosen(count, 0.5, generator)[:, None]
    corners = _rand((count, 2), generator) * (1 - sides)
    rows = (torch.arange(height) + 0.5)[None] / height - corners[:, :1]
    columns = (torch.arange(width) + 0.5)[None] / width - corners[:, 1:]
    inside = [(at >= 0) & (at < sides[:, i : i + 1]) for i, at in enumerate((rows, columns))]
    holes = (inside[0][:, :, None] & inside[1][:, None, :]).to(images.device)
    mean = images.mean(dim=(2, 3), keepdim=True)
    return torch.where(holes[:, None], mean, images), holes


def _ink(images: Tensor, generator: Random) -> Tensor:
    """Darken edges in half of the images, like the outlines of a drawing."""
    count = len(images)
    strength = _uniform(count, 0, 4, generator) * _chosen(count, 0.5, generator)
    low, high = -F.max_pool2d(-images, 3, 1, 1), F.max_pool2d(images, 3, 1, 1)
    edge = (high - low).amax(dim=1, keepdim=True) - 0.1  # weaker edges are texture and noise
    return images * (1 - strength.view(-1, 1, 1, 1).to(images) * edge.clamp(min=0)).clamp(min=0)


def _blur(images: Tensor, generator: Random) -> Tensor:
    """Sharpen (down to -0.5) or blur (up to 1) half of the images."""
    amount = _uniform(len(images), -0.5, 1.0, generator) * (_rand((len(images),), generator) < 0.5)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return torch.lerp(images, soft, amount.view(-1, 1, 1, 1).to(images))


def _noise(images: Tensor, generator: Random) -> Tensor:
    strength = _uniform(len(images), 0, 0.04, generator).view(-1, 1, 1, 1).to(images)
    return images + strength * _normal(images.shape, images.device, generator)


def _normal(shape: torch.Size, device: torch.device, generator: Random) -> Tensor:
    """Standard normal values, drawn on `device`: on a GPU by a generator there, whose seed `generator` draws."""
    if isinstance(generator, BatchPart):
        whole = torch.Size((generator.parts * shape[0], *shape[1:]))
        return generator.of(_normal(whole, device, generator.generator))
    if device.type != "cpu":
        seed = int(torch.randint(2**62, (1,), generator=generator))
        generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, device=device, generator=generator)


def _rand(shape: tuple[int, ...], generator: Random) -> Tensor:
    """Uniform values in [0, 1); the first dimension is that of the images."""
    if isinstance(generator, BatchPart):
        whole = (generator.parts * shape[0], *shape[1:])
        return generator.of(torch.rand(whole, generator=generator.generator))
    return torch.rand(shape, generator=generator)


def _uniform(shape: int | tuple[int, ...], low: float, high: float, generator: Random) -> Tensor:
    return low + (high - low) * _rand((shape,) if isinstance(shape, int) else shape, generator)


def _chosen(count: int, probability: float, generator: Random) -> Tensor:
    """(count,) float tensor: each value is 1 with that probability, else 0."""
    return (_rand((count,), generator) < probability).float()
