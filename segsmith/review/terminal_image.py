"""Small images in the terminal: two pixels per character, the upper as foreground and the lower as background."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from rich.color import Color
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style

from segsmith.datasets.palette import VOID, voc_palette

COLUMNS, FEWEST = 44, 16
"""Widest and narrowest image in characters; a square one takes half as many lines."""
BESIDE = 40
"""Columns left for the facts beside an image."""
STRIP_PIXELS = 1 << 18
"""Pixels that are tinted at a time, each of which takes a hundred bytes."""
BELOW = 8
"""Lines left for the heading, the path and the question."""


class TerminalImage:
    """A rich renderable of an (H, W, 3) uint8 array; rich reduces the colours to what the terminal supports."""

    def __init__(self, image: Any, columns: int = COLUMNS) -> None:
        height, width = image.shape[:2]
        rows = max(2, round(columns * height / width) // 2 * 2)
        small = Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX)
        self._pixels = np.asarray(small).astype(int)

    def __rich_measure__(self, console: Any, options: Any) -> Measurement:
        return Measurement(self._pixels.shape[1], self._pixels.shape[1])

    def __rich_console__(self, console: Any, options: Any) -> Any:
        for upper, lower in zip(self._pixels[::2], self._pixels[1::2], strict=True):
            for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
                yield Segment("▀", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
            yield Segment.line()


def fitting(height: int, width: int, console_width: int, console_height: int) -> int:
    """Columns for an image of height x width pixels that leave room for the facts beside it and the question below.

    An even number from `FEWEST` to `COLUMNS`.
    """
    by_height = 2 * (console_height - BELOW) * width // height
    return max(FEWEST, min(COLUMNS, console_width - BESIDE, by_height) // 2 * 2)


def bright_palette() -> Any:
    """(256, 3) uint8: VOC's colours at full brightness, so that they show on a dark terminal; unknown is white."""
    colours = voc_palette().astype(float)
    colours *= 255 / np.maximum(colours.max(axis=1, keepdims=True), 1)
    colours[VOID] = 255
    return colours.astype(np.uint8)


def overlay(image: Any, mask: Any) -> Any:
    """(H, W, 3) uint8: `image` in grey, tinted with the class colours of the (H, W) label map.

    Background is not tinted.
    """
    drawn, palette = np.empty(image.shape, np.uint8), bright_palette()
    rows = max(1, STRIP_PIXELS // max(1, image.shape[1]))
    for start in range(0, len(image), rows):
        strip = slice(start, start + rows)
        grey = image[strip].mean(axis=2, keepdims=True).repeat(3, axis=2)
        tinted = 0.45 * grey + 0.55 * palette[mask[strip]]
        drawn[strip] = np.where((mask[strip] > 0)[..., None], tinted, 0.7 * grey)
    return drawn
