"""The images of a run, one after the other, each with what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from segsmith.memory.ledger import PAGE, ImageRow, Ledger, MaskRow, PromptRow, VerdictRow
from segsmith.memory.run_folder import RunFolder, is_id
from segsmith.report.reader import Reader, are_texts, finite

LABEL_SOURCES = ("prompt", "clip", "real", "relabel")
NUMBERS = {
    "probability": "probability",
    "threshold": "threshold",
    "runner_up": "runner-up",
    "sharpness": "sharpness / median",
    "duplicate_cosine": "cosine to most similar image",
}
"""Score of a verdict -> its name on the page."""


@dataclass(frozen=True)
class DrawnImage:
    """An image, the class it was drawn for, and what the run knows of it."""

    row: ImageRow
    target: str
    verdict: VerdictRow | None
    """Of its scores only `NUMBERS`, since one for each class takes most of a verdict's memory."""
    labels: Mapping[str, tuple[str, ...]]
    """Source -> classes, without the scores."""
    mask: MaskRow | None
    """Without its sources and hash."""

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def is_accepted(self) -> bool:
        return self.verdict is not None and self.verdict.accepted

    @property
    def certainty(self) -> float:
        """The probability on which a judged image was accepted or rejected; 0 where there is none."""
        return 0.0 if self.verdict is None else finite(self.verdict.scores.get("probability")) or 0.0


def each_image(run: RunFolder, ledger: Ledger, reader: Reader) -> Iterator[DrawnImage]:
    """The images in the order they were drawn, a page of them in memory; damaged rows are left out.

    Files are looked up in the run folder alone. Raises `Unreadable`.
    """
    rows = reader.each("images", ledger.each_drawn, _image_ok)
    while page := list(islice(rows, PAGE)):
        yield from _page(page, run, ledger, reader)


def _page(rows: Sequence[ImageRow], run: RunFolder, ledger: Ledger, reader: Reader) -> Iterator[DrawnImage]:
    ids = [row.id for row in rows]
    # Rows before what they refer to: a session may be writing, and what is read later is more complete.
    masks = {m.image_id: m for m in reader.each("masks", partial(ledger.mask_pixels, ids), _mask_ok)}
    labels: dict[str, dict[str, tuple[str, ...]]] = {}
    for source in LABEL_SOURCES:
        read = partial(_label_sets, ledger, source, ids)
        for image_id, classes in reader.each(f"{source} labels", read, _label_ok):
            labels.setdefault(image_id, {})[source] = classes
    found = reader.each("verdicts", partial(ledger.verdicts_of, ids), _verdict_ok)
    verdicts = {verdict.image_id: _shown_scores(verdict) for verdict in found}
    prompt_ids = list({row.prompt_id for row in rows})
    prompts = reader.each("prompts", partial(ledger.prompts_of, prompt_ids), prompt_ok, count=False)
    targets = {prompt.id: prompt.class_name for prompt in prompts}
    known = [row for row in rows if row.prompt_id in targets]
    reader.count("images", "belong to no known prompt", len(rows) - len(known), len(rows))
    if run.remote is None:
        check_files(run, [row.id for row in known], list(masks), reader)
    for row in known:
        yield DrawnImage(
            row, targets[row.prompt_id], verdicts.get(row.id), labels.get(row.id, {}), masks.get(row.id)
        )


def check_files(run: RunFolder, images: Sequence[str], masks: Sequence[str], reader: Reader) -> None:
    """Count the files that are missing of these images and masks."""
    lost_images, lost_masks = run.missing(images, masks)
    reader.count("image files", f"are missing from {run.images.name}/", lost_images, len(images))
    reader.count("mask files", f"are missing from {run.masks.name}/", lost_masks, len(masks))


def prompt_ok(row: PromptRow) -> bool:
    """Whether the page can show a prompt."""
    return (
        are_texts(row.id, row.class_name, row.text, row.status, *row.classes)
        and (row.parent_id is None or isinstance(row.parent_id, str))
        and isinstance(row.attributes, Mapping)
        and isinstance(row.critique, Mapping)
    )


def _image_ok(row: ImageRow) -> bool:
    return are_texts(row.prompt_id, row.backend) and is_id(row.id)


def _verdict_ok(row: VerdictRow) -> bool:
    return are_texts(row.image_id, row.reason) and isinstance(row.scores, Mapping)


def _label_sets(ledger: Ledger, source: str, ids: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from ledger.label_sets(source, ids).items()


def _label_ok(row: tuple[str, tuple[str, ...]]) -> bool:
    return are_texts(row[0], *row[1])


def _mask_ok(row: MaskRow) -> bool:
    return (
        isinstance(row.pixels, Mapping)
        and all(finite(n) is not None for n in row.pixels.values())
        and finite(row.ignore_share) is not None
    )


def _shown_scores(row: VerdictRow) -> VerdictRow:
    return replace(row, scores={name: row.scores[name] for name in NUMBERS if name in row.scores})
