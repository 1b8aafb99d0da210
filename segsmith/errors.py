"""The one error a user is meant to see."""

from __future__ import annotations


class SegsmithError(Exception):
    """Something a user can cause and mend.

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
    """A backend's device ran out of memory; the same work in smaller batches may fit."""


class Cancelled(Exception):
    """The person in front of the run stopped it; the run folder is whole."""


class BadReply(Exception):
    """The model answered, but never in the schema; counted by the caller, never shown as data."""

    reason = "bad_reply"
    """Under which the caller counts it."""
