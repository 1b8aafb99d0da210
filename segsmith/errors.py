"""`SegsmithError`, which the CLI shows to the user, and the errors that segsmith handles itself."""

from __future__ import annotations

from collections.abc import Iterator


class SegsmithError(Exception):
    """An error the user can fix.

    The message says what is wrong; `remedy` says what to type or change instead. The CLI prints both in
    one line, without a traceback, and exits with code 2.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class OutOfMemory(Exception):
    """A backend's device ran out of memory; smaller batches may fit."""


class Cancelled(Exception):
    """The user stopped the run; the run folder is in a consistent state."""


class BadReply(Exception):
    """No reply of the model followed the schema. The caller counts it and never uses it as data."""

    reason = "bad_reply"
    """Reason under which the caller counts it."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, the one that caused it, and so on."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__
