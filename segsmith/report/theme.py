"""The part of the page's style that is counted, not written: lengths, places, and classes' colours and shapes.

The page's policy lets in one style sheet and no style attributes, so a length such as 37 % is a class, ``v37``.
"""

from __future__ import annotations

from collections.abc import Sequence

from segsmith.report.prompt_map import OUTLINES
from segsmith.report.thumbnails import SHAPES, class_colour, class_shape

OTHER = "#8a8f98"
"""Colour of what belongs to no class of the list (``k0``)."""


def step(share: float) -> int:
    """A share in [0, 1] as the number of its style class, 0 to 100; what is more or less is cut."""
    return round(100 * min(max(share, 0.0), 1.0))


def style(classes: Sequence[str]) -> str:
    """CSS: ``v0`` to ``v100`` set ``--v``, ``x`` and ``y`` place in percent, ``k1`` … give a class its look."""
    steps = "".join(f".v{n}{{--v:{n / 100:g}}}.x{n}{{--x:{n}}}.y{n}{{--y:{n}}}" for n in range(101))
    looks = "".join(
        f".k{k}{{--k:{class_colour(k)};--shape:{clip_path(SHAPES[class_shape(k)])}}}"
        for k in range(1, len(classes) + 1)
    )
    return f"\n{steps}\n.k0{{--k:{OTHER};--shape:{clip_path('circle')}}}{looks}\n"


def clip_path(shape: str) -> str:
    """A CSS ``clip-path`` of one of `SHAPES`, filling its box."""
    if shape == "circle":
        return "circle(46%)"
    corners = ",".join(f"{50 + 37 * x:g}% {50 + 37 * y:g}%" for x, y in OUTLINES[shape])
    return f"polygon({corners})"
