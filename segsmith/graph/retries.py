"""Which errors a node is tried again after: those of a machine that is busy for a moment.

Servers of models are asked again by their own adapters, which know what a reply means. What is left are files and
databases, above all on network file systems. A node may run twice, so it is simply called again.
"""

from __future__ import annotations

import errno
import sqlite3

from langgraph.types import RetryPolicy

PASSING = (errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT)
"""Errors of file systems that pass: a stale handle, a device that is busy, a server of files that was slow."""


def is_passing(error: BaseException) -> bool:
    """Whether the same call may succeed in a moment: an error of `PASSING`, or a locked database."""
    if isinstance(error, sqlite3.OperationalError):
        return "locked" in str(error) or "busy" in str(error)
    return isinstance(error, OSError) and error.errno in PASSING


RETRY = RetryPolicy(initial_interval=1.0, max_attempts=3, retry_on=is_passing)
