"""What a reviewer typed, parsed into an action. A line that is no command is a wish or a question (`say`)."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from segsmith.terminal_text import printable

Action = Literal[
    "accept", "reject", "edit", "why", "next", "auto", "back", "quit", "help", "status", "guidance", "forget",
    "say", "misspelt",
]  # fmt: skip

ALONE: dict[str, Action] = {
    "next": "next",
    "back": "back",
    "quit": "quit",
    "help": "help",
    "status": "status",
}
"""Commands without an argument: followed by other words, the line is plain language ("next time more rain")."""
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
"""Characters of a line that are read."""


@dataclass(frozen=True)
class Answer:
    """One line of a reviewer.

    `rest` is what follows the command, the whole line for `say`, and the command that was meant for `misspelt`.
    """

    action: Action
    rest: str = ""


def parse_answer(line: str) -> Answer:
    """The action that a line stands for.

    An empty line is `next`. Commands may be abbreviated to three letters ("acc", "rej too dark").
    """
    line = printable(line)[:MAX_LINE].strip()
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    if not line:
        return Answer("next")
    command = _command(word.lower())
    if command in ALONE and not rest:
        return Answer(ALONE[command])
    if command in WITH_REST and not _starts_a_sentence(word, rest):
        return Answer(WITH_REST[command], rest)
    if not rest and (near := _misspelt(command or word.lower())):
        return Answer("misspelt", near)
    return Answer("say", line)


def _misspelt(word: str) -> str:
    """The command that a single word is almost; "" for none."""
    if len(word) < 4:
        return ""
    return next(iter(difflib.get_close_matches(word, [*ALONE, *WITH_REST], n=1, cutoff=0.8)), "")


def is_question(line: str) -> bool:
    """Whether the line asks something; otherwise it is a wish."""
    return line.rstrip().endswith("?") or bool(
        re.match(r"(why|which|what|who|how|when|where|is|are|was|were|did|does)\b", line.strip().lower())
    )


def nth(line: str) -> int | None:
    """The ordinal in a line, counted from 1: "third", "3rd", "no. 3", "#3"; None if it has none."""
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


def _starts_a_sentence(word: str, rest: str) -> bool:
    """Whether the word is the article of a sentence ("a bit more rain") rather than the short form of accept."""
    return word.lower() == "a" and bool(rest)
