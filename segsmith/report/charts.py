"""Charts as inline SVG. Colours and fonts come from the page's style sheet, so charts follow dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

BINS = 20
TINY = 1e-12
"""A curve that stays below this is drawn as zero."""


def bin_of(value: float) -> int:
    """The one of `BINS` equal bins of [0, 1] that a value is in: 1 in the last, values outside in the nearest."""
    return min(int(min(max(value, 0.0), 1.0) * BINS), BINS - 1)


def histogram(good: Sequence[int], bad: Sequence[int], threshold: float | None, name: str) -> Markup:
    """Stacked histogram of probabilities in [0, 1]: accepted filled, rejected outlined, threshold dashed.

    `good` and `bad` are the numbers of accepted and rejected images in each of the bins (`bin_of`).
    """
    width, height, top, bottom = 240, 116, 16, 18
    peak = max(1, *(g + b for g, b in zip(good, bad, strict=True)))
    base, unit, step = height - bottom, (height - top - bottom) / peak, width / BINS
    parts = []
    for k, (g, b) in enumerate(zip(good, bad, strict=True)):
        x, wide = k * step + 1, step - 2
        if g:
            parts.append(f'<rect class="good" {_box(x, base - g * unit, wide, g * unit)}/>')
        if b:
            parts.append(
                f'<rect class="bad" {_box(x + 0.5, base - (g + b) * unit + 0.5, wide - 1, b * unit - 1)}/>'
            )
    label = f"{name}: probabilities of {sum(good)} accepted and {sum(bad)} rejected images"
    parts.append(f'<line class="axis" x1="0" x2="{width}" y1="{base}" y2="{base}"/>')
    for value, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        parts.append(_text(value * width, height - 4, f"{value:g}", anchor))
    left = threshold is not None and threshold <= 0.5  # where the threshold's number is
    words = f"tallest bar: {peak}"
    parts.append(_text(width if left else 0, 10, words, "end" if left else "start"))
    if threshold is not None:
        x = min(max(threshold, 0), 1) * width
        anchor = "end" if threshold > 0.5 else "start"
        parts.append(f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{base}"/>')
        parts.append(_text(x + (-4 if anchor == "end" else 4), 10, f"{threshold:.2f}", anchor, "strong"))
        label += f", threshold {threshold:.2f}"
    return _svg(width, height, label, parts)


def line_chart(points: Sequence[tuple[float, float]], name: str, *, top: float | None = None) -> Markup:
    """One curve through (x, y) points in the order of x.

    The y axis runs from 0 to the next round number at or above `top`, by default the highest y. The last value is
    written at the end of the curve; no points give an empty frame.
    """
    width, height, left, right, above, below = 480, 200, 36, 52, 12, 24
    first, last = (points[0][0], points[-1][0]) if points else (0.0, 1.0)
    peak = max((y for _, y in points), default=0.0) if top is None else top
    peak = peak if peak > TINY else 1.0
    step = _round_step(peak / 4)
    ticks = math.ceil(peak / step - 1e-9)
    highest = ticks * step

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        down = 1 - min(max(y / highest, 0), 1)
        return left + across * (width - left - right), above + down * (height - above - below)

    parts = []
    for k in range(ticks + 1):
        y = place(first, step * k)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, f"{step * k:.3g}", "end"))
    for x in sorted({first, last}):
        anchor = "start" if x == first else "end"
        parts.append(_text(place(x, 0)[0], height - 6, f"epoch {x:g}", anchor if last > first else "middle"))
    label = f"{name}: no values"
    if points:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in points))
        floor = place(first, 0)[1]
        area = f"{place(first, 0)[0]:.1f},{floor:.1f} {path} {place(last, 0)[0]:.1f},{floor:.1f}"
        x, y = place(*points[-1])
        parts.append(f'<polygon class="area" points="{area}"/><polyline class="curve" points="{path}"/>')
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
        parts.append(_text(x + 8, y + 4, f"{points[-1][1]:.3f}", "start", "strong"))
        label = f"{name} from {points[0][1]:.3f} to {points[-1][1]:.3f} over {len(points)} epochs"
    return _svg(width, height, label, parts)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is at least `least` (above 0)."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= least * (1 - 1e-9))


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> Markup:
    # The parts hold numbers and text escaped by `_text`; the label is escaped here.
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _box(x: float, y: float, width: float, height: float) -> str:
    return f'x="{x:.2f}" y="{y:.2f}" width="{max(width, 0):.2f}" height="{max(height, 0.5):.2f}"'
