"""``provenance.jsonl``: the origin of every exported image, one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segsmith.datasets.dataset_rows import DatasetRow, dataset_rows
from segsmith.files import atomic_file
from segsmith.memory.ledger import Ledger, MaskRow, ModelRow
from segsmith.memory.run_folder import RunFolder

FILE = "provenance.jsonl"


def write_provenance(run: RunFolder, ledger: Ledger, versions: Mapping[str, str]) -> Path:
    """Write a record of every accepted image with a mask, in drawing order, next to the exported datasets.

    A record has the prompt and its family, the seed, the image model (id, and revision and licence if the
    ledger has them), all models of the run, the judge's scores, the labels, and the software versions.
    """
    models = {role: _model(row) for role, row in ledger.models().items()}
    path = run.dataset / FILE
    with atomic_file(path) as file:
        for rows in dataset_rows(ledger):
            masks = {mask.image_id: mask for mask in ledger.mask_pixels([row.image.id for row in rows])}
            for row in rows:
                image_model = {"id": row.image.backend, **models.get("images", {})}
                record = {
                    **_record(row, masks[row.image.id]),
                    "image_model": image_model,
                    "models": models,
                    "versions": dict(versions),
                }
                file.write(f"{json.dumps(record, ensure_ascii=False, sort_keys=True)}\n".encode())
    return path


def _record(row: DatasetRow, mask: MaskRow) -> dict[str, Any]:
    """What is said of one image alone."""
    return {
        "image_id": row.image.id,
        "sha256": row.image.sha256,
        "class": row.prompt.class_name,
        "prompt": {
            "id": row.prompt.id,
            "text": row.prompt.text,
            "parent_id": row.prompt.parent_id,
            "family": row.family,
            "critique": dict(row.prompt.critique),
        },
        "seed": row.image.seed,
        "verdict": {"reason": row.verdict.reason, "scores": dict(row.verdict.scores)},
        "labels": list(row.labels),
        "mask": {"ignore_share": mask.ignore_share, "pixels": dict(mask.pixels)},
    }


def _model(row: ModelRow) -> dict[str, str]:
    return {key: str(value) for key, value in asdict(row).items() if key != "role"}
