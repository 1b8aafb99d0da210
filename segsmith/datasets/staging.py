"""A dataset folder that is there whole or not at all: written aside, listed in a manifest, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from segsmith.errors import SegsmithError
from segsmith.files import sha256_of

MANIFEST = "manifest.json"


class Sink:
    """Takes the files of an export and remembers what they were."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, str] = {}
        self._made: set[Path] = set()

    def put(self, name: str, data: bytes) -> None:
        """Store a file under a path relative to the dataset."""
        path = self.path(name)
        path.write_bytes(data)
        self._files[name] = hashlib.sha256(data).hexdigest()

    def path(self, name: str) -> Path:
        """Where a file belongs, its folder made; one not written through `put` is to be told by `adopt`."""
        path = self.root / name
        if path.parent not in self._made:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(path.parent)
        return path

    def adopt(self, name: str) -> None:
        """List a file that a library wrote."""
        self._files[name] = sha256_of(self.root / name)

    def close(self, digest: str) -> None:
        """Write the manifest, the last file of all."""
        text = json.dumps({"digest": digest, "files": dict(sorted(self._files.items()))}, indent=1)
        (self.root / MANIFEST).write_text(text)


def replace_folder(out: Path, digest: str, write: Callable[[Sink], None]) -> bool:
    """Let `write` fill a folder beside `out` and put it in its place; False where an identical one stands.

    An older export steps aside and goes only when the new one stands; what a killed export left is
    cleaned up. Raises `SegsmithError` when `out` holds files that no export put there.
    """
    aside, staging = out.with_name(f".{out.name}.old"), out.with_name(f".{out.name}.part")
    _recover(out, aside)
    if is_whole(out, digest):
        return False
    _refuse_foreign(out)
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        sink = Sink(staging)
        write(sink)
        sink.close(digest)
        os.sync()  # one for all files is cheaper than one for each
        _swap(staging, out, aside)
    except OSError as error:
        raise SegsmithError(
            f"The export to {out} failed: {error.strerror or error}.", "Make room, or name another --out."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return True


def is_whole(folder: Path, digest: str) -> bool:
    """Does the folder hold the export of this digest, every file as it was written?"""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest["digest"] == digest and all(
            sha256_of(folder / name) == expected for name, expected in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / MANIFEST).exists())):
        raise SegsmithError(
            f"{out} holds something that segsmith did not export; it is left alone.",
            "Name a new or empty folder.",
        )


def _recover(out: Path, aside: Path) -> None:
    """Finish what an export that was killed between or after its two renames left behind."""
    if aside.exists() and out.exists():
        shutil.rmtree(aside)
    elif aside.exists():
        os.replace(aside, out)


def _swap(staging: Path, out: Path, aside: Path) -> None:
    """Put `staging` in the place of `out`; whatever fails or stops half-way, one whole export stays."""
    had_one = out.exists()
    if had_one:
        os.replace(out, aside)
    try:
        os.replace(staging, out)
    except OSError:
        if had_one:
            os.replace(aside, out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
