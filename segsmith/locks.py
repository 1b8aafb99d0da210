"""Locks on folders, so that two processes do not write to one: the file system's lock, an exclusive file, or none."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal, get_args

from segsmith.errors import SegsmithError

LockMode = Literal["auto", "file", "none"]
"""How a folder is locked; see `locking`."""
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of `flock` on file systems without locks, such as some network file systems."""
LOCK, HOLDER = ".lock", ".lock-holder"
"""Files in a folder: what `flock` locks, and the exclusive file."""

lock_mode: ContextVar[LockMode] = ContextVar("lock_mode", default="auto")


@contextmanager
def locking(mode: LockMode) -> Iterator[None]:
    """How the calls inside the ``with`` block lock the folders that they write to.

    - ``"auto"`` (default): the file system's lock, which ends with the process; where there is none, as ``"file"``.
    - ``"file"``: a file that only one process can create and that names its host and process. Use it for a folder
      that several machines share, if their file system's locks hold on one machine only; all processes must use it
      then. After a crash on another machine, the file has to be deleted by hand.
    - ``"none"``: no lock. You make sure that no other process uses the folder. What a killed process left
      half-written stays, because another process might be writing it.

    Raises `SegsmithError` for any other mode.
    """
    previous = lock_mode.get()
    set_lock_mode(mode)
    try:
        yield
    finally:
        lock_mode.set(previous)


def set_lock_mode(mode: str) -> None:
    """As `locking`, from now on. Raises `SegsmithError` for an unknown mode."""
    modes: dict[str, LockMode] = {known: known for known in get_args(LockMode)}
    if mode not in modes:
        raise SegsmithError(f"There is no lock {mode!r}.", f"Use {', '.join(modes)}.")
    lock_mode.set(modes[mode])


@contextmanager
def folder_lock(root: Path) -> Iterator[bool]:
    """Lock an existing folder for this process, as `locking` says; False if it is not locked.

    Raises `SegsmithError` that names the process which has locked it.
    """
    mode = lock_mode.get()
    if mode == "none":
        yield False
    elif mode == "file":
        with exclusive_file(root / HOLDER, f"Run folder {root}"):
            yield True
    else:
        with (root / LOCK).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "by an unknown process"
                raise SegsmithError(
                    f"Run folder {root} is in use {holder}.",
                    "Wait for it, stop it, or name another folder with --out.",
                ) from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                with exclusive_file(root / HOLDER, f"Run folder {root}"):
                    yield True
                return
            _reject_holder(root / HOLDER, f"Run folder {root}")  # of a process with --lock file
            file.truncate(0)
            file.write(this_process())
            file.flush()
            yield True


@contextmanager
def exclusive_file(path: Path, what: str) -> Iterator[None]:
    """A lock by a file that only one process can create; `what` is locked, in words.

    The file of a process that no longer runs on this machine is taken over; nobody can tell for another machine.
    """
    try:
        _create(path)
    except FileExistsError:
        _take_over(path, what)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _create(path: Path) -> None:
    with path.open("x") as file:
        file.write(this_process())


def _take_over(path: Path, what: str) -> None:
    """Replace the exclusive file of an ended process; a second file sees to it that only one process does so."""
    _reject_holder(path, what)
    taking = path.with_name(f"{path.name}-new")
    try:
        _create(taking)
    except FileExistsError:
        raise SegsmithError(
            f"{what} is being taken over by another process.",
            f"Wait for it or stop it; if there is none, delete {taking}.",
        ) from None
    try:
        if _reject_holder(path, what):
            taking.replace(path)
        else:
            _create(path)
    except FileExistsError:
        raise SegsmithError(f"{what} is in use by another process.", "Wait for it or stop it.") from None
    finally:
        taking.unlink(missing_ok=True)


def _reject_holder(path: Path, what: str) -> bool:
    """Whether there is an exclusive file; raises `SegsmithError` if its process, for all we know, still runs."""
    try:
        holder = path.read_text("utf-8")
    except FileNotFoundError:
        return False
    if not _has_ended(holder):
        raise SegsmithError(
            f"{what} is in use {holder or 'by an unknown process'}.",
            f"Wait for it or stop it; if it has ended, delete {path}.",
        )
    return True


def this_process() -> str:
    """This process, as the holder of a lock, in words."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"by process {os.getpid()} on {socket.gethostname()} since {since}"


def _has_ended(holder: str) -> bool:
    """Whether the process that `this_process` describes ran on this machine and has ended."""
    found = re.match(r"by process (\d+) on (\S+) since", holder)
    if found is None or found[2] != socket.gethostname():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False
