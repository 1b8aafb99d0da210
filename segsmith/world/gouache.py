"""The test style: sprites repainted without outlines, bent out of shape, and shaded with visible brush strokes.

No set of drawings beside twemoji and openmoji is installed, so this style is made from openmoji's by a procedure that
changes what a segmenter could rely on: outline, palette, shading, texture and silhouette. Nothing is trained on it
and no setting is chosen by it; it is only used to report a score.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

VARIANTS = 6
"""Every sprite is bent in this many ways; a scene takes one of them for each object."""
INK = 0.16
"""Luminance below which a pixel counts as part of an outline, in [0, 1]."""
BEND = 0.035
"""Standard deviation of the displacement of a sprite's points, as a share of its longer side."""
LEVELS = 5
"""Number of brightness levels of the paint."""

_LUMINANCE = np.array([0.3, 0.59, 0.11], np.float32)

Floats = npt.NDArray[np.float32]


def repainted(sprite: Image.Image, seed: int, variant: int) -> Image.Image:
    """An RGBA sprite in the test style, cropped to its visible pixels; the same arguments give the same pixels."""
    rng = np.random.default_rng([15485863, seed, variant])
    bent = _bent(np.asarray(sprite, np.float32) / np.float32(255), rng)
    alpha = bent[..., 3]
    rgb = _without_outlines(bent[..., :3], alpha)
    rgb = _mixed(rgb, rng)
    rgb = np.floor(rgb * LEVELS + 0.5) / LEVELS * 0.7 + rgb * 0.3
    rgb = rgb * _shade(alpha)[..., None] * _strokes(alpha.shape, rng)[..., None]
    out = np.concatenate([rgb, alpha[..., None]], axis=2)
    image = Image.fromarray((out.clip(0, 1) * 255).round().astype(np.uint8), "RGBA")
    solid = image.getchannel("A").point(lambda value: 255 if value >= 8 else 0)
    return image.crop(solid.getbbox())


def _bent(rgba: Floats, rng: np.random.Generator) -> Floats:
    """The sprite after a smooth random displacement, with the margin that it may need."""
    margin = round(0.15 * max(rgba.shape[:2]))
    padded = np.pad(rgba, ((margin, margin), (margin, margin), (0, 0)))
    height, width = padded.shape[:2]
    grid = np.mgrid[:height, :width].astype(np.float32)
    strength = BEND * max(rgba.shape[:2])
    for axis in range(2):
        knots = Image.fromarray(rng.standard_normal((4, 4), dtype=np.float32))
        grid[axis] += strength * np.asarray(knots.resize((width, height), Image.Resampling.BICUBIC))
    # Premultiplied, so that colours do not bleed in from transparent pixels.
    padded[..., :3] *= padded[..., 3:]
    moved = np.stack([ndimage.map_coordinates(padded[..., c], grid, order=1) for c in range(4)], axis=2)
    moved[..., :3] /= np.maximum(moved[..., 3:], 1e-3)
    return moved


def _without_outlines(rgb: Floats, alpha: Floats) -> Floats:
    """Outlines take the colour of the nearest paint; a sprite that is nearly all outline becomes dark grey."""
    ink = (rgb @ _LUMINANCE < INK) | (alpha < 0.5)
    painted = ~ink & (alpha > 0.9)
    if painted.sum() < 0.1 * (alpha > 0.5).sum():
        return np.maximum(rgb, 0.3)
    # Pixels beside an outline are mixed with it.
    painted = ndimage.binary_erosion(painted, iterations=1) if painted.sum() > 400 else painted
    nearest = ndimage.distance_transform_edt(~painted, return_distances=False, return_indices=True)
    return np.where(painted[..., None], rgb, rgb[tuple(nearest)])


def _mixed(rgb: Floats, rng: np.random.Generator) -> Floats:
    """Other pigments: hues turned by up to 40 degrees, less saturation, and another range of brightness."""
    luminance = (rgb @ _LUMINANCE)[..., None]
    colour = rgb - luminance
    angle = np.deg2rad(rng.uniform(-40, 40))
    # A rotation around the grey axis; rows are the colour's components along (1, 1, 1) x e_i.
    turned = colour * np.cos(angle) + np.sin(angle) / np.sqrt(3) * (
        np.roll(colour, 1, axis=2) - np.roll(colour, -1, axis=2)
    )
    low, high = rng.uniform(0.12, 0.28), rng.uniform(0.7, 0.92)
    return (low + (high - low) * luminance + rng.uniform(0.5, 0.85) * turned).astype(np.float32)


def _shade(alpha: Floats) -> Floats:
    """(H, W) gain of light that falls from the upper left onto a body that bulges towards the viewer."""
    depth = np.sqrt(ndimage.distance_transform_edt(alpha > 0.5).astype(np.float32))
    dy, dx = np.gradient(ndimage.gaussian_filter(depth, 3))
    return (1 - 0.55 * np.clip(dy + dx, -0.5, 0.5)).astype(np.float32)


def _strokes(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """(H, W) gain of brush strokes: noise that is smooth along one random direction."""
    size = 2 * max(shape)
    noise = ndimage.gaussian_filter(rng.standard_normal((size, size)), (1.0, 9.0))
    turned = ndimage.rotate(noise, rng.uniform(0, 180), reshape=False, order=1)
    top, left = (size - shape[0]) // 2, (size - shape[1]) // 2
    part = turned[top : top + shape[0], left : left + shape[1]]
    return (1 + 0.08 * part / max(float(part.std()), 1e-6)).astype(np.float32)
