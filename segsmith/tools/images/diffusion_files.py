"""The files of a diffusion pipeline: a folder or a download from the hub, and whether they are complete.

Only safetensors weights are loaded, and no code from a repository is ever run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from segsmith.config import ImagesConfig
from segsmith.errors import SegsmithError
from segsmith.tools.weights.model_requirements import image_model
from segsmith.tools.weights.pipeline_files import (
    AUTO,
    INDEX,
    PLAIN,
    PipelineIndex,
    check_known_to_diffusers,
    check_runs_without_its_code,
    choose_variant,
    needed_files,
    read_index,
)
from segsmith.tools.weights.store import find, require
from segsmith.tools.weights.tensor_files import check_tensors, missing_shards


@dataclass(frozen=True)
class PipelineFiles:
    """A pipeline whose files are on this machine and complete."""

    folder: Path
    index: PipelineIndex
    variant: str
    """Of the weights to load; "" for plain ones."""


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


def pipeline_files(config: ImagesConfig, *, offline: bool) -> PipelineFiles:
    """The files of `images.model`, downloaded from the hub if it is an id; every weights file is complete.

    Raises `SegsmithError` if there is no such folder or id, the hub does not answer, the pipeline lacks the
    variant or needs code of its own, or a file is missing or truncated.
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
        # The cache may hold files of other variants, which another program fetched in part.
        return _checked(found.path, found.files, config)
    files = tuple(path.relative_to(folder).as_posix() for path in sorted(folder.glob("*/*")))
    return _checked(folder, (INDEX, *files), config)


def _checked(folder: Path, names: tuple[str, ...], config: ImagesConfig) -> PipelineFiles:
    """Every part that the index names exists, and every weights file is as long as its header says."""
    model = str(config.model)
    index = read_index(folder / INDEX)
    check_runs_without_its_code(index, names, model)
    check_known_to_diffusers(index, model)
    absent = [name for name in index.parts if not (folder / name).is_dir()]
    if absent:
        raise SegsmithError(
            f"The pipeline {model} has no folder {absent[0]!r}, which its index names.",
            "Download the whole model again.",
        )
    wanted = AUTO if config.variant is None else "" if config.variant == PLAIN else config.variant
    variant = choose_variant(names, index, wanted, model)
    needed = needed_files(names, index, variant)
    if missing := missing_shards(folder, needed):
        raise SegsmithError(
            f"The pipeline {model} lacks the weights {missing[0]}, which an index of shards names.",
            "Download the whole model again.",
        )
    for name in needed:
        if name.endswith(".safetensors"):
            check_tensors(folder / name)
    return PipelineFiles(folder, index, variant)
