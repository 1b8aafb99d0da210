"""Operations on single images that need no model: blankness, sharpness, and crops around an object."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy import ndimage

from segsmith.types import Image

BLANK_DEVIATION = 4.0
"""An image is blank if the standard deviation of its grey values (0 to 255) is below this."""

MARGIN = 0.15
"""Margin around a cropped object on each side, as a fraction of the object's longer side (ours)."""


def grey(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W) float32 luminance in [0, 255] of an (H, W, 3) uint8 RGB image (Rec. 601 weights)."""
    return image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def is_blank(image: NDArray[np.uint8]) -> bool:
    """Whether the (H, W, 3) uint8 image has a single tone, as failed or censored diffusion samples do."""
    return bool(grey(image).std() < BLANK_DEVIATION)


def sharpness(image: NDArray[np.uint8]) -> float:
    """Sharpness of an (H, W, 3) uint8 image in [0, inf): about 1 in focus, near 0 if blurred.

    It is the ratio of the Laplacian energies at full and at half resolution. Unlike the variance of the Laplacian,
    it does not depend on contrast, so an image of a foggy night does not count as blurred.
    """
    fine = grey(image)
    # Smoothing and halving along one axis commute with those along the other, so the second pass sees half the rows.
    coarse = fine
    for axis in (0, 1):
        coarse = _halved(ndimage.gaussian_filter1d(coarse, 1.0, axis), axis)
    return _laplacian_energy(fine) / (_laplacian_energy(coarse) + 1e-6)


def _halved(grey: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Linear interpolation at half as many points, from the first to the last; as scipy's zoom, but faster."""
    length = grey.shape[axis]
    half = max(1, round(length * 0.5))
    at = np.arange(half, dtype=np.float64) * ((length - 1) / max(half - 1, 1))
    below = np.minimum(at.astype(np.intp), length - 1)
    above = np.minimum(below + 1, length - 1)
    share = (at - below).astype(np.float32)
    share = share[:, None] if axis == 0 else share
    low = grey.take(below, axis)
    return low + (grey.take(above, axis) - low) * share


def _laplacian_energy(grey: NDArray[np.float32]) -> float:
    """Mean square of the Laplacian; at the border pixels are repeated."""
    padded = np.pad(grey, 1, mode="symmetric")
    found = padded[:-2, 1:-1] + padded[2:, 1:-1]
    found += padded[1:-1, :-2]
    found += padded[1:-1, 2:]
    found -= 4 * grey
    return float(np.vdot(found, found)) / found.size


def crop_object(image: Image, mask: NDArray[np.bool_], size: int) -> tuple[Image, Image]:
    """Two (size, size, 3) views of the object in an (H, W) mask: with its surroundings, and without them.

    The views are square, centred on the object. Pixels outside the image have the image's mean colour, and so do
    all pixels outside the mask in the second view. Raises `ValueError` for an empty mask.
    """
    if not mask.any():
        raise ValueError("The mask is empty: there is no object to crop.")
    mean = image.reshape(-1, 3).mean(axis=0).astype(np.uint8)
    ys, xs = np.nonzero(mask)
    box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    side = int(max(box[2] - box[0], box[3] - box[1]) * (1 + 2 * MARGIN)) + 1
    left, top = (box[0] + box[2] - side) // 2, (box[1] + box[3] - side) // 2
    alone = np.where(mask[..., None], image, mean)
    return _window(image, left, top, side, mean, size), _window(alone, left, top, side, mean, size)


def _window(image: Image, left: int, top: int, side: int, fill: Image, size: int) -> Image:
    """The (side, side) window at (left, top), resized to `size`; `fill` is its colour outside the image."""
    window = np.empty((side, side, 3), np.uint8)
    window[:] = fill
    height, width = image.shape[:2]
    rows, columns = slice(max(0, top), min(height, top + side)), slice(max(0, left), min(width, left + side))
    inside = image[rows, columns]
    y, x = rows.start - top, columns.start - left
    window[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return np.asarray(PILImage.fromarray(window).resize((size, size), PILImage.Resampling.BILINEAR))
