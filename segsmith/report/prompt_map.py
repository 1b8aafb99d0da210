"""The prompts of a run as a map (a projection of their vectors to a plane) and as families."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from segsmith.memory.ledger import PromptRow, prompt_families
from segsmith.report.run_data import RunData
from segsmith.report.statistics import label, ratio
from segsmith.report.theme import OUTLINES, class_shape

WIDTH, HEIGHT, MARGIN, RADIUS = 720, 420, 14, 4.2
NO_YIELD = (0, 0)
LEVELS = ("unjudged", "none", "some", "most")
"""Share of a prompt's judged images that were accepted: none judged yet, none, less than half, half or more."""


@dataclass(frozen=True)
class PromptMap:
    """An SVG of the admitted prompts; `kept` in [0, 1] is the share of their variance that the plane keeps."""

    svg: Markup
    points: dict[str, tuple[float, float]]
    kept: float


def project(vectors: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], float]:
    """(N, 2) coordinates of (N, D) vectors in the plane of their largest variance, and the share it keeps.

    Principal component analysis by the eigenvectors of the (D, D) covariance. Eigenvectors have no sign, so each
    axis is oriented to make its largest entry positive. Vectors without spread give zeros.
    """
    centred = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    values, axes = np.linalg.eigh(centred.T @ centred)
    plane = axes[:, ::-1][:, :2]
    if plane.shape[1] < 2:
        plane = np.hstack([plane, np.zeros((len(plane), 2 - plane.shape[1]))])
    plane = plane * np.where(plane[np.abs(plane).argmax(0), [0, 1]] < 0, -1, 1)
    total = float(values.sum())
    return centred @ plane, float(values[::-1][:2].sum() / total) if total > 1e-12 else 0.0


def prompt_map(
    data: RunData, classes: Sequence[str], vectors: Mapping[str, NDArray[np.float32]]
) -> PromptMap | None:
    """The map of the admitted prompts whose vectors are known; None for fewer than three.

    Colour and shape show the class, the filling shows the yield. There is one path per class and level, however
    many prompts there are.
    """
    shown = [
        p
        for p in data.prompts.values()
        if p.status == "admitted" and np.isfinite(vectors.get(p.id, np.nan)).all()
    ]
    if len(shown) < 3:
        return None
    flat, kept = project(np.stack([vectors[p.id] for p in shown]))
    low, high = flat.min(0), flat.max(0)
    scale = (np.array([WIDTH, HEIGHT]) - 2 * MARGIN) / np.maximum(high - low, 1e-9)
    places = MARGIN + (flat - low) * scale
    places[:, 1] = HEIGHT - places[:, 1]
    number = {name: index for index, name in enumerate(classes, 1)}
    points, paths = {}, defaultdict[tuple[int, str], list[str]](list)
    for prompt, (x, y) in zip(shown, places.tolist(), strict=True):
        points[prompt.id] = (round(x, 1), round(y, 1))
        index = number.get(prompt.class_name, 0)
        paths[index, level(*data.yields.get(prompt.id, NO_YIELD))].append(marker(class_shape(index), x, y))
    parts = [
        f'<path class="k{index} level-{name}" data-class="{index}" d="{"".join(marks)}"/>'
        for (index, name), marks in sorted(paths.items())
    ]
    title = escape(f"Map of {len(shown)} admitted prompts; similar prompts are close together")
    svg = Markup(
        f'<svg class="map" id="map" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
        + "".join(parts)
        + f'<circle id="map-ring" r="{RADIUS * 2.2:.1f}" cx="-50" cy="-50"/></svg>'
    )
    return PromptMap(svg, points, kept)


def level(judged: int, accepted: int) -> str:
    """The one of `LEVELS` that describes a prompt's yield."""
    share = ratio(accepted, judged)
    if share is None:
        return "unjudged"
    return "none" if accepted == 0 else "some" if share < 0.5 else "most"


def marker(shape: str, x: float, y: float) -> str:
    """SVG path of one of `theme.SHAPES` around (x, y)."""
    r = RADIUS
    if shape == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    start, *steps = OUTLINES[shape]
    path = f"M{x + r * start[0]:.1f} {y + r * start[1]:.1f}"
    for (x0, y0), (x1, y1) in zip([start, *steps], steps, strict=False):
        path += f"l{r * (x1 - x0):.1f} {r * (y1 - y0):.1f}"
    return path + "z"


def prompt_table(
    data: RunData, classes: Sequence[str], points: Mapping[str, tuple[float, float]]
) -> dict[str, Any]:
    """The prompts on the page, one list per column, grouped by family: the largest family first.

    ``parent`` is a row of the table or -1; ``family`` numbers the families from 0.
    """
    roots = prompt_families(data.prompts.values())
    families = defaultdict[str, list[str]](list)
    for prompt_id in data.prompts:
        families[roots[prompt_id]].append(prompt_id)
    rows = sorted(families.values(), key=lambda members: -len(members))
    order = [prompt_id for members in rows for prompt_id in members]
    place = {prompt_id: k for k, prompt_id in enumerate(order)}
    number = {name: index for index, name in enumerate(classes)}
    prompts = [data.prompts[prompt_id] for prompt_id in order]
    return {
        "id": order,
        "text": [p.text for p in prompts],
        "class": [number.get(p.class_name, -1) for p in prompts],
        "status": [p.status for p in prompts],
        "parent": [-1 if p.parent_id in (None, p.id) else place.get(p.parent_id, -1) for p in prompts],
        "family": [k for k, members in enumerate(rows) for _ in members],
        "problem": [_problem(p) for p in prompts],
        "judged": [data.yields.get(p.id, NO_YIELD)[0] for p in prompts],
        "accepted": [data.yields.get(p.id, NO_YIELD)[1] for p in prompts],
        "x": [points.get(p.id, (None, None))[0] for p in prompts],
        "y": [points.get(p.id, (None, None))[1] for p in prompts],
    }


def _problem(prompt: PromptRow) -> str:
    """Why a prompt was refined or dropped: ``off topic: ...``; "" for an admitted one."""
    reason, colon, text = str(prompt.critique.get("problem") or "").partition(":")
    return label(reason) + colon + text
