"""How the page shows a class: its colour and its shape; and the style sheet that is computed from them.

The page's content policy allows one style sheet and no style attributes, so a length such as 37 % is a CSS class,
``v37``.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache

# The first seven are Okabe and Ito's, chosen to be distinguishable without full colour vision, with a yellow that
# still shows on white. From the ninth class on the shape, not the colour, tells classes apart.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#c2b200", "#7f6fd0")
OTHER = "#8a8f98"
"""Colour of a class that is not in the run's list (CSS class ``k0``)."""

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "wedge", "bar", "hexagon")
OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
    "diamond": ((0, -1.3), (1.1, 0), (0, 1.3), (-1.1, 0)),
    "cross": (
        (-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4),
        (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4),
    ),
    "wedge": ((-1.1, -0.85), (1.1, -0.85), (0, 1.15)),
    "bar": ((-1.3, -0.5), (1.3, -0.5), (1.3, 0.5), (-1.3, 0.5)),
    "hexagon": ((-0.6, -1.05), (0.6, -1.05), (1.2, 0), (0.6, 1.05), (-0.6, 1.05), (-1.2, 0)),
}  # fmt: skip
"""Corners of the `SHAPES` in units of a marker's radius, y pointing down; the circle has none."""


@cache
def class_colour(index: int) -> str:
    """The ``#rrggbb`` of class `index` (from 1); all indices differ."""
    if index <= len(COLOURS):
        return COLOURS[index - 1]
    hue = index * 0.6180339887 % 1
    red, green, blue = colorsys.hls_to_rgb(hue, 0.45 + 0.12 * (index % 3 - 1), 0.55)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def class_shape(index: int) -> str:
    """The one of `SHAPES` that stands for class `index` (from 1; 0 is a class that is not in the list)."""
    return SHAPES[(index - 1) % len(SHAPES)] if index else "circle"


def percent_step(share: float) -> int:
    """A share in [0, 1] as the number of its CSS class, 0 to 100; values outside are clipped."""
    return round(100 * min(max(share, 0.0), 1.0))


def theme_css(classes: Sequence[str]) -> str:
    """CSS classes: ``v0`` to ``v100`` set ``--v``, ``x`` and ``y`` a place in percent, ``k1`` on colour and shape."""
    steps = "".join(f".v{n}{{--v:{n / 100:g}}}.x{n}{{--x:{n}}}.y{n}{{--y:{n}}}" for n in range(101))
    colours = [OTHER, *(class_colour(k) for k in range(1, len(classes) + 1))]
    looks = "".join(
        f".k{k}{{--k:{colour};--shape:{clip_path(class_shape(k))}}}" for k, colour in enumerate(colours)
    )
    return f"\n{steps}\n{looks}\n"


def clip_path(shape: str) -> str:
    """A CSS ``clip-path`` of one of `SHAPES`, filling its box."""
    if shape == "circle":
        return "circle(46%)"
    corners = ",".join(f"{50 + 37 * x:g}% {50 + 37 * y:g}%" for x, y in OUTLINES[shape])
    return f"polygon({corners})"
