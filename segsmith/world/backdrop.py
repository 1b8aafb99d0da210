"""Paints the background of a scene: the place with its texture, without any objects."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from segsmith.world.brush import Brush
from segsmith.world.places import PAINTERS
from segsmith.world.sprites import Style

Floats = npt.NDArray[np.float32]

_GRAIN: dict[Style, float] = {"twemoji": 0.9, "openmoji": 1.25, "gouache": 0.5}
"""Strength of the ground's texture in each style."""
_CLOUDS: dict[Style, int] = {"twemoji": 4, "openmoji": 7, "gouache": 12}
"""Standard deviation of the large stains over the whole place, of 255."""


@dataclass(frozen=True)
class Backdrop:
    """A painted place.

    `image` is (size, size, 3) float32 in [0, 255], in noon light except for the sky. The other values are
    fractions of the image's height: the sky ends at `horizon`, objects on the ground have their base between
    `ground_top` and 0.97, and boats have theirs within the range `water` (None where there is no water).
    `windows` are boxes (x0, y0, x1, y1) in which the weather outside is visible indoors.
    """

    image: Floats
    horizon: float
    ground_top: float
    water: tuple[float, float] | None
    windows: tuple[tuple[float, float, float, float], ...]


@lru_cache(maxsize=64)
def noise_tile(kind: str, index: int, px: int) -> Floats:
    """A (px, px) float32 texture with mean 0 and standard deviation 1; `kind` is fine, cloudy or banded."""
    rng = np.random.default_rng([7919, index, {"fine": 0, "cloudy": 1, "banded": 2}[kind], px])
    total = np.zeros((px, px), np.float32)
    octaves = {"fine": (1, 2, 4), "cloudy": (2, 8, 24), "banded": (1, 3, 6)}[kind]
    for cell in octaves:
        h, w = max(2, px // cell), max(2, px // (cell * (8 if kind == "banded" else 1)))
        patch = Image.fromarray(rng.standard_normal((h, w), dtype=np.float32))
        total += np.asarray(patch.resize((px, px), Image.Resampling.BICUBIC), np.float32)
    tile: Floats = (total - total.mean()) / total.std()
    return tile


def texture(kind: str, size: int, rng: np.random.Generator) -> Floats:
    """A random (size, size) window of one of six textures of a kind, randomly mirrored."""
    index, dx, dy, flip = (int(v) for v in rng.integers(0, (6, size, size, 2)))
    tile = noise_tile(kind, index, 2 * size)[dy : dy + size, dx : dx + size]
    return tile[:, ::-1] if flip else tile


def paint(
    place: str, light: str, weather: str, size: int, style: Style, rng: np.random.Generator
) -> Backdrop:
    """Paint a place without objects, `size` pixels square."""
    brush = Brush(size, light, weather, style, rng)
    ground = PAINTERS[place](brush)
    image = np.asarray(brush.image.reduce(2), dtype=np.float32).copy()
    top = round(ground.horizon * size)
    if weather == "snow" and not brush.windows and place != "studio":
        start = round((ground.top - 0.06) * size) if ground.water else top
        image[start:] = 0.3 * image[start:] + np.float32(0.7 * 236)
    grain = ground.grain * _GRAIN[style]
    image[top:] += (grain * texture("banded" if ground.banded else "fine", size, rng)[top:])[..., None]
    image += (_CLOUDS[style] * texture("cloudy", size, rng))[..., None]
    return Backdrop(image, ground.horizon, ground.top, ground.water, tuple(brush.windows))
