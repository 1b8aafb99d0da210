"""The pictures the page shows, each with what is known about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segsmith.memory.ledger import ImageRow
from segsmith.memory.run_folder import RunFolder
from segsmith.reasons import VerdictReason
from segsmith.report.sheets import NUMBERS
from segsmith.report.statistics import Book, finite, short, typical_sharpness
from segsmith.report.thumbnails import Overlay, overlay, spread, thumbnail

STRIP, ACCEPTED, REJECTED, TEST = 12, 12, 12, 12
"""Most pictures that stand in each place; all others are on the sheets."""


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
    photo: str | None
    mask: Overlay | None


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
    test: list[Example]

    @property
    def ids(self) -> list[str]:
        """Every run picture that stands on the page."""
        return list(dict.fromkeys(c.id for c in [*self.strip, *self.accepted, *self.rejected]))


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
    best = sorted(masked or accepted, key=lambda i: -certainty(i))
    return Gallery(
        strip=[c for c in cards(spread(best, book.target, STRIP)) if c.photo],
        accepted=cards(spread(accepted, book.target, ACCEPTED)),
        rejected=cards(spread(rejected, lambda i: book.verdicts[i.id].reason, REJECTED)),
        test=_examples(run.evaluation / "real", book, classes),
    )


def _card(run: RunFolder, book: Book, image: ImageRow, classes: Sequence[str], typical: float | None) -> Card:
    prompt, verdict = book.prompts[image.prompt_id], book.verdicts[image.id]
    numbers = {name: finite(verdict.scores.get(name)) for name in NUMBERS}
    sharpness = numbers["sharpness"]
    numbers["sharpness"] = sharpness / typical if sharpness is not None and typical else None
    return Card(
        id=image.id,
        target=prompt.class_name,
        prompt=prompt.text,
        accepted=verdict.accepted,
        reason=short(verdict.reason),
        reason_words=VerdictReason.wording_of(verdict.reason),
        numbers=numbers,
        photo=thumbnail(run.image(image.id)),
        mask=overlay(run.mask(image.id), classes) if image.id in book.masks else None,
    )


def _examples(folder: Path, book: Book, classes: Sequence[str]) -> list[Example]:
    """Pictures of the test world (a folder in VOC layout) whose ids the evaluation names.

    The segmenter's label maps lie beside the true ones, in ``Predictions/<id>.png``.
    """
    score = book.evaluation.get("test_set")
    ids = score.examples[:TEST] if score else ()
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
