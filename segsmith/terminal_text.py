"""Text of a model, a file or a user, made harmless for a terminal."""

from __future__ import annotations

import unicodedata

from rich.markup import escape

UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories that nobody can see: control, format, surrogate, private, unassigned, separators of lines."""


def shown(text: str) -> str:
    """Text of a model, a file or a person as it may be printed: no markup, and nothing that steers the terminal.

    Control characters (ESC above all) and those that turn the reading direction appear as ``\\x1b``; line breaks
    and tabs as spaces.
    """
    safe = "".join(
        " "
        if c in "\n\r\t"
        else c
        if unicodedata.category(c) not in UNSEEN
        else c.encode("unicode_escape").decode()
        for c in text
    )
    return escape(safe)
