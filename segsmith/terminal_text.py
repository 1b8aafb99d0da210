"""Text from models, files and users, made safe to print, to store and to quote."""

from __future__ import annotations

import re
import unicodedata

from rich.markup import escape

UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories without a glyph: control, format, surrogate, private use, unassigned, line separators."""
MAX_QUOTED = 300
"""Characters of a quoted text."""


def shown(text: str) -> str:
    """`text` for a rich console: no markup, and nothing that controls the terminal.

    Control characters (ESC above all) and those that change the reading direction appear as ``\\x1b``; line breaks
    and tabs become spaces.
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


def printable(text: str) -> str:
    """`text` with a space in place of each character that is not printable, for storing it or for plain output."""
    return "".join(c if c.isprintable() else " " for c in text)


def quoted(text: str) -> str:
    """`text` as one line of at most `MAX_QUOTED` characters that cannot close the quotation marks around it.

    For text that a user typed and that goes into a prompt of a language model.
    """
    return " ".join(re.sub(r'["“”`<>{}\\]', " ", text).split())[:MAX_QUOTED]


def first_line(said: str | BaseException, limit: int = 160) -> str:
    """The first line of an error or a server's text, printable and at most `limit` characters long.

    An error without a text gives the name of its class.
    """
    text = str(said).strip()[: 8 * limit]
    return printable(text.splitlines()[0])[:limit].strip() if text else type(said).__name__
