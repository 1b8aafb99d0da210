"""One file over HTTP: resumed by range requests, verified, and renamed only when it is complete."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from segsmith.errors import SegsmithError
from segsmith.files import sha256_of

OnBytes = Callable[[str, int, int], None]
"""Called with (file name, bytes so far, total bytes or 0) while a file is downloaded."""


def no_progress(file: str, done: int, total: int) -> None:
    """The default `OnBytes`."""


PART_SUFFIX = ".part"
TRIES = 8
"""Consecutive connections that may end without one new byte."""
CHUNK = 1 << 20
TIMEOUT_S = 30.0
TRANSIENT = {408, 429, 500, 502, 503, 504}
DAMAGED = "Rerun the command to download it again; if that does not help, the file has changed."
LATER = "Check the network and rerun the command; the download resumes."


@dataclass(frozen=True)
class RemoteFile:
    """A file to download, verified if `sha256` or `git_sha1` (the hub's hash of small files) is set."""

    url: str
    name: str
    """As shown to the user."""
    sha256: str = ""
    git_sha1: str = ""
    size: int = 0
    """Bytes, used for progress if the server does not state the length."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent to the host of `url` only; httpx drops authorization when it is redirected to another host."""


def download(
    remote: RemoteFile, target: Path, on_bytes: OnBytes = no_progress, *, pause_s: float = 1.0
) -> None:
    """Download `remote` to `target`, appending to ``<target>.part`` if an earlier process left one.

    A complete file with the wrong hash is removed. Raises `SegsmithError` if the server does not answer, the
    disk is full, another process is downloading the file, or its content is not as expected.
    """
    part = target.with_name(target.name + PART_SUFFIX)
    with _locked(part, remote.name):
        if target.exists():  # another process completed it in the meantime
            return
        _receive_all(remote, part, on_bytes, pause_s)
        _verify(part, remote)
        os.replace(part, target)


@contextlib.contextmanager
def _locked(part: Path, name: str) -> Iterator[None]:
    """Hold the part file, so that two processes do not append to it at the same time."""
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SegsmithError(
                f"{name} is being downloaded by another process.", "Wait for it, then rerun the command."
            ) from None
        except OSError:
            pass  # a file system without locks; the hash would reveal two writers
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                if part.stat().st_size == 0:
                    part.unlink()


def _receive_all(remote: RemoteFile, part: Path, on_bytes: OnBytes, pause_s: float) -> None:
    idle = 0
    while True:
        before = part.stat().st_size
        try:
            if _receive(remote, part, before, on_bytes):
                return
            problem = "the connection ended early"
        except httpx.HTTPStatusError as error:
            problem = f"the server answers {error.response.status_code}"
            if error.response.status_code not in TRANSIENT:
                raise SegsmithError(f"{remote.url} cannot be downloaded: {problem}.", LATER) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = str(error) or type(error).__name__
        except OSError as error:
            raise SegsmithError(f"Cannot write {part}: {error.strerror}.", "Free some disk space.") from None
        grown = part.stat().st_size > before
        idle = 0 if grown else idle + 1
        if idle >= TRIES:
            raise SegsmithError(f"{remote.url} cannot be downloaded: {problem}.", LATER)
        time.sleep(0 if grown else pause_s)


def _receive(remote: RemoteFile, part: Path, start: int, on_bytes: OnBytes) -> bool:
    """Append what one connection delivers; True if the file is complete."""
    headers = {**remote.headers, "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with httpx.stream("GET", remote.url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as reply:
        if reply.status_code == 416:  # there is nothing after `start`
            return True
        reply.raise_for_status()
        if reply.status_code != 206:  # the server ignores ranges and sends the whole file
            start = 0
        length = int(reply.headers.get("Content-Length") or 0)
        total = start + length if length else remote.size
        done = start
        with part.open("ab" if start else "wb") as file:
            try:
                for chunk in reply.iter_raw(CHUNK):
                    file.write(chunk)
                    done += len(chunk)
                    on_bytes(remote.name, done, total)
            except httpx.HTTPError:
                return False
            finally:
                file.flush()
                os.fsync(file.fileno())
        return done >= total


def _verify(part: Path, remote: RemoteFile) -> None:
    """Remove `part` and raise `SegsmithError` if its hash is not the one expected."""
    if remote.sha256:
        expected, found = remote.sha256, sha256_of(part)
    elif remote.git_sha1:
        expected, found = remote.git_sha1, _git_sha1(part)
    else:
        return
    if found != expected:
        part.unlink()
        raise SegsmithError(
            f"{remote.name} is not the expected file: its hash is {found[:12]}..., not {expected[:12]}...",
            DAMAGED,
        )


def _git_sha1(path: Path) -> str:
    """The hash that git gives a file's content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
