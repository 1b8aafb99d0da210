"""``provenance.jsonl``: the origin of every exported image, one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segsmith.files import write_atomic
from segsmith.memory.ledger import Ledger, ModelRow, prompt_families
from segsmith.memory.run_folder import RunFolder

FILE = "provenance.jsonl"


def write_provenance(run: RunFolder, ledger: Ledger, versions: Mapping[str, str]) -> Path:
    """Write a record of every accepted image with a mask, in drawing order, next to the exported datasets.

    A record has the prompt and its family, the seed, the image model (id, and revision and licence if the
    ledger has them), all models of the run, the judge's scores, the labels, and the software versions.
    """
    prompts = {p.id: p for p in ledger.prompts()}
    families = prompt_families(prompts.values())
    verdicts, masks, labels = ledger.verdicts(), ledger.masks(), ledger.labels("relabel")
    models = {role: _model(row) for role, row in ledger.models().items()}
    lines, refused = [], ledger.rejected("mask")
    for image in ledger.accepted():
        if image.id not in masks or image.id in refused:
            continue
        prompt = prompts[image.prompt_id]
        record: dict[str, Any] = {
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
            "image_model": {"id": image.backend, **models.get("images", {})},
            "models": models,
            "verdict": {"reason": verdicts[image.id].reason, "scores": dict(verdicts[image.id].scores)},
            "labels": list(labels[image.id].classes) if image.id in labels else list(prompt.classes),
            "mask": {"ignore_share": masks[image.id].ignore_share, "pixels": dict(masks[image.id].pixels)},
            "versions": dict(versions),
        }
        lines.append(json.dumps(record, ensure_ascii=False, sort_keys=True))
    path = run.dataset / FILE
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())
    return path


def _model(row: ModelRow) -> dict[str, str]:
    return {key: str(value) for key, value in asdict(row).items() if key != "role"}
