"""The Hugging Face hub: which files of a repository are needed, are they in the hub's cache, and fetching them.

A small record of each fetched repository (its commit, files, sizes and hashes) makes it possible to tell later,
without a request, that all files are present.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from segsmith.config import cache_dir
from segsmith.errors import SegsmithError
from segsmith.files import sha256_of, write_atomic
from segsmith.terminal_text import first_line
from segsmith.tools.weights.catalogue import LocalModel, ModelRequirement
from segsmith.tools.weights.download import DAMAGED, LATER, OnBytes, RemoteFile, download
from segsmith.tools.weights.pipeline_files import (
    AUTO,
    INDEX,
    check_known_to_diffusers,
    check_runs_without_its_code,
    choose_variant,
    needed_files,
    read_index,
)

ABANDONED_S = 600
"""A partial file of the hub's own client that has not grown for so long belongs to no running process."""
BLOB_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{15,127}")
"""The ETag names a file in the cache and comes from the server, so it must not be a path."""
INFO_TIMEOUT_S = 30
RECORDED_VARIANTS = ("fp16", "")
"""The variants of a pipeline that `AUTO` looks for in the cache before it asks the hub."""
SETTINGS: Mapping[str, str] = {
    "llm": "llm",
    "images": "images.model",
    "judge": "judge.clip",
    "detector": "witnesses.detector",
    "labeler": "labeler.vit",
}
"""Role -> the setting that names its model."""


def go_offline() -> None:
    """From now on no library in this process sends requests to the hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True  # read at import, which may have happened already


def hub_file(repository: str, file: str) -> Path | None:
    """A file of a repository in the hub's cache, at the newest commit that was downloaded."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repository, file)
    return Path(cached) if isinstance(cached, str) else None


def find(requirement: ModelRequirement) -> LocalModel | None:
    """The files of a hub requirement in the cache, or None if one is missing."""
    from huggingface_hub import try_to_load_from_cache

    record = next(filter(None, map(_read_record, _record_files(requirement))), None)
    if record is not None:
        cached = [
            try_to_load_from_cache(requirement.source, f, revision=record["commit"]) for f in record["files"]
        ]
        if not all(isinstance(path, str) for path in cached):
            return None
        path = Path(str(cached[0]))
        if requirement.pick == "all":
            path = next(p for p in path.parents if p.name == record["commit"])
        return LocalModel(
            path,
            record["commit"],
            record["licence"],
            record["sha256"],
            record["size"],
            tuple(record["files"]),
        )
    # Without a record, another program may have downloaded it. A single file is there or not; whether a whole
    # repository is complete is unknown, so `fetch` looks through it and downloads what is missing.
    if requirement.pick == "first":
        for file in requirement.patterns:
            one = try_to_load_from_cache(requirement.source, file, revision=requirement.revision or None)
            if isinstance(one, str):
                return LocalModel(Path(one), _commit_of(Path(one)), size=size_of(Path(one)))
    return None


def fetch(requirement: ModelRequirement, on_bytes: OnBytes) -> None:
    """Download the files of a hub requirement into the hub's cache, and write its record.

    Raises `SegsmithError` as `segsmith.tools.weights.store.fetch` does.
    """
    from huggingface_hub import HfApi, errors

    revision = requirement.revision or None
    wanted = requirement
    try:
        info = HfApi().model_info(
            requirement.source, revision=revision, files_metadata=True, timeout=INFO_TIMEOUT_S
        )
        available = {s.rfilename: s for s in info.siblings or ()}
        if requirement.is_pipeline:
            requirement, names = _pipeline_files(requirement, revision, available, on_bytes)
            files = [available[name] for name in names]
        else:
            files = _chosen(requirement, available)
        hashes: dict[str, str] = {}
        for file in files:
            path = _fetch_file(requirement.source, revision, file, on_bytes)
            if file.lfs is not None:
                hashes[file.rfilename] = _checked(path, file.lfs["sha256"])
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        raise _problem(requirement, error) from None
    card = info.card_data
    record = {
        "commit": info.sha,
        "files": [f.rfilename for f in files],
        "licence": str((card.get("license") if card is not None else None) or ""),
        "sha256": _one_hash(hashes),
        "size": sum(f.size or 0 for f in files),
    }
    if wanted.variant == AUTO and requirement.variant not in RECORDED_VARIANTS:
        requirement = wanted
    target = _record_file(requirement)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, json.dumps(record, indent=1).encode())


def _fetch_file(repository: str, revision: str | None, file: Any, on_bytes: OnBytes) -> Path:
    """Have one file in the hub's cache.

    The hub's client starts over when its process was killed, so the content is downloaded here, under the name
    that the cache would give it; the client then finds it complete and links it. It is asked for the branch
    and not for the commit: then the cache records what the branch is, and libraries that ask for no revision
    find the file offline. The hash tells if the branch moved in the meantime.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    cached = hub_file(repository, file.rfilename) if revision is None else None
    if cached is None:
        url = hf_hub_url(repository, file.rfilename, revision=revision)
        headers = build_hf_headers()
        etag = get_hf_file_metadata(url, headers=headers).etag or ""
        if BLOB_NAME.fullmatch(etag):
            folder = repo_folder_name(repo_id=repository, repo_type="model")
            blob = Path(constants.HF_HUB_CACHE) / folder / "blobs" / etag
            blob.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(blob)
            remote = RemoteFile(
                url,
                file.rfilename,
                sha256=file.lfs["sha256"] if file.lfs is not None else "",
                git_sha1=etag if file.lfs is None and etag == file.blob_id else "",
                size=file.size or 0,
                headers=headers,
            )
            if not blob.exists():
                download(remote, blob, on_bytes)
    return Path(hf_hub_download(repository, file.rfilename, revision=revision))


def _remove_abandoned(blob: Path) -> None:
    """Remove partial downloads of this file that a killed process of the hub's client left."""
    for partial in blob.parent.glob(f"{blob.name}*.incomplete"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > ABANDONED_S:
                partial.unlink()


def _pipeline_files(
    requirement: ModelRequirement, revision: str | None, available: Mapping[str, Any], on_bytes: OnBytes
) -> tuple[ModelRequirement, list[str]]:
    """The requirement with the variant that the repository has, and the files to download.

    Only the small index is downloaded for this, so that a model that cannot be used costs no large download.
    """
    model = requirement.source
    if INDEX not in available:
        raise SegsmithError(
            f"{model} on the hub is not a diffusers pipeline: it has no {INDEX}.",
            "Name a repository in diffusers' format.",
        )
    index = read_index(_fetch_file(model, revision, available[INDEX], on_bytes))
    check_runs_without_its_code(index, available, model)
    check_known_to_diffusers(index, model)
    variant = choose_variant(available, index, requirement.variant, model)
    matching = [
        n for n in available if any(fnmatch.fnmatch(n, p) for p in (*requirement.patterns, "*.jinja"))
    ]
    return replace(requirement, variant=variant), needed_files(matching, index, variant)


def _record_files(requirement: ModelRequirement) -> list[Path]:
    """Where the record may be: a pipeline may have been fetched for a config that names its variant."""
    if requirement.variant != AUTO:
        return [_record_file(requirement)]
    names = (RECORDED_VARIANTS, (AUTO,))
    return [_record_file(replace(requirement, variant=name)) for group in names for name in group]


def _record_file(requirement: ModelRequirement) -> Path:
    name = f"{requirement.source}@{requirement.revision or 'main'}".replace("/", "--")
    chosen = repr((requirement.patterns, requirement.pick, requirement.variant))
    digest = hashlib.sha256(chosen.encode()).hexdigest()[:8]
    return cache_dir() / "models" / f"hub-{name}-{digest}.json"


def _read_record(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _commit_of(path: Path) -> str:
    """The hub keeps files at .../snapshots/<commit>/<file>."""
    return next((p.name for p in path.parents if p.parent.name == "snapshots"), "")


def _chosen(requirement: ModelRequirement, available: Mapping[str, Any]) -> list[Any]:
    """The files of a repository to download.

    Weights are safetensors, except for CLIPs that come as a pickle only.
    """
    if requirement.pick == "first":
        first = next((f for f in requirement.patterns if f in available), None)
        names = [n for n in (first, requirement.config) if n and n in available]
        lacks = "none of the files " + ", ".join(requirement.patterns)
    else:
        names = [n for n in available if any(fnmatch.fnmatch(n, p) for p in requirement.patterns)]
        lacks = "no safetensors weights"
        if not any(n.endswith(".safetensors") for n in names):
            names = []
    if not names:
        raise SegsmithError(
            f"{requirement.source} on the hub has {lacks}.",
            f"Name another {requirement.role} model.",
        )
    return [available[n] for n in sorted(names, key=lambda n: n != names[0])]


def _problem(requirement: ModelRequirement, error: Exception) -> SegsmithError:
    """A failed request to the hub in one line with its remedy."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, SegsmithError):
        return error
    repository = requirement.source
    setting = SETTINGS.get(requirement.role, requirement.role)
    if isinstance(error, GatedRepoError):
        return SegsmithError(
            f"{repository} requires you to accept its terms first.",
            f"Accept them at {constants.ENDPOINT}/{repository}, then type: hf auth login",
        )
    if isinstance(error, RevisionNotFoundError):
        return SegsmithError(
            f"{repository} has no revision {requirement.revision!r}.", "Name a branch, tag or commit of it."
        )
    if isinstance(error, RepositoryNotFoundError) or type(error).__name__ == "HFValidationError":
        return SegsmithError(
            f"The hub has no model {repository!r} (or it is private).",
            f"Check --set {setting}=..., or type: hf auth login",
        )
    return SegsmithError(
        f"{repository} cannot be downloaded from {constants.ENDPOINT}: {first_line(error)}.", LATER
    )


def _checked(path: Path, sha256: str) -> str:
    """The file's hash, which must be `sha256`; a wrong file is removed, so that it is downloaded again."""
    blob = path.resolve()
    found = sha256_of(blob)
    if found != sha256:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise SegsmithError(
            f"{path.name} is not the expected file: its hash is {found[:12]}..., not {sha256[:12]}...",
            DAMAGED,
        )
    return found


def _one_hash(hashes: Mapping[str, str]) -> str:
    """The hash of a single file; of several, the hash of the sorted list of hashes and names."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    text = "".join(f"{value}  {name}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


def size_of(path: Path) -> int:
    """Bytes of a file, or of all readable files in a folder."""
    if path.is_file():
        return path.stat().st_size
    # os.walk skips folders that may not be read.
    files = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    return sum(f.stat().st_size for f in files if f.is_file())
