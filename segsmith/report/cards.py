"""The images the page shows before anyone browses: a strip of the best, some verdicts, some test images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segsmith.memory.ledger import ImageRow
from segsmith.memory.run_folder import RunFolder
from segsmith.reasons import VerdictReason
from segsmith.report.run_data import RunData
from segsmith.report.sheets import round_robin, verdict_numbers
from segsmith.report.statistics import certainty, label, median_sharpness
from segsmith.report.thumbnails import Overlay, mask_overlay, photo_uri

STRIP, ACCEPTED, REJECTED, EXAMPLES = 12, 12, 12, 12
"""The largest number of images in each place; the sheets hold all images."""


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

    @property
    def ids(self) -> list[str]:
        """The ids of all generated images on the cards."""
        return list(dict.fromkeys(c.id for c in [*self.strip, *self.accepted, *self.rejected]))


def choose_cards(run: RunFolder, data: RunData, classes: Sequence[str]) -> Cards:
    """Choose images for every place, spread over classes and reasons, and make their thumbnails."""
    made: dict[str, Card] = {}
    sharpness = median_sharpness(data)

    def cards(images: Sequence[ImageRow]) -> list[Card]:
        for image in images:
            if image.id not in made:
                made[image.id] = _card(run, data, image, classes, sharpness)
        return [made[image.id] for image in images]

    masked = [image for image in data.accepted if image.id in data.masks]
    best = sorted(masked or data.accepted, key=lambda image: -certainty(data, image))
    return Cards(
        strip=[card for card in cards(round_robin(best, data.target, STRIP)) if card.photo],
        accepted=cards(round_robin(data.accepted, data.target, ACCEPTED)),
        rejected=cards(round_robin(data.rejected, lambda i: data.verdicts[i.id].reason, REJECTED)),
        examples=_examples(run.evaluation / "real", data, classes),
    )


def _card(
    run: RunFolder, data: RunData, image: ImageRow, classes: Sequence[str], sharpness: float | None
) -> Card:
    prompt, verdict = data.prompts[image.prompt_id], data.verdicts[image.id]
    return Card(
        id=image.id,
        target=prompt.class_name,
        prompt=prompt.text,
        accepted=verdict.accepted,
        reason=label(verdict.reason),
        reason_wording=VerdictReason.wording_of(verdict.reason),
        numbers=verdict_numbers(verdict, sharpness),
        photo=photo_uri(run.image(image.id)),
        mask=mask_overlay(run.mask(image.id), classes) if image.id in data.masks else None,
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
