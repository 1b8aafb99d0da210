"""Rules on words that a prompt must pass before any model is asked. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

MIN_WORDS = 5
MAX_WORDS = 30

Lexicon = Mapping[tuple[str, ...], str]
"""Words of a class name or synonym, in lower case -> class."""


def make_lexicon(
    classes: Sequence[str], synonyms: Callable[[str], Sequence[str]]
) -> dict[tuple[str, ...], str]:
    """All names of all classes. If two classes share a name, a class's own name wins, then the earlier class."""
    lexicon: dict[tuple[str, ...], str] = {}
    for name in classes:
        lexicon.setdefault(_words(name), name)
    for name in classes:
        for synonym in synonyms(name):
            lexicon.setdefault(_words(synonym), name)
    return lexicon


def named_classes(text: str, lexicon: Lexicon) -> list[str]:
    """Classes that `text` names, in order of first mention; the longest name wins, and plurals count."""
    words = _words(text)
    longest = max(map(len, lexicon), default=0)
    found: list[str] = []
    at = 0
    while at < len(words):
        for length in range(min(longest, len(words) - at), 0, -1):
            front, last = words[at : at + length - 1], words[at + length - 1]
            match = next((lexicon[n] for s in _singulars(last) if (n := (*front, s)) in lexicon), None)
            if match:
                found.append(match)
                at += length - 1
                break
        at += 1
    return list(dict.fromkeys(found))


def broken_rule(text: str, asked: Sequence[str], lexicon: Lexicon, fits: Callable[[str], bool]) -> str:
    """The first rule that a prompt breaks, in words; "" for none. It must name the `asked` classes and no other.

    It must be one plain sentence of `MIN_WORDS` to `MAX_WORDS` words that fits into the text encoder.
    """
    if re.search(r"[^A-Za-z0-9 ,.'-]", text):
        return "it has other characters than letters, digits and plain punctuation"
    if re.search(r"[.](?!$)", text.strip()):
        return "it is more than one sentence"
    count = len(text.split())
    if not MIN_WORDS <= count <= MAX_WORDS:
        return f"it has {count} words, not {MIN_WORDS} to {MAX_WORDS}"
    named = named_classes(text, lexicon)
    for name in asked:
        if name not in named:
            return f"it does not name the {name}"
    for name in named:
        if name not in asked:
            return f"it also names the {name}"
    if not fits(text):
        return "it is too long for the text encoder"
    return ""


def spoken_name(name: str, synonyms: Sequence[str]) -> str:
    """A class name in plain English: "dining table" for "diningtable", if that is among the synonyms."""
    plain = name.replace("_", " ")
    return next((s for s in synonyms if " " in s and s.replace(" ", "") == plain.lower()), plain)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z0-9]+", text.lower()))


def _singulars(word: str) -> list[str]:
    """The word itself and the words whose plural it may be."""
    forms = [word]
    if word.endswith("ies"):
        forms.append(word[:-3] + "y")
    if word.endswith("es"):
        forms.append(word[:-2])
    if word.endswith("s"):
        forms.append(word[:-1])
    return forms
