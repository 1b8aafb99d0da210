"""Safetensors files: whether they are complete, without reading the tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from segsmith.errors import SegsmithError
from segsmith.terminal_text import first_line


def check_tensors(path: str | Path) -> None:
    """Raise `SegsmithError` unless the file opens as safetensors, which compares its length with its header."""
    tensor_shapes(path)


def tensor_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor, from the header. Raises `SegsmithError` for a truncated or other file."""
    try:
        with safe_open(str(path), framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
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


def missing_shards(folder: Path, names: Iterable[str]) -> list[str]:
    """Weights files that an index of shards among `names` lists and `folder` lacks.

    Raises `SegsmithError` for an index that cannot be read.
    """
    missing = []
    for name in names:
        if ".safetensors.index" not in name:
            continue
        path = folder / name
        try:
            shards = set(json.loads(path.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SegsmithError(
                f"{path} does not list the weights: {first_line(error)}.", "Download the model again."
            ) from None
        missing += [f"{path.parent.name}/{shard}" for shard in shards if not (path.parent / shard).is_file()]
    return sorted(missing)
