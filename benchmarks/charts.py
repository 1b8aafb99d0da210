"""Charts of the results as SVG text that follows the reader's light or dark setting."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import mean

STYLE = (
    "<style>text{font:13px sans-serif;fill:#24292f}.bar{fill:#0969da}.spread{stroke:#24292f;stroke-width:1.5}"
    ".axis{stroke:#8c959f}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.bar{fill:#58a6ff}"
    ".spread{stroke:#e6edf3}.axis{stroke:#6e7681}}</style>"
)
ROW_PX, LABEL_PX, PLOT_PX = 28, 150, 400


def bars(title: str, rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Horizontal bars: the mean of each row's values, which are at least 0, and a line from lowest to highest."""
    highest = max(max(values) for _, values in rows) or 1.0
    height = 36 + ROW_PX * len(rows)

    def x(value: float) -> float:
        return round(LABEL_PX + PLOT_PX * value / highest, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LABEL_PX + PLOT_PX + 70} {height}" role="img" '
        f'aria-label="{escape(title)}">',
        STYLE,
        f'<text x="8" y="18">{escape(title)}</text>',
    ]
    for number, (label, values) in enumerate(rows):
        y, width = 30 + ROW_PX * number, round(x(mean(values)) - LABEL_PX, 1)
        parts += [
            f'<text x="{LABEL_PX - 8}" y="{y + 15}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="bar" x="{LABEL_PX}" y="{y}" width="{width}" height="20" rx="2"/>',
            f'<line class="spread" x1="{x(min(values))}" x2="{x(max(values))}" y1="{y + 10}" y2="{y + 10}"/>',
            f'<text x="{x(max(values)) + 8}" y="{y + 15}">{mean(values):.3f}</text>',
        ]
    parts.append(f'<line class="axis" x1="{LABEL_PX}" x2="{LABEL_PX}" y1="26" y2="{height - 6}"/>')
    return "\n".join([*parts, "</svg>", ""])
