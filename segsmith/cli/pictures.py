"""Small pictures in the terminal: two pixels to a character, the upper as ink and the lower as paper."""

from __future__ import annotations

from typing import Any

from rich.color import Color
from rich.segment import Segment
from rich.style import Style

COLUMNS = 44
"""Width of a picture in characters; about as many lines as half of it."""


class Picture:
    """A rich renderable of an (H, W, 3) uint8 array; rich lowers the colours to what the terminal has."""

    def __init__(self, image: Any, columns: int = COLUMNS) -> None:
        import numpy as np
        from PIL import Image

        height, width = image.shape[:2]
        rows = max(2, round(columns * height / width) // 2 * 2)
        small = Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX)
        self._pixels = np.asarray(small).astype(int)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        for upper, lower in zip(self._pixels[::2], self._pixels[1::2], strict=True):
            for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
                yield Segment("▀", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
            yield Segment.line()


def overlay(image: Any, mask: Any) -> Any:
    """The (H, W, 3) picture, greyed, under the VOC colours of an (H, W) label map; unknown pixels are white."""
    import numpy as np

    from segsmith.segmentation.palette import VOID, voc_palette

    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.6
    colours = voc_palette().astype(float)
    colours[VOID] = 255
    marked = (mask > 0)[..., None]
    return np.where(marked, 0.25 * grey + 0.75 * colours[mask], grey).astype(np.uint8)
