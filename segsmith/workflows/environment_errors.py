"""What a machine can do to a run, said in one line: full disks, folders made read-only, memory that ran out."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segsmith.errors import OutOfMemory, SegsmithError

AGAIN = "then start the same command again; it goes on from here."
DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """Turn what the machine raises into a `SegsmithError` with the remedy; everything else passes."""
    try:
        yield
    except SegsmithError:
        raise
    except Exception as error:
        known = explained(error, folder)
        if known is None:
            raise
        raise known from error


def explained(error: BaseException, folder: Path) -> SegsmithError | None:
    """The error in a user's words, looking through what wraps it; None for what is a fault of the program."""
    for cause in _causes(error):
        said = str(cause).lower()
        if isinstance(cause, SegsmithError):
            return cause
        if (isinstance(cause, OSError) and cause.errno in FULL) or _is_full(cause, said):
            return SegsmithError(f"The disk is full: {_where(cause, folder)}.", f"Make space, {AGAIN}")
        if (isinstance(cause, OSError) and cause.errno in DENIED) or "readonly database" in said:
            return SegsmithError(
                f"{_where(cause, folder)} may not be written to any more.", f"Make it writable, {AGAIN}"
            )
        if isinstance(cause, OutOfMemory | MemoryError) or type(cause).__name__ == "OutOfMemoryError":
            return SegsmithError(
                f"Memory ran out ({_first_line(cause) or type(cause).__name__}).",
                f"Close other programs or lower images.batch_size, {AGAIN}",
            )
        if isinstance(cause, sqlite3.DatabaseError):
            return SegsmithError(
                f"The ledger in {folder} failed ({_first_line(cause)}).", f"Check the disk, {AGAIN}"
            )
        if isinstance(cause, OSError):
            reason = cause.strerror or _first_line(cause)
            return SegsmithError(f"{_where(cause, folder)}: {reason}.", f"Mend that, {AGAIN}")
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__


def _is_full(cause: BaseException, said: str) -> bool:
    """Chroma and safetensors have no errno; SQLite neither."""
    return any(words in said for words in ("disk is full", "no space left on device", "(code: 13)"))


def _where(cause: BaseException, folder: Path) -> str:
    name = getattr(cause, "filename", None)
    return str(name if name and ".part-" not in str(name) else folder)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else ""
