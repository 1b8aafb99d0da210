"""The images the page shows before anyone browses: a strip of the best, some verdicts, some test images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segsmith.memory.run_folder import RunFolder
from segsmith.reasons import VerdictReason
from segsmith.report.drawn import DrawnImage
from segsmith.report.run_data import RunData
from segsmith.report.sheets import verdict_numbers
from segsmith.report.statistics import label
from segsmith.report.thumbnails import Overlay, mask_overlay, photo_uri

EXAMPLES = 12
"""The largest number of test images."""


@dataclass(frozen=True)
class Card:
    """An image on the page with its verdict.

    `photo` and `mask` are None where the file is missing or unreadable; `numbers` are those of `verdict_numbers`.
    """

    id: str
    target: str
    prompt: str
    accepted: bool
    reason: str
    reason_wording: str
    numbers: dict[str, float | None]
    photo: str | None
    mask: Overlay | None


@dataclass(frozen=True)
class Example:
    """A test image with its true and its predicted mask."""

    id: str
    photo: str | None
    truth: Overlay | None
    predicted: Overlay | None


@dataclass(frozen=True)
class Cards:
    """The cards of each place."""

    strip: list[Card]
    accepted: list[Card]
    rejected: list[Card]
    examples: list[Example]


def make_cards(run: RunFolder, data: RunData, classes: Sequence[str]) -> Cards:
    """The chosen images of every place with their thumbnails."""
    made: dict[str, Card] = {}

    def cards(images: Sequence[DrawnImage]) -> list[Card]:
        for image in images:
            if image.id not in made:
                made[image.id] = _card(run, data, image, classes)
        return [made[image.id] for image in images]

    return Cards(
        strip=[card for card in cards(data.chosen.strip) if card.photo],
        accepted=cards(data.chosen.accepted),
        rejected=cards(data.chosen.rejected),
        examples=_examples(run.evaluation / "real", data, classes),
    )


def _card(run: RunFolder, data: RunData, image: DrawnImage, classes: Sequence[str]) -> Card:
    reason = image.verdict.reason if image.verdict else ""
    return Card(
        id=image.id,
        target=image.target,
        prompt=data.prompts[image.row.prompt_id].text,
        accepted=image.is_accepted,
        reason=label(reason),
        reason_wording=VerdictReason.wording_of(reason),
        numbers=verdict_numbers(image.verdict, data.image_counts.median_sharpness),
        photo=photo_uri(run.image(image.id)),
        mask=mask_overlay(run.mask(image.id), classes) if image.mask else None,
    )


def _examples(folder: Path, data: RunData, classes: Sequence[str]) -> list[Example]:
    """Images of the test set, a folder in VOC layout, that the evaluation names.

    The segmenter's label maps are beside the true ones, in ``Predictions/<id>.png``.
    """
    photos = folder / "JPEGImages"
    try:
        present = set(os.listdir(photos))
    except OSError:
        return []
    # A listed name has no path parts, whatever the ledger says.
    names = [f"{i}.png" for i in (data.test_set.examples if data.test_set else ())]
    found = [
        Example(
            name.removesuffix(".png"),
            photo_uri(photos / name),
            mask_overlay(folder / "SegmentationClass" / name, classes),
            mask_overlay(folder / "Predictions" / name, classes),
        )
        for name in [name for name in names if name in present][:EXAMPLES]
    ]
    return [example for example in found if example.photo]
