"""Polygons of a mask that give back its pixels exactly.

The outlines run along the edges of pixels, in coordinates where pixel (x, y) covers [x, x + 1) by [y, y + 1), as
COCO counts them. pycocotools fills such a polygon with the very pixels that it was drawn around.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.int32]
"""(N, 2) corners x, y of a closed outline; consecutive corners share one of the two."""


@dataclass(frozen=True)
class Outline:
    """The outline of one connected piece of a mask, and those of the holes in it."""

    outer: Ring
    holes: Sequence[Ring] = ()

    def polygon(self) -> Ring:
        """One polygon: each hole is joined to the outline by a slit without width, drawn there and back."""
        polygon = self.outer
        for hole in self.holes:
            polygon = joined(polygon, hole)
        return polygon


def joined(polygon: Ring, other: Ring) -> Ring:
    """One polygon of two, joined by a line drawn there and back between a corner of `other` and the nearest one."""
    start = int(np.lexsort((other[:, 0], other[:, 1]))[0])
    at = int(np.abs(polygon - other[start]).sum(axis=1).argmin())
    around = np.concatenate([other[start:], other[: start + 1]])
    return np.concatenate([polygon[: at + 1], around, polygon[at:]])


def outlines(pieces: NDArray[np.int32]) -> list[Outline]:
    """The outline of every piece in an (H, W) map of 8-connected pieces of one mask, numbered from 1; 0 is outside.

    Holes are 4-connected, so that the two kinds of regions never cross.
    """
    padded = np.zeros((pieces.shape[0] + 2, pieces.shape[1] + 2), pieces.dtype)
    padded[1:-1, 1:-1] = pieces
    outer: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {}
    for ring in _rings(padded != 0):
        x, y = ring[np.lexsort((ring[:, 0], ring[:, 1]))[0]]
        # At the first corner of a ring its inside is below and to the right.
        if inside := int(padded[y + 1, x + 1]):
            outer[inside] = ring
        else:
            holes.setdefault(int(padded[y, x + 1]), []).append(ring)
    return [Outline(ring, holes.get(number, ())) for number, ring in sorted(outer.items())]


def _rings(inside: NDArray[np.bool_]) -> list[Ring]:
    """All closed outlines of a padded mask.

    Along a row of pixel corners, the corners of the outlines are in turn the beginning and the end of a horizontal
    edge; along a column, of a vertical one. So sorting finds the neighbours of each corner.
    """
    upper_left, upper_right = inside[:-1, :-1], inside[:-1, 1:]
    lower_left, lower_right = inside[1:, :-1], inside[1:, 1:]
    is_corner = upper_left ^ upper_right ^ lower_left ^ lower_right
    # Two outlines touch where only diagonal pixels are inside; the corner then counts twice.
    falling = upper_left & lower_right & ~upper_right & ~lower_left
    rising = upper_right & lower_left & ~upper_left & ~lower_right
    single, down, up = (np.argwhere(where) for where in (is_corner, falling, rising))
    points = np.concatenate([single, down, down, up, up]).astype(np.int32)
    if not len(points):
        return []
    n, d, u = len(single), len(down), len(up)
    # Of a corner's two copies, which is first in its row and which first in its column.
    in_row = np.repeat(np.array([0, 1, 0, 0, 1]), [n, d, d, u, u])
    in_column = np.repeat(np.array([0, 0, 1, 0, 1]), [n, d, d, u, u])
    y, x = points.T
    by_row, by_column = np.lexsort((in_row, x, y)), np.lexsort((in_column, y, x))
    along_row, along_column = np.empty(len(points), np.int64), np.empty(len(points), np.int64)
    for order, partner in ((by_row, along_row), (by_column, along_column)):
        partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    horizontal, vertical = along_row.tolist(), along_column.tolist()
    corners = points[:, ::-1]
    unseen = [True] * len(points)
    rings = []
    for start in range(len(points)):
        if not unseen[start]:
            continue
        path: list[int] = []
        here = start
        while unseen[here]:
            there = horizontal[here]
            unseen[here] = unseen[there] = False
            path += (here, there)
            here = vertical[there]
        rings.append(corners[path])
    return rings
