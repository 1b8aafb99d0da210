"""What the ledger says of the images of a dataset, read a part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from segsmith.memory.ledger import ImageRow, Ledger, PromptRow, VerdictRow, prompt_families

READ = 1024
"""Images whose rows are read together."""


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """An accepted image with a mask that no reviewer rejected."""

    image: ImageRow
    prompt: PromptRow
    family: str
    """Id of the prompt at the root of its prompt's refinements."""
    verdict: VerdictRow
    labels: tuple[str, ...]
    """The relabeller's, else CLIP's, else the prompt's."""
    mask_sha256: str
    """Of the mask's file; "" where the ledger does not state it."""


def dataset_rows(ledger: Ledger) -> Iterator[list[DatasetRow]]:
    """All images of a run's dataset in the order they were drawn, in parts of at most `READ`."""
    families = prompt_families(ledger.each_prompt())
    refused = ledger.rejected("mask")
    drawn = ledger.each_image()
    while part := list(islice(drawn, READ)):
        masked = {image.id: (image, sha256) for image, sha256 in part if sha256 is not None}
        verdicts = {v.image_id: v for v in ledger.verdicts_of(list(masked.keys() - refused)) if v.accepted}
        labels: dict[str, tuple[str, ...]] = {}
        for source in ("prompt", "clip", "relabel"):
            labels |= ledger.label_sets(source, list(verdicts))
        chosen = [pair for image_id, pair in masked.items() if image_id in verdicts]
        prompts = {p.id: p for p in ledger.prompts_of(sorted({image.prompt_id for image, _ in chosen}))}
        yield [
            DatasetRow(
                image,
                prompt := prompts[image.prompt_id],
                families[prompt.id],
                verdicts[image.id],
                labels.get(image.id, prompt.classes),
                sha256,
            )
            for image, sha256 in chosen
        ]
