"""The files of a diffusers pipeline: its parts, the variants of its weights, and which files are needed.

A repository usually holds the same weights several times: as float32 and float16 (``*.fp16.safetensors``), in
diffusers' folders and in one file at the top level, and for other runtimes. Nothing is downloaded or loaded here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from segsmith.errors import SegsmithError
from segsmith.terminal_text import first_line

INDEX = "model_index.json"
MAX_INDEX_BYTES = 1 << 20
AUTO = "auto"
"""`ModelRequirement.variant`: the half-precision weights where there are any, else the plain ones."""
PLAIN = "plain"
"""`images.variant`: weights whose file names contain no variant."""
SHARD = re.compile(r"-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class PipelineIndex:
    """What ``model_index.json`` says."""

    pipeline: str
    """Name of the pipeline's class; "" if it is not stated."""
    parts: Mapping[str, tuple[str, str]]
    """Folder -> (library, class)."""
    custom: bool = False
    """Whether the pipeline's class is code in the repository."""


def read_index(path: Path) -> PipelineIndex:
    """Parse a ``model_index.json``; raises `SegsmithError` for a file that describes no pipeline."""
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError("it is too large")
        described: dict[str, Any] = json.loads(path.read_text("utf-8"))
        name = described.get("_class_name") or ""
        custom = isinstance(name, list)
        parts = {
            key: (str(value[0]), str(value[1]))
            for key, value in described.items()
            if isinstance(value, list) and not key.startswith("_") and value[0] is not None
        }
        return PipelineIndex(str(name[-1] if custom else name), parts, custom)
    except (OSError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise SegsmithError(
            f"{path} does not describe a pipeline: {first_line(error)}.", "Download the model again."
        ) from None


def check_runs_without_its_code(index: PipelineIndex, names: Collection[str], model: str) -> None:
    """Raise `SegsmithError` for a pipeline that consists of code in its repository, which is never run.

    `names` are the files of the repository.
    """
    code = [name for name, (library, _) in index.parts.items() if f"{name}/{library}.py" in names]
    if index.custom or code:
        what = f"its part {code[0]!r}" if code else f"its pipeline {index.pipeline!r}"
        raise SegsmithError(
            f"{model} runs code from its repository ({what}), which segsmith does not do.",
            "Name a model whose pipeline is part of diffusers.",
        )


def check_known_to_diffusers(index: PipelineIndex, model: str) -> None:
    """Raise `SegsmithError` for a pipeline that the installed diffusers does not have."""
    import diffusers

    if index.pipeline and index.pipeline not in dir(diffusers):
        raise SegsmithError(
            f"{model} needs {index.pipeline}, which diffusers {diffusers.__version__} does not have.",
            "Type: pip install -U diffusers, or name another model.",
        )


def choose_variant(names: Iterable[str], index: PipelineIndex, wanted: str, model: str) -> str:
    """The variant to load, "" for plain weights; `wanted` is `AUTO`, "" or the name of a variant.

    Raises `SegsmithError` for a variant that no part has, and for a pipeline without safetensors weights.
    """
    there = {variant for name in names if (variant := _variant_of(name, index)) is not None}
    if not there:
        raise SegsmithError(
            f"The pipeline {model} has no safetensors weights.",
            "Use a model, or a revision, that has them; pickled weights are never loaded.",
        )
    if wanted == AUTO:
        return next((v for v in ("fp16", "") if v in there), min(there))
    if wanted not in there:
        shown = ", ".join(sorted(v or PLAIN for v in there))
        raise SegsmithError(
            f"{model} has no weights of variant {wanted or PLAIN!r}; it has: {shown}.",
            "Leave images.variant out, or type --set images.variant= to unset it.",
        )
    return wanted


def needed_files(names: Iterable[str], index: PipelineIndex, variant: str) -> list[str]:
    """The index, the configuration of every part, and its weights: those of `variant`, or else the plain ones.

    Folders that the index does not name, and files at the top level, are copies for other programs.
    """
    names = [n for n in names if n == INDEX or n.partition("/")[0] in index.parts]
    covered = {n.partition("/")[0] for n in names if variant and _variant_of(n, index) == variant}
    chosen = []
    for name in names:
        of = _variant_of(name, index)
        if of is None or of == (variant if name.partition("/")[0] in covered else ""):
            chosen.append(name)
    return chosen


def _variant_of(name: str, index: PipelineIndex) -> str | None:
    """The variant of a weights file or of an index of shards; "" for plain weights, None for any other file.

    ``unet/x.fp16.safetensors``, ``x.fp16-00001-of-00002.safetensors``, ``x.safetensors.index.fp16.json`` and the
    older ``x-00001-of-00002.fp16.safetensors`` are all of variant fp16.
    """
    path = PurePosixPath(name)
    if len(path.parts) != 2 or path.parts[0] not in index.parts:
        return None
    stem = path.name
    if stem.endswith(".json") and ".safetensors.index" in stem:
        stem = stem.removesuffix(".json").replace(".safetensors.index", "")
    elif stem.endswith(".safetensors"):
        stem = stem.removesuffix(".safetensors")
    else:
        return None
    return SHARD.sub("", stem).partition(".")[2]
