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
