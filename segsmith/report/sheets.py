"""Every picture of a run inside the page: small pictures packed into sheets that the browser opens on demand.

A sheet is one WebP picture of up to `PER_SHEET` photos, one of their masks, and what is known of each. The
page holds sheets as inert text, so twenty thousand pictures cost nothing until somebody turns to them.
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

from segsmith.memory.ledger import ImageRow
from segsmith.memory.run_folder import RunFolder
from segsmith.report.statistics import Book, finite, label_change, short, typical_sharpness
from segsmith.report.thumbnails import name_tags, painted, small_mask, small_photo, spread

CAP = 20_000
"""Most pictures in the page; of more, a selection spread over classes and reasons."""
PER_SHEET, COLUMNS = 96, 12
SIDES = ((1_500, 128), (6_000, 96), (CAP, 64))
"""(up to so many pictures, longest side of each in pixels): a small run gets sharper ones."""
# On 96 pictures of the simulator at 64 px: WebP 0.9 kB each in 26 ms a sheet, JPEG 1.0 kB, AVIF 0.6 kB but
# 0.7 s a sheet, which would be two and a half minutes for a large run.
WEBP = {"quality": 75, "method": 2}

NUMBERS = {
    "probability": "probability",
    "threshold": "threshold",
    "runner_up": "runner-up",
    "sharpness": "sharpness / median",
    "duplicate_cosine": "nearest picture",
}
"""Scores of a verdict, and how the page calls them."""
FIELDS = (
    *NUMBERS.values(), "labels, prompt", "labels, clip", "labels, relabel", "unknown pixels", "decided by a person",
    "image",
)  # fmt: skip
"""What the page tells of a picture beside its prompt and its verdict, in this order."""


@dataclass(frozen=True)
class Shelf:
    """The pictures the page holds, in the order of their cells on the sheets."""

    images: Sequence[ImageRow]
    judged: int
    side: int

    @property
    def sheets(self) -> list[Sequence[ImageRow]]:
        return [self.images[k : k + PER_SHEET] for k in range(0, len(self.images), PER_SHEET)]


def fill_shelf(book: Book, classes: Sequence[str], first: Sequence[str] = (), cap: int = CAP) -> Shelf:
    """Choose at most `cap` judged pictures, those with the ids in `first` in any case.

    What one looks at together lies together: accepted before rejected, then by class and reason, the
    surest first.
    """
    judged = [*book.accepted, *book.rejected]
    chosen = judged
    if len(judged) > cap:
        wanted = set(first)
        named = [image for image in judged if image.id in wanted]
        rest = [image for image in judged if image.id not in wanted]
        chosen = named + spread(
            rest, lambda i: f"{book.target(i)}/{book.verdicts[i.id].reason}", cap - len(named)
        )
    place = {name: index for index, name in enumerate(classes)}

    def order(image: ImageRow) -> tuple[Any, ...]:
        verdict = book.verdicts[image.id]
        sure = finite(verdict.scores.get("probability")) or 0.0
        return (not verdict.accepted, place.get(book.target(image), len(place)), verdict.reason, -sure)

    side = next((side for most, side in SIDES if len(chosen) <= most), SIDES[-1][1])
    return Shelf(sorted(chosen, key=order), len(judged), side)


def index_of(shelf: Shelf, book: Book, classes: Sequence[str], prompts: Mapping[str, int]) -> dict[str, Any]:
    """What the page must know of all pictures at once, to filter and to count: one list a column.

    `prompts` gives the number of a prompt in the page's prompt table.
    """
    verdicts = [book.verdicts[image.id] for image in shelf.images]
    reasons = list(dict.fromkeys(v.reason for v in verdicts))
    number = {reason: k for k, reason in enumerate(reasons)}
    return {
        "classes": list(classes),
        "fields": FIELDS,
        "side": shelf.side,
        "perSheet": PER_SHEET,
        "columns": COLUMNS,
        "judged": shelf.judged,
        "reasons": [short(reason) for reason in reasons],
        "id": [image.id for image in shelf.images],
        "prompt": [prompts[image.prompt_id] for image in shelf.images],
        "accepted": [int(v.accepted) for v in verdicts],
        "reason": [number[v.reason] for v in verdicts],
        "p": [_round(v.scores.get("probability")) for v in verdicts],
        "threshold": [_round(v.scores.get("threshold")) for v in verdicts],
        "changed": [int(any(label_change(book, image.id)[1:])) for image in shelf.images],
    }


def sheets(shelf: Shelf, run: RunFolder, book: Book, classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The sheets in order, each as JSON: ``photo`` and ``mask`` (WebP, base64; mask may be null) and ``rows``."""
    typical = typical_sharpness(book)

    def made(images: Sequence[ImageRow]) -> dict[str, Any]:
        return _sheet(images, shelf.side, run, book, classes, typical)

    # Pillow works outside Python's lock, so threads share the reading and packing.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(made, shelf.sheets)


def _sheet(
    images: Sequence[ImageRow],
    side: int,
    run: RunFolder,
    book: Book,
    classes: Sequence[str],
    typical: float | None,
) -> dict[str, Any]:
    size = (min(COLUMNS, len(images)) * side, -(-len(images) // COLUMNS) * side)
    photos, masks = PILImage.new("RGB", size, (127, 127, 127)), PILImage.new("RGBA", size)
    rows, masked = [], False
    for k, image in enumerate(images):
        corner = (k % COLUMNS * side, k // COLUMNS * side)
        row = _row(image, book, classes, typical)
        photo = small_photo(run.image(image.id), side)
        if photo is not None:
            photos.paste(photo, corner)
            row["size"] = photo.size
        mask = small_mask(run.mask(image.id), side) if image.id in book.masks else None
        if mask is not None:
            picture = painted(mask, len(classes))
            picture.info["transparency"] = 0
            masks.paste(picture.convert("RGBA"), corner)
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


def _row(image: ImageRow, book: Book, classes: Sequence[str], typical: float | None) -> dict[str, Any]:
    """``facts`` follow `FIELDS`; ``labels``, ``added`` and ``removed`` are places in the class list."""
    verdict, mask = book.verdicts[image.id], book.masks.get(image.id)
    labels, added, removed = label_change(book, image.id)
    numbers = {name: finite(verdict.scores.get(name)) for name in NUMBERS}
    sharpness = numbers["sharpness"]
    numbers["sharpness"] = sharpness / typical if sharpness is not None and typical else None
    decision = book.decisions.get(("verdict", image.id))
    facts = [
        *(None if value is None else f"{value:.3f}" for value in numbers.values()),
        *((", ".join(labels[s]) or "none") if s in labels else None for s in ("prompt", "clip", "relabel")),
        None if mask is None else f"{mask.ignore_share:.1%}",
        None if decision is None else f"{decision.action} {decision.note}".strip(),
        f"{image.id}, seed {image.seed}, round {image.round}, {image.backend}",
    ]
    final = next((labels[s] for s in ("relabel", "clip", "prompt") if s in labels), ())
    place = {name: k for k, name in enumerate(classes)}
    return {
        "facts": facts,
        "labels": [place[name] for name in final if name in place],
        "added": [place[name] for name in added if name in place],
        "removed": [place[name] for name in removed if name in place],
    }


def _round(value: object) -> float | None:
    number = finite(value)
    return None if number is None else round(number, 3)


def _webp(picture: PILImage.Image, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", **options)
    return base64.b64encode(buffer.getvalue()).decode()
