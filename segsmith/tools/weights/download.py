"""One file over plain HTTP: resumed with range requests, checked, and named only when it is whole."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from segsmith.errors import SegsmithError

Told = Callable[[str, int, int], None]
"""Hears (file name, bytes so far, bytes in all or 0) while a file is fetched."""

TRIES = 8
"""Connections in a row that may end early without bringing one byte."""
CHUNK = 1 << 20
TIMEOUT_S = 30.0
TRANSIENT = {408, 429, 500, 502, 503, 504}


def download(url: str, target: Path, sha256: str, size: int, told: Told, pause_s: float = 1.0) -> None:
    """Fetch `url` to `target`, going on behind ``<target>.part`` if an earlier call left one.

    `sha256` and `size` are checked where they are not empty; a finished file that fails is removed. Raises
    `SegsmithError` when the address does not answer, the disk is full, or the file is another one.
    """
    part = target.with_name(target.name + ".part")
    idle = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _receive(url, part, before, target.name, size, told):
                break
            problem = "the connection ended early"
        except httpx.HTTPStatusError as error:
            problem = f"the server answers {error.response.status_code}"
            if error.response.status_code not in TRANSIENT:
                raise SegsmithError(f"{url} cannot be fetched: {problem}.", _LATER) from None
        except httpx.HTTPError as error:
            problem = str(error) or type(error).__name__
        except OSError as error:
            raise SegsmithError(f"Cannot write {part}: {error.strerror}.", "Free some disk space.") from None
        grown = (part.stat().st_size if part.exists() else 0) > before
        idle = 0 if grown else idle + 1
        if idle >= TRIES:
            raise SegsmithError(f"{url} cannot be fetched: {problem}.", _LATER)
        time.sleep(0 if grown else pause_s)
    _check(part, sha256, url)
    os.replace(part, target)


def _receive(url: str, part: Path, start: int, name: str, size: int, told: Told) -> bool:
    """Append what one connection brings; True when the file is whole."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    with httpx.stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as reply:
        if reply.status_code == 416:  # nothing beyond what is here
            return True
        reply.raise_for_status()
        if reply.status_code != 206:  # the server does not know ranges, and sends all of it again
            start = 0
        total = start + int(reply.headers.get("Content-Length") or 0)
        total = total if total > start else size
        done = start
        with part.open("ab" if start else "wb") as file:
            try:
                for chunk in reply.iter_raw(CHUNK):
                    file.write(chunk)
                    done += len(chunk)
                    told(name, done, total)
            except httpx.HTTPError:
                return False
            finally:
                file.flush()
                os.fsync(file.fileno())
        return done >= total


def _check(part: Path, sha256: str, url: str) -> None:
    if not sha256:
        return
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        part.unlink()
        raise SegsmithError(
            f"{url} is not the file expected (sha256 {found[:12]}..., not {sha256[:12]}...).",
            "Type the command again to fetch it anew; if that does not help, the file has changed.",
        )


_LATER = "Check the network and type the command again; it goes on where it stopped."
