"""Measures of a picture that need no model: is it blank, is it in focus."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BLANK_DEVIATION = 4.0
"""Standard deviation of grey values (0 to 255) under which a picture shows nothing."""


def grey(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W) float32 luminance in [0, 255] of an (H, W, 3) uint8 RGB image (Rec. 601 weights)."""
    return image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def is_blank(image: NDArray[np.uint8]) -> bool:
    """True where the picture is one flat tone, as a failed or filtered diffusion sample is."""
    return bool(grey(image).std() < BLANK_DEVIATION)


def sharpness(image: NDArray[np.uint8]) -> float:
    """Fine detail against coarse detail, in [0, inf); about 1 in focus, near 0 when blurred.

    The ratio of Laplacian energy at full and at half resolution: unlike the Laplacian's variance alone it does
    not change with contrast, so a picture of a foggy night is not taken for one out of focus.
    """
    fine = grey(image)
    coarse = ndimage.zoom(ndimage.gaussian_filter(fine, 1.0), 0.5, order=1)
    fine_energy = float(np.mean(np.square(ndimage.laplace(fine))))
    coarse_energy = float(np.mean(np.square(ndimage.laplace(coarse))))
    return fine_energy / (coarse_energy + 1e-6)
