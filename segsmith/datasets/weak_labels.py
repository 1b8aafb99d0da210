"""Weak labels made from full ones, so that what refines them can be measured.

Four kinds, from the least annotation work to the most: image labels, points, scribbles, coarse polygons.
In a weak label map, pixels that were not annotated are 255. Background is annotated like a class, because
otherwise nothing would show where objects end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order
from skimage.draw import polygon2mask
from skimage.measure import approximate_polygon, find_contours, label
from skimage.morphology import skeletonize

from segsmith.datasets.objects import components, histogram
from segsmith.types import IGNORE

WeakKind = Literal["points", "scribbles", "coarse", "image"]
KINDS: tuple[WeakKind, ...] = get_args(WeakKind)

MIN_AREA_PX = 4
"""Components with fewer pixels are specks of the annotation that nobody would draw on (ours)."""
SCRIBBLE_END = 0.15
"""Share of a skeleton's longest path left out at each end: annotators stop before the tip (ours)."""
COARSE_DEPTH = 0.2
"""How far inside the border a coarse polygon runs, as a share of the object's half width (ours)."""
COARSE_TOLERANCE = 0.06
"""How far a coarse polygon's sides may leave that line, as a share of the square root of the area (ours)."""

POINT_SIDE, LINE_DEPTH, DENSE_SHARE = 0.02, 0.01, 0.97
"""Shares by which `kind_of` tells kinds apart: of the image's side, of its side, and of all pixels (ours)."""
STRIP_PIXELS = 1 << 22
"""Pixels of which a distance transform is made at a time."""
MAX_PIECES = 1000
"""Components of one class in one label map that `kind_of` looks at."""


def weaken(
    label_map: NDArray[np.uint8], kind: WeakKind, rng: np.random.Generator, min_area_px: int = MIN_AREA_PX
) -> NDArray[np.uint8]:
    """(H, W) uint8: the same labels where an annotator would have drawn, 255 everywhere else.

    - ``points``: one pixel in each connected component of each class, background included.
    - ``scribbles``: one line per component, 1 px wide, along the longest path of its skeleton without the ends.
    - ``coarse``: one polygon per component, well inside it, with few corners; it never crosses into another class.
    - ``image``: nothing; only the image's classes are known (`present_classes`).

    Nothing is drawn on components with fewer than `min_area_px` pixels. Pixels that are 255 already stay so.
    """
    weak = np.full_like(label_map, IGNORE)
    if kind == "image":
        return weak
    draw = {"points": _point, "scribbles": _scribble, "coarse": _polygon}[kind]
    for value, box, piece in _pieces(label_map, min_area_px):
        weak[box][draw(piece, rng) & piece] = value
    return weak


def kind_of(weak_maps: Iterable[NDArray[np.uint8]]) -> WeakKind | None:
    """The kind of weak labels that most components of (H, W) uint8 maps look like; None for dense masks.

    Without any label it is "image". A component whose box fits into `POINT_SIDE` of the image is a point, one
    that is nowhere deeper than `LINE_DEPTH` a scribble, any other a coarse polygon (thresholds ours; at least
    3 and 2 pixels).
    """
    votes: Counter[WeakKind] = Counter()
    pixels = drawn = 0
    for label_map in weak_maps:
        pixels, drawn = pixels + label_map.size, drawn + int((label_map != IGNORE).sum())
        side = max(label_map.shape)
        for piece in _sampled_pieces(label_map):
            votes[_kind_of_piece(piece, max(3, POINT_SIDE * side), max(2, LINE_DEPTH * side))] += 1
    if not votes:
        return "image"
    return None if drawn >= DENSE_SHARE * pixels else votes.most_common(1)[0][0]


def _kind_of_piece(piece: NDArray[np.bool_], point_side: float, line_depth: float) -> WeakKind:
    """The kind of a component that fills the (H, W) box of `piece`."""
    if max(piece.shape) - 1 < point_side:
        return "points"
    return "coarse" if _deeper_than(piece, line_depth) else "scribbles"


def _deeper_than(piece: NDArray[np.bool_], depth: float) -> bool:
    """Is a pixel of the component farther than `depth` from its outside?

    In strips with a margin of `depth`, because a distance transform needs about forty bytes a pixel.
    """
    padded = np.pad(piece, 1)
    margin = int(np.ceil(depth)) + 1
    height = max(margin, STRIP_PIXELS // padded.shape[1])
    for start in range(0, len(padded), height):
        top = max(0, start - margin)
        strip = padded[top : start + height + margin]
        if distance_transform_edt(strip)[start - top : start - top + height].max() > depth:
            return True
    return False


def _pieces(
    label_map: NDArray[np.uint8], min_area_px: int
) -> Iterator[tuple[int, tuple[slice, ...], NDArray[np.bool_]]]:
    """(value, box, mask inside the box) of every component, class by class, the largest components first."""
    for value in (int(v) for v in np.unique(label_map) if v != IGNORE):
        for piece in components(label_map == value):
            if piece.area >= min_area_px:
                yield value, piece.window, piece.crop()


def _sampled_pieces(label_map: NDArray[np.uint8]) -> Iterator[NDArray[np.bool_]]:
    """Components cut out by their boxes; of many of a class, `MAX_PIECES` spread over their sizes."""
    for value in np.flatnonzero(histogram(label_map)):
        if value != IGNORE:
            pieces = components(label_map == value)
            for piece in pieces[:: max(1, len(pieces) // MAX_PIECES)]:
                yield piece.crop()


def _point(piece: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """A pixel in the inner half of the component: annotators click well inside (Bearman et al. 2016)."""
    depth = distance_transform_edt(np.pad(piece, 1))[1:-1, 1:-1]
    ys, xs = np.nonzero(depth >= depth.max() / 2)
    chosen = int(rng.integers(len(xs)))
    drawn = np.zeros_like(piece)
    drawn[ys[chosen], xs[chosen]] = True
    return drawn


def _scribble(piece: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """The longest path of the skeleton without its ends; a dot where there is no path."""
    path = _longest_path(skeletonize(np.pad(piece, 1))[1:-1, 1:-1] & piece)
    cut = int(len(path) * SCRIBBLE_END * rng.uniform(0.5, 1.5))
    kept = path[cut : len(path) - cut] if len(path) > 2 * cut else path
    if not len(kept):
        return _point(piece, rng)
    drawn = np.zeros_like(piece)
    drawn[tuple(np.asarray(kept).T)] = True
    return drawn


def _longest_path(skeleton: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Pixels (y, x) between the two ends of the skeleton's largest component that are farthest apart along it.

    Found as the farthest pixel from a farthest pixel, by two breadth-first searches: exact on trees, close enough on
    skeletons with holes.
    """
    if not skeleton.any():
        return []
    pieces = label(skeleton, connectivity=2)
    largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    pixels, graph = np.argwhere(largest), _neighbours(largest)
    start = breadth_first_order(graph, 0, directed=False, return_predecessors=False)[-1]
    order, before = breadth_first_order(graph, start, directed=False)
    path = [int(order[-1])]
    while path[-1] != start:
        path.append(int(before[path[-1]]))
    return [(int(y), int(x)) for y, x in pixels[path]]


def _neighbours(pixels: NDArray[np.bool_]) -> csr_array:
    """(N, N) graph of the 8-neighbours among the N true pixels, which are numbered in row order."""
    numbers = np.pad(np.where(pixels, np.cumsum(pixels).reshape(pixels.shape), 0), 1)
    here = numbers[1:-1, 1:-1]
    ends = []
    for there in (numbers[1:-1, 2:], numbers[2:, 1:-1], numbers[2:, 2:], numbers[2:, :-2]):
        both = (here > 0) & (there > 0)
        ends.append(np.stack([here[both], there[both]]) - 1)
    rows, columns = np.concatenate(ends, axis=1)
    count = int(pixels.sum())
    return coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count)).tocsr()


def _polygon(piece: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """A polygon with few corners around the component's inside; the inside itself where none can be drawn."""
    padded = np.pad(piece, 1)
    depth = distance_transform_edt(padded)
    inner = depth > max(1.0, COARSE_DEPTH * rng.uniform(0.5, 1.5) * depth.max())
    if not inner.any():
        return _point(piece, rng)
    drawn = np.zeros_like(padded)
    tolerance = COARSE_TOLERANCE * float(np.sqrt(piece.sum()))
    for contour in find_contours(inner.astype(float), 0.5):
        corners = approximate_polygon(contour, tolerance)
        if len(corners) >= 4:  # the first corner is repeated: three corners make a polygon
            drawn ^= polygon2mask(padded.shape, corners)  # holes are drawn out of what surrounds them
    drawn = drawn[1:-1, 1:-1] & piece
    return drawn if drawn.any() else binary_erosion(piece) | _point(piece, rng)
