"""Errors of the machine (a full disk, a read-only folder, no memory left) as one line that names the fix."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segsmith.device_memory import is_out_of_memory
from segsmith.errors import OutOfMemory, SegsmithError, causes
from segsmith.terminal_text import first_line

RESUME = "then run the same command again; it resumes from here."
DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def translate(folder: Path) -> Iterator[None]:
    """Raise a `SegsmithError` in place of an error that the machine caused; every other exception passes through."""
    try:
        yield
    except SegsmithError:
        raise
    except Exception as error:
        known = explain(error, folder)
        if known is None:
            raise
        raise known from error


def explain(error: BaseException, folder: Path) -> SegsmithError | None:
    """The error, or the one behind it, in words for users; None for a bug in the program."""
    for cause in causes(error):
        text = str(cause).lower()
        if isinstance(cause, SegsmithError):
            return cause
        if (isinstance(cause, OSError) and cause.errno in FULL) or _is_full(text):
            return SegsmithError(f"The disk is full: {_place(cause, folder)}.", f"Free some space, {RESUME}")
        if (isinstance(cause, OSError) and cause.errno in DENIED) or "readonly database" in text:
            return SegsmithError(
                f"{_place(cause, folder)} is no longer writable.", f"Make it writable, {RESUME}"
            )
        if isinstance(cause, OutOfMemory) or is_out_of_memory(cause):
            return SegsmithError(
                f"Out of memory ({first_line(cause)}).",
                f"Close other programs or set smaller models (`segsmith plan` shows what needs most), {RESUME}",
            )
        if isinstance(cause, sqlite3.DatabaseError):
            return SegsmithError(
                f"A database in {folder} failed ({first_line(cause)}).", f"Check the disk, {RESUME}"
            )
        if isinstance(cause, OSError):
            reason = cause.strerror or first_line(cause)
            return SegsmithError(f"{_place(cause, folder)}: {reason}.", f"Fix that, {RESUME}")
    return None


def _is_full(text: str) -> bool:
    """Errors of Chroma, safetensors and SQLite carry no errno."""
    return any(words in text for words in ("disk is full", "no space left on device", "(code: 13)"))


def _place(cause: BaseException, folder: Path) -> str:
    name = getattr(cause, "filename", None)
    return str(name if name and ".part-" not in str(name) else folder)
