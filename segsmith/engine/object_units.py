"""Results of units in an object store: `UnitStore` for a run whose folder is a URL.

A worker writes the files of an attempt to a folder of its own machine, and `commit` stores them. Images and masks are
copied to their places within the store, so their content does not pass through the driver. What was folded is removed
after the next snapshot of the run, so that a driver on another machine, which continues from an older snapshot, finds
it committed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from segsmith.engine.store import COMMIT, RESULT, UnitStore, checked_attempt
from segsmith.memory.object_store import ObjectStore, in_parallel
from segsmith.memory.remote_run import RemoteRun
from segsmith.memory.run_folder import RunFolder

UNITS = "units"


def unit_store(run: RunFolder) -> UnitStore:
    """Where the results of a run's units are."""
    return UnitStore(run.root) if run.remote is None else RemoteUnitStore(run.remote)


class ObjectUnitStore(UnitStore):
    """The folder ``units/`` of an export that is written to an object store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._begun: dict[tuple[str, str], Path] = {}
        self._attempts: dict[str, str] = {}

    # -- for workers ------------------------------------------------------------------------------

    def is_committed(self, unit: str) -> bool:
        return self._store.get(_key(unit, COMMIT)) is not None

    def begin(self, unit: str, attempt: str) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="segsmith-unit-"))
        self._begun[unit, attempt] = folder
        return folder

    def commit(self, unit: str, attempt: str, result: Mapping[str, Any]) -> bool:
        folder = self._begun.pop((unit, attempt))
        try:
            in_parallel(
                lambda path: self._store.put(_key(unit, attempt, path.name), path.read_bytes()),
                folder.iterdir(),
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._store.put(_key(unit, attempt, RESULT), json.dumps(result).encode())
        won = self._store.create(_key(unit, COMMIT), attempt.encode())
        if not won:
            self.drop(unit, attempt)
        return won

    def drop(self, unit: str, attempt: str) -> None:
        folder = self._begun.pop((unit, attempt), None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        self._store.delete_folder(_key(unit, attempt))

    # -- for the process that holds the run -------------------------------------------------------

    def check(self) -> None:
        self._store.check()

    def units(self) -> list[str]:
        return self._store.names(UNITS)

    def committed(self) -> set[str]:
        units = self.units()
        results = in_parallel(self._has_result, units)
        found = {unit for unit, there in zip(units, results, strict=True) if there}
        in_parallel(lambda unit: self._store.delete_folder(_key(unit)), [u for u in units if u not in found])
        return found

    def result(self, unit: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.read(unit, RESULT))
        return found

    def read(self, unit: str, name: str) -> bytes:
        data = self._store.get(_key(unit, self._attempt_of(unit), name))
        if data is None:
            raise FileNotFoundError(f"{self._store.url}/{_key(unit, name)}")
        return data

    def files(self, unit: str) -> list[str]:
        names = self._store.names(_key(unit, self._attempt_of(unit)))
        return sorted(name for name in names if name != RESULT)

    def take(self, unit: str, name: str, target: Path) -> None:
        raise NotImplementedError("the files of an export are stored in their places")

    def empty(self, unit: str) -> None:
        """Does nothing: the files of a unit are removed with it."""

    def forget(self, units: Iterator[str] | list[str]) -> None:
        in_parallel(lambda unit: self._store.delete_folder(_key(unit)), units)

    def _has_result(self, unit: str) -> bool:
        try:
            return self._store.get(_key(unit, self._attempt_of(unit), RESULT)) is not None
        except (FileNotFoundError, ValueError):
            return False

    def _attempt_of(self, unit: str) -> str:
        """The attempt that was committed; a commit never changes, so it is read once."""
        if unit not in self._attempts:
            data = self._store.get(_key(unit, COMMIT))
            if data is None:
                raise FileNotFoundError(f"{self._store.url}/{_key(unit, COMMIT)}")
            self._attempts[unit] = checked_attempt(unit, data.decode("utf-8"))
        return self._attempts[unit]


class RemoteUnitStore(ObjectUnitStore):
    """The folder ``units/`` of a run in an object store."""

    def __init__(self, remote: RemoteRun) -> None:
        super().__init__(remote.store)
        self._remote = remote

    def check(self) -> None:
        """Whoever holds the run has checked its store (`RemoteRun.held`)."""

    def units(self) -> list[str]:
        """Without those that were folded and wait for a snapshot."""
        return [unit for unit in super().units() if unit not in self._remote.folded]

    def take(self, unit: str, name: str, target: Path) -> None:
        """Copy a file of a committed unit to its final place in the store.

        The working folder's own copy, which may be of an earlier mask, is removed; whoever reads the file fetches it.
        """
        self._store.copy(_key(unit, self._attempt_of(unit), name), self._remote.key(target))
        target.unlink(missing_ok=True)

    def empty(self, unit: str) -> None:
        """Does nothing: the files of a unit are removed with it, after the next snapshot."""

    def forget(self, units: Iterator[str] | list[str]) -> None:
        for unit in units:
            self._attempts.pop(unit, None)
            if unit not in self._remote.folded:
                self._remote.folded.add(unit)
                self._remote.remove_later(partial(self._remove, unit))

    def _remove(self, unit: str) -> None:
        self._store.delete_folder(_key(unit))
        self._remote.folded.discard(unit)


def _key(*parts: str) -> str:
    return "/".join((UNITS, *parts))
