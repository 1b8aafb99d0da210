"""A dataset folder that appears complete or not at all: staged beside its place, listed in a manifest, renamed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from segsmith.errors import SegsmithError
from segsmith.files import copy_new, sha256_of, write_new
from segsmith.locks import NO_LOCKS, exclusive_file, lock_mode

MANIFEST = "manifest.json"


class Sink:
    """Takes the files of an export and keeps their hashes for the manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, str] = {}
        self._made: set[str] = set()

    @property
    def place(self) -> str:
        """Where the files are stored: a folder, or a URL."""
        return str(self.root.absolute())

    @property
    def files(self) -> dict[str, str]:
        """Path -> SHA-256 of what was stored so far."""
        return self._files

    def put(self, name: str, data: bytes, sha256: str = "") -> None:
        """Store a file under a path relative to the dataset; `sha256` of the data where it is known.

        Several threads may do so at once.
        """
        self._fill(name, lambda path: write_new(path, data))
        self._note(name, data, sha256)

    def copy(self, name: str, source: str, sha256: str) -> None:
        """As `put`, with the content of a file, whose hash is known."""
        self._fill(name, lambda path: copy_new(source, path))
        self._files[name] = sha256

    def _fill(self, name: str, write: Callable[[str], None]) -> None:
        """Let `write` create the file that belongs at `name`."""
        write(self._place(name))

    def _note(self, name: str, data: bytes, sha256: str) -> None:
        self._files[name] = sha256 or hashlib.sha256(data).hexdigest()

    def link(self, name: str, target: str) -> None:
        """A symbolic link to a path relative to the link's folder, where the file system has such links."""
        with suppress(OSError):
            self.path(name).symlink_to(target)

    def path(self, name: str) -> Path:
        """Where a file belongs; its folder is created. Files not written through `put` need an `adopt`."""
        return Path(self._place(name))

    def _place(self, name: str) -> str:
        """As `path`: a string, because objects of pathlib take as long as writing a small file."""
        path = f"{self.root}/{name}"
        folder = os.path.dirname(path)
        if folder not in self._made:
            os.makedirs(folder, exist_ok=True)
            self._made.add(folder)
        return path

    def adopt(self, name: str, sha256: str = "") -> None:
        """List a file that was not written by `put`; `sha256` where it is known."""
        self._files[name] = sha256 or sha256_of(self.root / name)

    def list(self, files: Mapping[str, str]) -> None:
        """List files that other processes stored at `place`, with their SHA-256."""
        self._files.update(files)

    def close(self, digest: str) -> None:
        """Write the manifest, which is the last file of an export."""
        (self.root / MANIFEST).write_bytes(self.manifest(digest))

    def manifest(self, digest: str) -> bytes:
        """The manifest of what was stored so far."""
        return json.dumps({"digest": digest, "files": dict(sorted(self._files.items()))}, indent=1).encode()


class SharedSink(Sink):
    """Takes the files of some images of an export; other processes write into the same folder.

    A file appears whole, so that several processes may write the same one, and one of them may be killed.
    """

    def __init__(self, root: Path, scratch: Path) -> None:
        """`scratch` is a folder for this alone, on the same file system. Once it is gone, nothing is stored."""
        super().__init__(root)
        self._scratch = scratch

    def _fill(self, name: str, write: Callable[[str], None]) -> None:
        temporary = f"{self._scratch}/{hashlib.sha256(name.encode()).hexdigest()}"
        write(temporary)
        os.replace(temporary, self._place(name))


def replace_folder(out: Path, digest: str, write: Callable[[Sink], None]) -> bool:
    """Let `write` fill a folder beside `out` and move it into place; False where an identical one exists.

    An older export is moved away and removed only after the new one is in place; what a killed export left
    is cleaned up. Raises `SegsmithError` when another process exports to `out`, or when `out` holds files
    that no export wrote.
    """
    previous, staging = out.with_name(f".{out.name}.old"), out.with_name(f".{out.name}.part")
    try:
        with _locked(out, staging):
            _recover(out, previous)
            if is_whole(out, digest):
                return False
            _refuse_foreign(out)
            sink = Sink(staging)
            write(sink)
            sink.close(digest)
            os.sync()  # one for all files is cheaper than one for each
            _swap(staging, out, previous)
    except OSError as error:
        raise SegsmithError(
            f"The export to {out} failed: {error.strerror or error}.",
            "Make room, or name another folder with --out.",
        ) from error
    return True


@contextmanager
def _locked(out: Path, staging: Path) -> Iterator[None]:
    """An empty staging folder, held against other processes until it is moved to `out` or removed.

    The folder itself is the lock, so that no lock file stays behind. Where the file system has no locks, and with
    ``locking("none")``, two exports to one folder at the same time are not noticed; ``"file"`` creates a file beside
    the folder.
    """
    with ExitStack() as stack:
        if lock_mode.get() == "file":
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_file(out.with_name(f".{out.name}.lock"), f"The export to {out}"))
        stack.enter_context(_staged(out, staging))
        yield


@contextmanager
def _staged(out: Path, staging: Path) -> Iterator[None]:
    handle = _hold(out, staging)
    held = os.fstat(handle)
    try:
        for left in staging.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield
    finally:
        if staging.exists() and os.path.samestat(held, staging.stat()):
            shutil.rmtree(staging, ignore_errors=True)
        os.close(handle)


def _hold(out: Path, staging: Path) -> int:
    """The handle of the locked staging folder."""
    while True:
        staging.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another process has just finished with it
        try:
            if lock_mode.get() == "auto":
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise SegsmithError(
                f"Another process is exporting to {out}.", "Wait for it, or name another folder with --out."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise
        if staging.exists() and os.path.samestat(os.fstat(handle), staging.stat()):
            return handle
        os.close(handle)  # its holder moved or removed it between the two calls


def is_whole(folder: Path, digest: str) -> bool:
    """Does the folder hold the export with this digest, every file as it was written?"""
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
            f"{out} holds something that segsmith did not export, so it is not replaced.",
            "Name a new or empty folder.",
        )


def _recover(out: Path, previous: Path) -> None:
    """Finish what an export that was killed between or after its two renames left behind."""
    if previous.exists() and out.exists():
        shutil.rmtree(previous)
    elif previous.exists():
        os.replace(previous, out)


def _swap(staging: Path, out: Path, previous: Path) -> None:
    """Put `staging` in the place of `out`; whatever fails or stops half-way, one complete export remains."""
    had_one = out.exists()
    if had_one:
        os.replace(out, previous)
    try:
        os.replace(staging, out)
    except OSError:
        if had_one:
            os.replace(previous, out)
        raise
    shutil.rmtree(previous, ignore_errors=True)
