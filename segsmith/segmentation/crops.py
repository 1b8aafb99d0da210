"""An object cut out of its picture, as a classifier of whole pictures wants to see it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from segsmith.types import Image

MARGIN = 0.15
"""Room around the object on each side, as a share of its longer side (ours)."""


def cut_out(image: Image, mask: NDArray[np.bool_], size: int) -> tuple[Image, Image]:
    """The object of an (H, W) mask in two (size, size, 3) views: with what lies around it, and alone.

    Square and centred; what is outside the picture, and in the second view everything outside the mask, has
    the picture's mean colour. Raises `ValueError` for an empty mask.
    """
    if not mask.any():
        raise ValueError("An empty mask cuts nothing out.")
    mean = image.reshape(-1, 3).mean(axis=0).astype(np.uint8)
    ys, xs = np.nonzero(mask)
    box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    side = int(max(box[2] - box[0], box[3] - box[1]) * (1 + 2 * MARGIN)) + 1
    left, top = (box[0] + box[2] - side) // 2, (box[1] + box[3] - side) // 2
    alone = np.where(mask[..., None], image, mean)
    return _window(image, left, top, side, mean, size), _window(alone, left, top, side, mean, size)


def _window(image: Image, left: int, top: int, side: int, fill: Image, size: int) -> Image:
    """The (side, side) window at (left, top), resized; `fill` where it leaves the picture."""
    window = np.empty((side, side, 3), np.uint8)
    window[:] = fill
    height, width = image.shape[:2]
    rows, columns = slice(max(0, top), min(height, top + side)), slice(max(0, left), min(width, left + side))
    inside = image[rows, columns]
    y, x = rows.start - top, columns.start - left
    window[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return np.asarray(PILImage.fromarray(window).resize((size, size), PILImage.Resampling.BILINEAR))
