"""The pictures the page shows, each with what is known about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segsmith.memory.ledger import ImageRow
from segsmith.memory.store import RunFolder
from segsmith.report.facts import REASONS, Book, finite, label_change, short, typical_sharpness
from segsmith.report.pictures import Overlay, overlay, spread, thumbnail

STRIP, ACCEPTED, REJECTED, MASKS, TEST = 12, 24, 24, 48, 12
"""Most pictures shown in each place; the page says how many there are in all."""

NUMBERS = {
    "probability": "probability",
    "threshold": "threshold",
    "runner_up": "runner-up",
    "sharpness": "sharpness / median",
    "duplicate_cosine": "nearest picture",
}
"""Scores of a verdict, and how the page calls them."""


@dataclass(frozen=True)
class Card:
    """One picture on the page.

    `photo` and `mask` are None where the file is missing or unreadable; the sharpness among `numbers` is
    in medians of the run.
    """

    id: str
    target: str
    prompt: str
    accepted: bool
    reason: str
    reason_words: str
    numbers: dict[str, float | None]
    labels: dict[str, tuple[str, ...]]
    agreed: tuple[str, ...]
    added: list[str]
    removed: list[str]
    photo: str | None
    mask: Overlay | None
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class Example:
    """A picture of the test world with its true and its predicted mask."""

    id: str
    photo: str | None
    truth: Overlay | None
    predicted: Overlay | None


@dataclass(frozen=True)
class Gallery:
    """The cards of each section."""

    strip: list[Card]
    accepted: list[Card]
    rejected: list[Card]
    masks: list[Card]
    test: list[Example]

    def details(self) -> dict[str, list[tuple[str, str]]]:
        """Image id -> what the page shows when one looks closer."""
        return {c.id: c.facts for c in [*self.strip, *self.accepted, *self.rejected, *self.masks]}


def hang(run: RunFolder, book: Book, classes: Sequence[str]) -> Gallery:
    """Choose pictures for every section, spread over classes and reasons, and make them small."""
    made: dict[str, Card] = {}
    typical = typical_sharpness(book)

    def cards(images: Iterable[ImageRow]) -> list[Card]:
        for image in images:
            if image.id not in made:
                made[image.id] = _card(run, book, image, classes, typical)
        return [made[image.id] for image in images]

    def certainty(image: ImageRow) -> float:
        return finite(book.verdicts[image.id].scores.get("probability")) or 0.0

    accepted, rejected = book.accepted, book.rejected
    masked = [image for image in accepted if image.id in book.masks]
    changed = [image for image in masked if any(label_change(book, image.id)[1:])]
    unchanged = [image for image in masked if image not in changed]
    best = sorted(masked or accepted, key=lambda i: -certainty(i))
    # Changed labels first, because they are what is worth a look, but never more than half the wall.
    first = spread(changed, book.target, max(MASKS // 2, MASKS - len(unchanged)))
    wall = first + spread(unchanged, book.target, MASKS - len(first))
    return Gallery(
        strip=[c for c in cards(spread(best, book.target, STRIP)) if c.photo],
        accepted=cards(spread(accepted, book.target, ACCEPTED)),
        rejected=cards(spread(rejected, lambda i: book.verdicts[i.id].reason, REJECTED)),
        masks=cards(wall),
        test=_examples(run.evaluation / "real", book, classes),
    )


def _card(run: RunFolder, book: Book, image: ImageRow, classes: Sequence[str], typical: float | None) -> Card:
    prompt, verdict = book.prompts[image.prompt_id], book.verdicts[image.id]
    labels, added, removed = label_change(book, image.id)
    numbers = {name: finite(verdict.scores.get(name)) for name in NUMBERS}
    sharpness = numbers["sharpness"]
    numbers["sharpness"] = sharpness / typical if sharpness is not None and typical else None
    mask = book.masks.get(image.id)
    facts = {
        "prompt": prompt.text,
        "drawn for": prompt.class_name,
        "verdict": "accepted" if verdict.accepted else f"rejected: {short(verdict.reason)}",
        **{NUMBERS[name]: None if value is None else f"{value:.3f}" for name, value in numbers.items()},
        **{f"labels, {source}": ", ".join(names) or "none" for source, names in labels.items()},
        "unknown pixels": None if mask is None else f"{mask.ignore_share:.1%}",
        "image": f"{image.id}, seed {image.seed}, round {image.round}, {image.backend}",
    }
    return Card(
        id=image.id,
        target=prompt.class_name,
        prompt=prompt.text,
        accepted=verdict.accepted,
        reason=short(verdict.reason),
        reason_words=REASONS.get(verdict.reason, ""),
        numbers=numbers,
        labels=labels,
        agreed=_agreed(labels),
        added=added,
        removed=removed,
        photo=thumbnail(run.image(image.id)),
        mask=None if mask is None else overlay(run.mask(image.id), classes),
        facts=[(name, value) for name, value in facts.items() if value is not None],
    )


def _agreed(labels: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The classes, when all three sources name the same ones; else nothing."""
    first = next(iter(labels.values()), ())
    return first if len(labels) == 3 and all(set(names) == set(first) for names in labels.values()) else ()


def _examples(folder: Path, book: Book, classes: Sequence[str]) -> list[Example]:
    """Pictures of the test world (a folder in VOC layout) whose ids the evaluation names.

    The segmenter's label maps lie beside the true ones, in ``Predictions/<id>.png``.
    """
    ids = [str(i) for i in (book.evaluation.get("real") or {}).get("examples") or []][:TEST]
    found = [
        Example(
            i,
            thumbnail(folder / "JPEGImages" / f"{i}.png"),
            overlay(folder / "SegmentationClass" / f"{i}.png", classes),
            overlay(folder / "Predictions" / f"{i}.png", classes),
        )
        for i in ids
    ]
    return [example for example in found if example.photo]
