"""The PASCAL VOC colour map, which readers of VOC masks expect."""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

VOID: Final = 255
"""Index of a pixel whose class is unknown; VOC paints it (224, 224, 192)."""


@cache
def voc_palette() -> NDArray[np.uint8]:
    """(256, 3) uint8 RGB, read-only; row i is the colour of index i, row 0 (background) is black.

    VOC devkit, `VOClabelcolormap`: the bits of the index go in turn to red, green and blue, the lowest
    three to the highest bit of each channel, so that small indices have very different colours.
    """
    index = np.arange(256, dtype=np.int64)
    colours = np.zeros((256, 3), dtype=np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> channel) & 1) << (7 - bit)
        index >>= 3
    palette = colours.astype(np.uint8)
    palette.setflags(write=False)
    return palette
