"""Where a pipeline's files lie: a folder, or fetched from the hub; and whether they are whole.

Weights are safetensors only, and no code of a repository is ever run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from segsmith.config import ImagesConfig
from segsmith.errors import SegsmithError

INDEX = "model_index.json"


def settings_name(config: ImagesConfig) -> str:
    """Model, revision and a digest of every setting that changes a picture."""
    settings = config.model_dump(
        include={
            "model", "revision", "variant", "unet", "steps", "guidance", "negative_prompt", "scheduler",
            "timestep_spacing", "dtype",
        }
    )  # fmt: skip
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{config.model}@{config.revision or 'main'}/{digest}"


def pipeline_folder(config: ImagesConfig, *, offline: bool) -> Path:
    """The folder of `images.model`, fetched from the hub if it is an id; every file in it opens.

    Raises `SegsmithError` when there is no such folder or id, the hub does not answer, or a file is cut short.
    """
    if not config.model:
        raise SegsmithError(
            "No image model is named.", "Set images.model to a hub id such as org/name, or to a folder."
        )
    folder = Path(config.model).expanduser()
    if folder.exists() or config.model.startswith((".", "/", "~")) or config.model.count("/") != 1:
        if not (folder / INDEX).is_file():
            problem = f"holds no {INDEX}, so no pipeline" if folder.is_dir() else "is no folder and no hub id"
            raise SegsmithError(
                f"images.model = {config.model!r} {problem}.",
                "Name a folder that diffusers saved, or a hub id such as org/name.",
            )
    else:
        folder = _fetch(config, offline=offline)
    _check_folder(folder, config.model)
    return folder


def check_tensors(path: str | Path) -> None:
    """Open a safetensors file, which compares its header with its length."""
    try:
        with safe_open(str(path), framework="np"):
            pass
    except (OSError, SafetensorError) as error:
        raise SegsmithError(
            f"The weights {path} cannot be read: {error}.",
            "Fetch that file again; it is cut short or no safetensors file.",
        ) from None


def load_tensors(path: str) -> dict[str, Any]:
    """All tensors of a safetensors file, on the CPU."""
    from safetensors.torch import load_file

    check_tensors(path)
    return load_file(path)


def _fetch(config: ImagesConfig, *, offline: bool) -> Path:
    import httpx
    from diffusers import DiffusionPipeline
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    what = f"{config.model}" + (f" at {config.revision}" if config.revision else "")
    try:
        return Path(
            DiffusionPipeline.download(
                config.model,
                revision=config.revision,
                variant=config.variant,
                use_safetensors=True,
                local_files_only=offline,
            )
        )
    except GatedRepoError:
        raise SegsmithError(
            f"{what} wants its licence accepted first.",
            f"Accept it at https://huggingface.co/{config.model}, then type: hf auth login",
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise SegsmithError(
            f"The hub has no model {what}.",
            "Check images.model and images.revision; for a private one: hf auth login",
        ) from None
    except (OSError, ValueError, httpx.HTTPError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        if offline:
            raise SegsmithError(
                f"{what} is not on this machine, and offline fetches nothing.",
                "Run once without --offline, or set images.model to a folder.",
            ) from None
        raise SegsmithError(
            f"{what} could not be fetched from the hub: {said}",
            "Check the name and the connection, or set images.model to a folder.",
        ) from None


def _check_folder(folder: Path, model: str) -> None:
    """Every part the index names is there, and every weight file is as long as its header says."""
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text("utf-8"))
        parts = [k for k, v in index.items() if isinstance(v, list) and v[0] is not None]
    except (OSError, ValueError, AttributeError, IndexError) as error:
        raise SegsmithError(
            f"{folder / INDEX} is no pipeline index: {error}.", "Fetch the model again."
        ) from None
    absent = [name for name in parts if not (folder / name).is_dir()]
    if absent:
        raise SegsmithError(
            f"The pipeline {model} lacks its part {absent[0]!r}.", "Fetch the whole model again."
        )
    weights = sorted(folder.glob("*/*.safetensors"))
    if not weights:
        raise SegsmithError(
            f"The pipeline {model} has no safetensors weights.",
            "Use a model, or a revision, that has them; pickled weights are never loaded.",
        )
    for file in weights:
        check_tensors(file)
