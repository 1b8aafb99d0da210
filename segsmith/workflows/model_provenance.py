"""Which models a run used, as rows of its ledger."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from segsmith import __version__
from segsmith.config import Config
from segsmith.files import sha256_of
from segsmith.memory.ledger import ModelRow
from segsmith.tools.weights.catalogue import Kind, LocalModel, ModelRequirement
from segsmith.tools.weights.model_requirements import requirements_of
from segsmith.tools.weights.store import find

Source = Literal["package", "hub", "file", "url"]
SOURCES: dict[Kind, Source] = {
    "package": "package", "wheel": "package", "hub": "hub", "url": "url", "file": "file", "service": "url",
}  # fmt: skip
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".gguf")


def model_rows(config: Config) -> list[ModelRow]:
    """One row per role, with commit, licence and hash of the weights where they are known.

    The revision of a model that is part of this package is the version of the package. The segmenter is trained in
    the run itself.
    """
    rows = [_row(need, find(need) or LocalModel(Path())) for need in requirements_of(config)]
    known = {row.role for row in rows}
    trainer = config.trainer
    segmenter = ModelRow("segmenter", f"{trainer.architecture} {trainer.encoder}", __version__, "", "package")
    return rows if "segmenter" in known else [*rows, segmenter]


def _row(need: ModelRequirement, found: LocalModel) -> ModelRow:
    return ModelRow(
        role=need.role,
        name=need.name,
        revision=found.revision or need.revision or (__version__ if need.kind == "package" else ""),
        licence=found.licence or need.licence,
        source=SOURCES[need.kind],
        sha256=found.sha256 or need.sha256 or _hash_of(found.path),
    )


def _hash_of(path: Path) -> str:
    """SHA-256 of a weights file, or of the only one in a folder; "" where a folder holds none or several."""
    files = (
        [path] if path.is_file() else [f for f in path.glob("*") if f.suffix in WEIGHTS] if path.name else []
    )
    if len(files) != 1:
        return ""
    status = files[0].stat()
    return _sha256(files[0], status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_of(path)
