"""``provenance.jsonl``: the origin of every exported image, one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from segsmith.files import atomic_file
from segsmith.memory.ledger import ImageRow, Ledger, ModelRow, prompt_families
from segsmith.memory.run_folder import RunFolder

FILE = "provenance.jsonl"
READ = 1024
"""Images whose rows are read together."""


def write_provenance(run: RunFolder, ledger: Ledger, versions: Mapping[str, str]) -> Path:
    """Write a record of every accepted image with a mask, in drawing order, next to the exported datasets.

    A record has the prompt and its family, the seed, the image model (id, and revision and licence if the
    ledger has them), all models of the run, the judge's scores, the labels, and the software versions.
    """
    families = prompt_families(ledger.each_prompt())
    models = {role: _model(row) for role, row in ledger.models().items()}
    refused = ledger.rejected("mask")
    path = run.dataset / FILE
    with atomic_file(path) as file:
        drawn = ledger.each_drawn()
        while images := list(islice(drawn, READ)):
            for record in _records(images, ledger, families, refused):
                image_model = {"id": record["image_model"], **models.get("images", {})}
                record |= {"image_model": image_model, "models": models, "versions": dict(versions)}
                file.write(f"{json.dumps(record, ensure_ascii=False, sort_keys=True)}\n".encode())
    return path


def _records(
    images: Sequence[ImageRow], ledger: Ledger, families: Mapping[str, str], refused: Collection[str]
) -> Iterator[dict[str, Any]]:
    """What the ledger says of those of some images that are accepted, have a mask, and whose mask is not refused."""
    ids = [image.id for image in images]
    verdicts = {verdict.image_id: verdict for verdict in ledger.verdicts_of(ids) if verdict.accepted}
    masks = {mask.image_id: mask for mask in ledger.mask_pixels(list(verdicts.keys() - refused))}
    labels = ledger.label_sets("relabel", list(masks))
    prompts = {p.id: p for p in ledger.prompts_of(sorted({i.prompt_id for i in images if i.id in masks}))}
    for image in images:
        if image.id not in masks:
            continue
        prompt, verdict, mask = prompts[image.prompt_id], verdicts[image.id], masks[image.id]
        yield {
            "image_id": image.id,
            "sha256": image.sha256,
            "class": prompt.class_name,
            "prompt": {
                "id": prompt.id,
                "text": prompt.text,
                "parent_id": prompt.parent_id,
                "family": families[prompt.id],
                "critique": dict(prompt.critique),
            },
            "seed": image.seed,
            "image_model": image.backend,
            "verdict": {"reason": verdict.reason, "scores": dict(verdict.scores)},
            "labels": list(labels.get(image.id, prompt.classes)),
            "mask": {"ignore_share": mask.ignore_share, "pixels": dict(mask.pixels)},
        }


def _model(row: ModelRow) -> dict[str, str]:
    return {key: str(value) for key, value in asdict(row).items() if key != "role"}
