"""How Ultralytics states an object: a class, and a polygon in shares of width and height."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from segsmith.datasets.outlines import Ring, joined


def line_of(index: int, polygons: Sequence[Ring], size: tuple[int, int]) -> str:
    """The line of an object of the class with this index; `polygons` are its pieces, in pixels of the (H, W) image.

    Class 0 is the first class. The pieces are joined by slits without width.
    """
    first, *rest = polygons
    polygon = reduce(joined, rest, first)
    shares = (polygon / np.array([size[1], size[0]], np.float64)).ravel().tolist()
    return f"{index - 1}{' %.6g' * len(shares)}\n" % tuple(shares)
