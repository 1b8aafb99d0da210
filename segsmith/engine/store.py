"""Results of units in the run folder, each committed once, however often and wherever a unit was attempted.

An attempt writes its files into a folder of its own, ``units/<unit>/<attempt>/``. When they are complete it creates
``units/<unit>/commit``, which names the attempt and can be created only once. Only the process that holds the run's
lock moves files to their final places and writes to the ledger, so an attempt that a lost worker continues does no
harm. This needs a file system that all machines share, with hard links and atomic renames; for a run in an object
store, see `object_units`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from segsmith.errors import SegsmithError
from segsmith.files import create_only, move_into_place, write_atomic

COMMIT, RESULT = "commit", "result.json"
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of `link` on file systems without hard links."""


class UnitStore:
    """The folder ``units/`` of a run, or of an export that is being written."""

    def __init__(self, root: Path) -> None:
        """`root` is the folder that holds it."""
        self._folder = root / "units"

    # -- for workers ------------------------------------------------------------------------------

    def is_committed(self, unit: str) -> bool:
        return (self._folder / unit / COMMIT).exists()

    def begin(self, unit: str, attempt: str) -> Path:
        """A new folder for the files of an attempt."""
        folder = self._folder / unit / attempt
        folder.mkdir(parents=True)
        return folder

    def commit(self, unit: str, attempt: str, result: Mapping[str, Any]) -> bool:
        """Commit an attempt whose files are written and synced, with what is known of them.

        `result` must be JSON. Returns False, and removes the attempt, where another one was committed before.
        """
        folder = self._folder / unit / attempt
        write_atomic(folder / RESULT, json.dumps(result).encode())
        won = create_only(self._folder / unit / COMMIT, attempt.encode())
        if not won:
            self.drop(unit, attempt)
        return won

    def drop(self, unit: str, attempt: str) -> None:
        """Remove the files of an attempt that was not committed."""
        shutil.rmtree(self._folder / unit / attempt, ignore_errors=True)

    # -- for the process that holds the run -------------------------------------------------------

    def check(self) -> None:
        """Raise `SegsmithError` where a result could be committed twice, or not at all."""
        self._folder.mkdir(exist_ok=True)
        probe = self._folder / f"probe-{uuid.uuid4().hex[:8]}"
        try:
            works = create_only(probe, b"") and not create_only(probe, b"")
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            works = False
        finally:
            probe.unlink(missing_ok=True)
        if not works:
            raise SegsmithError(
                f"The file system of {self._folder.parent} cannot create a file only once (it has no hard links), "
                "so several workers could commit the same work.",
                "Name a folder on a local disk, NFS or Lustre with --out, or type --engine local.",
            )

    def units(self) -> list[str]:
        """Units with files in the store, sorted."""
        with suppress(FileNotFoundError):
            return sorted(path.name for path in self._folder.iterdir() if path.is_dir())
        return []

    def committed(self) -> set[str]:
        """Units with a committed result that was not folded yet. Of all others nothing is kept."""
        units = self.units()
        found = {unit for unit in units if self._has_result(unit)}
        self.forget([unit for unit in units if unit not in found])
        return found

    def result(self, unit: str) -> dict[str, Any]:
        """What was committed with a unit."""
        found: dict[str, Any] = json.loads((self._attempt(unit) / RESULT).read_text("utf-8"))
        return found

    def files(self, unit: str) -> list[str]:
        """Names of the files of a committed unit that were not taken yet, sorted."""
        return sorted(path.name for path in self._attempt(unit).iterdir() if path.name != RESULT)

    def read(self, unit: str, name: str) -> bytes:
        """The content of a file of a committed unit."""
        return (self._attempt(unit) / name).read_bytes()

    def take(self, unit: str, name: str, target: Path) -> None:
        """Move a file of a committed unit to its final place; nothing happens where an earlier session did that."""
        with suppress(FileNotFoundError):
            move_into_place(self._attempt(unit) / name, target)

    def empty(self, unit: str) -> None:
        """Remove the files of a unit. Its commit stays, so that a late attempt sees that there is nothing to do."""
        with suppress(FileNotFoundError), os.scandir(self._folder / unit) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)

    def forget(self, units: Iterator[str] | list[str]) -> None:
        """Remove all that is stored of these units, and the folder once nothing is left in it."""
        for unit in units:
            shutil.rmtree(self._folder / unit, ignore_errors=True)
        with suppress(OSError):
            self._folder.rmdir()

    def _has_result(self, unit: str) -> bool:
        try:
            return (self._attempt(unit) / RESULT).exists()
        except (OSError, ValueError):
            return False

    def _attempt(self, unit: str) -> Path:
        name = (self._folder / unit / COMMIT).read_text("utf-8")
        return self._folder / unit / checked_attempt(unit, name)


class StagedUnitStore(UnitStore):
    """Of an export: it is gone once the files of the images are complete, and then no late attempt begins."""

    def begin(self, unit: str, attempt: str) -> Path:
        folder = self._folder / unit / attempt
        for part in (self._folder, folder.parent):  # not the root, as `mkdir` with parents would
            part.mkdir(exist_ok=True)
        folder.mkdir()
        return folder


def checked_attempt(unit: str, name: str) -> str:
    """The attempt that a commit names. Raises `ValueError` for what is not the name of one."""
    if "/" in name or name in ("", ".", ".."):
        raise ValueError(f"{unit}: the commit names {name!r}")
    return name
