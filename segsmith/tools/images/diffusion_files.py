"""The files of a diffusion pipeline: a folder or a download from the hub, and whether they are complete.

Only safetensors weights are loaded, and no code from a repository is ever run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from segsmith.config import ImagesConfig
from segsmith.errors import SegsmithError
from segsmith.terminal_text import first_line
from segsmith.tools.weights.model_requirements import image_model
from segsmith.tools.weights.store import find, require

INDEX = "model_index.json"
MAX_INDEX_BYTES = 1 << 20


def settings_name(config: ImagesConfig) -> str:
    """Model, revision and a digest of every setting that changes an image."""
    settings = config.model_dump(
        include={
            "model", "revision", "variant", "unet", "steps", "guidance", "negative_prompt", "scheduler",
            "timestep_spacing", "dtype",
        }
    )  # fmt: skip
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{config.model}@{config.revision or 'main'}/{digest}"


def pipeline_folder(config: ImagesConfig, *, offline: bool) -> Path:
    """The folder of `images.model`, downloaded from the hub if it is an id; every weights file in it is complete.

    Raises `SegsmithError` if there is no such folder or id, the hub does not answer, or a file is truncated.
    """
    if not config.model:
        raise SegsmithError(
            "No image model is named.", "Set images.model to a hub id such as org/name, or to a folder."
        )
    folder = Path(config.model).expanduser()
    if folder.exists() or config.model.startswith((".", "/", "~")) or config.model.count("/") != 1:
        if not (folder / INDEX).is_file():
            problem = f"contains no {INDEX}" if folder.is_dir() else "is neither a folder nor a hub id"
            raise SegsmithError(
                f"images.model = {config.model!r} {problem}.",
                "Name a folder that diffusers saved, or a hub id such as org/name.",
            )
    else:
        requirement = image_model(config)
        require([requirement], offline)
        found = find(requirement)
        assert found is not None  # or `require` would have raised
        folder = found.path
    _check_folder(folder, config.model)
    return folder


def check_tensors(path: str | Path) -> None:
    """Raise `SegsmithError` unless the file opens as safetensors, which compares its length with its header."""
    try:
        with safe_open(str(path), framework="np"):
            pass
    except (OSError, SafetensorError) as error:
        raise SegsmithError(
            f"The weights {path} cannot be read: {first_line(error)}.",
            "Download that file again; it is truncated or not a safetensors file.",
        ) from None


def load_tensors(path: str) -> dict[str, Any]:
    """All tensors of a safetensors file, on the CPU."""
    from safetensors.torch import load_file

    check_tensors(path)
    return load_file(path)


def _check_folder(folder: Path, model: str) -> None:
    """Every part that the index names exists, and every weights file is as long as its header says."""
    index = folder / INDEX
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError("it is too large")
        described: dict[str, Any] = json.loads(index.read_text("utf-8"))
        parts = [k for k, v in described.items() if isinstance(v, list) and v[0] is not None]
    except (OSError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise SegsmithError(
            f"{index} does not describe a pipeline: {first_line(error)}.", "Download the model again."
        ) from None
    absent = [name for name in parts if not (folder / name).is_dir()]
    if absent:
        raise SegsmithError(
            f"The pipeline {model} has no folder {absent[0]!r}, which its index names.",
            "Download the whole model again.",
        )
    weights = sorted(folder.glob("*/*.safetensors"))
    if not weights:
        raise SegsmithError(
            f"The pipeline {model} has no safetensors weights.",
            "Use a model, or a revision, that has them; pickled weights are never loaded.",
        )
    for file in weights:
        check_tensors(file)
