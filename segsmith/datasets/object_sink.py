"""A dataset in an object store: written object by object, its manifest last.

Readers of ``manifest.json`` find an empty list of files while an export is being written. Unlike a folder
(`staging`), objects cannot be moved into place together, so an older export is no longer whole once a new one begins.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from segsmith.datasets.staging import MANIFEST, Sink
from segsmith.errors import SegsmithError
from segsmith.memory.object_store import ObjectStore


class ObjectSink(Sink):
    """Stores each file as it is finished; `scratch` holds the one file that is being written."""

    def __init__(self, store: ObjectStore, scratch: Path) -> None:
        super().__init__(scratch)
        self._store = store

    @property
    def place(self) -> str:
        return self._store.url

    def put(self, name: str, data: bytes, sha256: str = "") -> None:
        self._store.put(name, data)
        self._note(name, data, sha256)

    def copy(self, name: str, source: str, sha256: str) -> None:
        self._store.put_file(name, Path(source))
        self._files[name] = sha256

    def link(self, name: str, target: str) -> None:
        """Does nothing: there are no links in a store."""

    def adopt(self, name: str, sha256: str = "") -> None:
        super().adopt(name, sha256)
        path = self.root / name
        self._store.put_file(name, path)
        path.unlink()

    def close(self, digest: str) -> None:
        """Remove what an earlier export left, and write the manifest."""
        self._store.delete(set(self._store.keys()) - self._files.keys() - {MANIFEST})
        self._store.put(MANIFEST, self.manifest(digest))


def replace_objects(url: str, digest: str, write: Callable[[Sink], None]) -> bool:
    """As `replace_folder`, at a URL; rerun an export that was interrupted.

    Two exports to one URL at the same time are not noticed.
    """
    store = ObjectStore(url)
    text = store.get(MANIFEST)
    there = store.keys()
    if text is None and there:
        raise SegsmithError(
            f"{url} holds something that segsmith did not export, so it is not replaced.",
            "Name another URL.",
        )
    if text is not None and _names(text, digest) <= {*there, MANIFEST}:
        return False
    store.put(MANIFEST, json.dumps({"digest": "", "files": {}}).encode())
    with tempfile.TemporaryDirectory(prefix="segsmith-export-") as scratch:
        sink = ObjectSink(store, Path(scratch))
        write(sink)
        sink.close(digest)
    return True


def _names(manifest: bytes, digest: str) -> set[str]:
    """Names of the files of the export with this digest; of another one, a name that no object has."""
    try:
        found = json.loads(manifest)
        return set(found["files"]) if found["digest"] == digest else {""}
    except (ValueError, KeyError, TypeError):
        return {""}
