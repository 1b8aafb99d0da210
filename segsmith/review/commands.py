"""What a person typed, as an action. Pure; whatever is no command is `say`: a wish or a question in plain words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Action = Literal[
    "accept", "reject", "edit", "why", "next", "auto", "back", "quit", "help", "status", "guidance", "forget", "say"
]  # fmt: skip

ALONE: dict[str, Action] = {
    "next": "next",
    "back": "back",
    "quit": "quit",
    "help": "help",
    "status": "status",
}
"""Commands that take nothing: followed by other words, the line is plain language ("next time more rain")."""
WITH_REST: dict[str, Action] = {
    "accept": "accept",
    "reject": "reject",
    "edit": "edit",
    "why": "why",
    "auto": "auto",
    "guidance": "guidance",
    "forget": "forget",
}
SHORT = {
    "a": "accept", "y": "accept", "yes": "accept", "r": "reject", "e": "edit", "w": "why", "n": "next",
    "au": "auto", "b": "back", "q": "quit", "exit": "quit", "h": "help", "?": "help", "s": "status",
    "g": "guidance", "f": "forget",
}  # fmt: skip

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
MAX_LINE = 2_000


@dataclass(frozen=True)
class Answer:
    """One line of a person; `rest` is what follows the command, or the whole line for `say`."""

    action: Action
    rest: str = ""


def parse_answer(line: str) -> Answer:
    """The action a line stands for; an empty line is `next`. Commands may be cut short ("acc", "rej too dark")."""
    line = printable(line)[:MAX_LINE].strip()
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    if not line:
        return Answer("next")
    command = _command(word.lower())
    if command in ALONE and not rest:
        return Answer(ALONE[command])
    if command in WITH_REST and not (len(word) == 1 and _reads_like_a_sentence(word, rest)):
        return Answer(WITH_REST[command], rest)
    return Answer("say", line)


def printable(text: str) -> str:
    """Without control characters, so that no text of a model or a file can steer the terminal.

    Line breaks and tabs become spaces; escape sequences lose the byte that starts them, bidirectional
    overrides go as well.
    """
    return "".join(" " if c in "\n\r\t" else c for c in text if c in "\n\r\t" or _harmless(c))


def is_question(line: str) -> bool:
    """Does it ask, rather than wish?"""
    return line.rstrip().endswith("?") or bool(
        re.match(r"(why|which|what|who|how|when|where|is|are|was|were|did|does)\b", line.strip().lower())
    )


def nth(line: str) -> int | None:
    """The ordinal in a line, counted from 1: "third", "3rd", "no. 3", "#3"; None without one."""
    words = re.findall(r"[a-z]+", line.lower())
    for number, word in enumerate(ORDINALS, 1):
        if word in words:
            return number
    found = re.search(r"\b(\d{1,6})(?:st|nd|rd|th)\b|(?:#|\bno\.? ?|\bnumber )(\d{1,6})\b", line.lower())
    return int(found.group(1) or found.group(2)) if found else None


def _command(word: str) -> str:
    if word in SHORT:
        return SHORT[word]
    if len(word) < 3:
        return ""
    found = [name for name in (*ALONE, *WITH_REST) if name.startswith(word)]
    return found[0] if len(found) == 1 else ""


def _reads_like_a_sentence(word: str, rest: str) -> bool:
    """ "a bit more rain" starts with an article, not with accept."""
    return word.lower() == "a" and bool(rest)


def _harmless(char: str) -> bool:
    code = ord(char)
    steers = code < 32 or 127 <= code < 160 or 0xD800 <= code < 0xE000
    return not steers and code not in {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0xFEFF}
