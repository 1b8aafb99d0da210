"""All images of a run inside the page: thumbnails packed into sheets that the browser decodes on demand.

A sheet is one WebP image of up to `PER_SHEET` photos, one of their masks, and what is known about each. The page
holds the sheets as inert text, so thousands of images cost nothing until the user browses to them.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image as PILImage

from segsmith.memory.ledger import VerdictRow
from segsmith.memory.run_folder import RunFolder
from segsmith.report.drawn import NUMBERS, DrawnImage
from segsmith.report.reader import finite
from segsmith.report.run_data import RunData
from segsmith.report.selection import CAP
from segsmith.report.statistics import label, label_change
from segsmith.report.thumbnails import name_tags, painted, small_mask, small_photo

PER_SHEET, COLUMNS = 96, 12
SIDES = ((1_500, 128), (CAP, 64))
"""(number of images, longest side of a thumbnail in pixels up to that number)."""
# On 96 images of the simulator at 64 px: WebP 0.9 kB each in 26 ms per sheet, JPEG 1.0 kB, AVIF 0.6 kB but
# 0.7 s per sheet, which would be two and a half minutes for a large run.
WEBP = {"quality": 75, "method": 2}

SOURCES = {
    "prompt": "labels, prompt",
    "clip": "labels, CLIP",
    "real": "labels, real-image classifier",
    "relabel": "labels, relabelled",
}
"""Source of labels -> its name on the page."""
FIELDS = (*NUMBERS.values(), *SOURCES.values(), "unknown pixels", "reviewer", "image")
"""What the page says about an image besides its prompt and its verdict, in this order."""


@dataclass(frozen=True)
class Selection:
    """The images the page holds, in the order of their cells on the sheets; `judged` counts all there are."""

    images: Sequence[DrawnImage]
    judged: int
    side: int

    @property
    def sheets(self) -> list[Sequence[DrawnImage]]:
        return [self.images[k : k + PER_SHEET] for k in range(0, len(self.images), PER_SHEET)]


def arrange(data: RunData, classes: Sequence[str]) -> Selection:
    """The images on the sheets in their order.

    Images that are looked at together are on the same sheet: accepted before rejected, then by class and reason, the
    most certain first.
    """
    chosen = data.chosen.on_sheets
    place = {name: index for index, name in enumerate(classes)}

    def order(image: DrawnImage) -> tuple[Any, ...]:
        reason = image.verdict.reason if image.verdict else ""
        return (
            not image.is_accepted,
            place.get(image.target, len(place)),
            reason,
            -image.certainty,
            image.id,
        )

    side = next((side for most, side in SIDES if len(chosen) <= most), SIDES[-1][1])
    return Selection(sorted(chosen, key=order), data.image_counts.judged.total(), side)


def image_index(
    selection: Selection, data: RunData, classes: Sequence[str], prompts: Mapping[str, int]
) -> dict[str, Any]:
    """What the page must know about all images at once, to filter and to count: one list per column.

    `prompts` gives the row of a prompt in the page's prompt table.
    """
    verdicts = [image.verdict for image in selection.images if image.verdict]
    changes = [label_change(image.labels) for image in selection.images]
    reasons = list(dict.fromkeys(v.reason for v in verdicts))
    number = {reason: k for k, reason in enumerate(reasons)}
    return {
        "classes": list(classes),
        "fields": FIELDS,
        "side": selection.side,
        "perSheet": PER_SHEET,
        "columns": COLUMNS,
        "judged": selection.judged,
        "reasons": [label(reason) for reason in reasons],
        "id": [image.id for image in selection.images],
        "prompt": [prompts[image.row.prompt_id] for image in selection.images],
        "accepted": [int(v.accepted) for v in verdicts],
        "reason": [number[v.reason] for v in verdicts],
        "p": [_round(v.scores.get("probability")) for v in verdicts],
        "threshold": [_round(v.scores.get("threshold")) for v in verdicts],
        "changed": [int(bool(change.added or change.removed)) for change in changes],
    }


def image_sheets(
    selection: Selection, run: RunFolder, data: RunData, classes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The sheets in order, each as JSON: ``photo`` and ``mask`` (WebP, base64; mask may be null) and ``rows``."""

    def made(images: Sequence[DrawnImage]) -> dict[str, Any]:
        return _sheet(images, selection.side, run, data, classes)

    # Pillow releases Python's lock, so threads share the decoding and encoding.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(made, selection.sheets)


def verdict_numbers(verdict: VerdictRow | None, sharpness: float | None) -> dict[str, float | None]:
    """The `NUMBERS` of a verdict, None where unknown; its sharpness as a multiple of the median `sharpness`."""
    numbers = {name: finite(verdict.scores.get(name)) if verdict else None for name in NUMBERS}
    own = numbers["sharpness"]
    numbers["sharpness"] = own / sharpness if own is not None and sharpness else None
    return numbers


def _sheet(
    images: Sequence[DrawnImage], side: int, run: RunFolder, data: RunData, classes: Sequence[str]
) -> dict[str, Any]:
    size = (min(COLUMNS, len(images)) * side, -(-len(images) // COLUMNS) * side)
    photos, masks = PILImage.new("RGB", size, (127, 127, 127)), PILImage.new("RGBA", size)
    rows, masked = [], False
    for k, image in enumerate(images):
        corner = (k % COLUMNS * side, k // COLUMNS * side)
        photo = small_photo(run.image(image.id), side)
        mask = small_mask(run.mask(image.id), side) if image.mask else None
        row = _row(image, data, classes, mask_lost=image.mask is not None and mask is None)
        if photo is not None:
            photos.paste(photo, corner)
            row["size"] = photo.size
        if mask is not None:
            overlay = painted(mask, len(classes))
            overlay.info["transparency"] = 0
            masks.paste(overlay.convert("RGBA"), corner)
            row["tags"] = [
                [classes.index(t.name), round(t.x, 1), round(t.y, 1)] for t in name_tags(mask, classes)
            ]
            masked = True
        rows.append(row)
    return {
        "photo": _webp(photos, **WEBP),
        "mask": _webp(masks, lossless=True, method=2) if masked else None,
        "rows": rows,
    }


def _row(image: DrawnImage, data: RunData, classes: Sequence[str], *, mask_lost: bool) -> dict[str, Any]:
    """``facts`` follow `FIELDS`; ``labels``, ``added`` and ``removed`` are places in the class list."""
    change = label_change(image.labels)
    decision = data.decisions.verdicts.get(image.id)
    numbers = verdict_numbers(image.verdict, data.image_counts.median_sharpness)
    facts = [
        *(None if value is None else f"{value:.3f}" for value in numbers.values()),
        *((", ".join(change.labels[s]) or "none") if s in change.labels else None for s in SOURCES),
        "the mask is missing or unreadable"
        if mask_lost
        else None
        if image.mask is None
        else f"{image.mask.ignore_share:.1%}",
        None if decision is None else f"{decision.action}: {decision.note}".removesuffix(": "),
        f"{image.id}, seed {image.row.seed}, round {image.row.round}, {image.row.backend}",
    ]
    final = next((change.labels[s] for s in ("relabel", "clip", "prompt") if s in change.labels), ())
    place = {name: k for k, name in enumerate(classes)}
    return {
        "facts": facts,
        "labels": [place[name] for name in final if name in place],
        "added": [place[name] for name in change.added if name in place],
        "removed": [place[name] for name in change.removed if name in place],
    }


def _round(value: object) -> float | None:
    number = finite(value)
    return None if number is None else round(number, 3)


def _webp(image: PILImage.Image, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return base64.b64encode(buffer.getvalue()).decode()
