"""The nouns of the world: the emoji of each, its group and its synonyms.

The table is `nouns.tsv`, so that the world is the same on every machine.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

VOC_CLASSES: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
"""The 20 classes of PASCAL VOC in their official order and spelling; each is a key of `NOUNS`."""

_IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice",
    "goose": "geese", "ox": "oxen", "tooth": "teeth", "foot": "feet", "sheep": "sheep",
    "fish": "fish", "deer": "deer", "moose": "moose", "bison": "bison", "squid": "squid",
    "shrimp": "shrimp", "cattle": "cattle", "people": "people", "leaf": "leaves",
    "wolf": "wolves", "knife": "knives", "loaf": "loaves", "scarf": "scarves", "calf": "calves",
    "die": "dice", "aircraft": "aircraft", "spacecraft": "spacecraft", "cactus": "cacti",
    "octopus": "octopuses", "hippopotamus": "hippopotamuses", "dice": "dice", "sushi": "sushi",
    "passerby": "passersby",
}  # fmt: skip
_REGULAR_TOO = {"person", "fish", "squid", "shrimp", "scarf", "cactus"}  # "persons", "scarfs"
_PLURAL_WORDS = {"people", "cattle", "dice"}  # synonyms that are plurals


@dataclass(frozen=True)
class Noun:
    """A kind of object that can be drawn.

    `codepoint` is the emoji's code points in hex, joined by "-" and without fe0f; one that starts with "x-" is a
    sprite that `segsmith.world.sprites` contains. `synonyms` are other singular names, each of one noun only.
    `group` is animal, vehicle, food and so on.
    """

    name: str
    codepoint: str
    synonyms: tuple[str, ...]
    group: str


def normalise(text: str) -> str:
    """The text as lower-case ASCII words joined by single spaces; hyphens and underscores become spaces."""
    text = unicodedata.normalize("NFKD", text.replace("\u2019", "'")).lower()
    text = text.encode("ascii", "ignore").decode()
    return " ".join(re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text))


def plurals(phrase: str) -> tuple[str, ...]:
    """Possible plurals of a singular phrase, the most likely first ("bus" -> "buses")."""
    *front, last = phrase.split(" ")
    head = " ".join(front) + " " if front else ""
    if " of " in phrase:  # "glass of milk" -> "glasses of milk"
        first, rest = phrase.split(" of ", 1)
        return tuple(f"{p} of {rest}" for p in plurals(first))
    out = [_IRREGULAR[last]] if last in _IRREGULAR else []
    if not out or last in _REGULAR_TOO:
        if re.search(r"(s|x|z|ch|sh)$", last):
            out += [last + "es"]
            if last.endswith("s") and not last.endswith(("ss", "us")):
                out.insert(0, last)  # "jeans" is its own plural
        elif re.search(r"[^aeiou]y$", last):
            out += [last[:-1] + "ies"]
        elif re.search(r"[^aeiou]o$", last):
            out += [last + "es", last + "s"]
        else:
            out += [last + "s"]
    return tuple(head + p for p in out)


def _read_table() -> dict[str, Noun]:
    text = resources.files(__package__).joinpath("nouns.tsv").read_text(encoding="utf-8")
    nouns = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, codepoint, group, synonyms = line.split("\t")
            nouns[name] = Noun(name, codepoint, tuple(s for s in synonyms.split(",") if s), group)
    return nouns


class _LazyNouns(Mapping[str, Noun]):
    """Reads the table on first use, so that importing the package is fast."""

    @staticmethod
    @cache
    def _table() -> dict[str, Noun]:
        return _read_table()

    def __getitem__(self, name: str) -> Noun:
        return self._table()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table())

    def __len__(self) -> int:
        return len(self._table())


NOUNS: Mapping[str, Noun] = _LazyNouns()
"""All nouns by name."""


@cache
def phrases() -> dict[str, tuple[str, bool]]:
    """Normalised phrase -> (noun name, whether it is plural), for names, synonyms and their plurals."""
    table: dict[str, tuple[str, bool]] = {}
    for noun in NOUNS.values():
        for phrase in (noun.name, *noun.synonyms):
            key = normalise(phrase)
            table[key] = (noun.name, key in _PLURAL_WORDS)
    for phrase, (name, _) in list(table.items()):
        for plural in plurals(phrase):
            table.setdefault(plural, (name, True))
    return table


@cache
def _joined() -> dict[str, str]:
    return {phrase.replace(" ", ""): name for phrase, (name, _) in phrases().items()}


def find_noun(text: str) -> Noun | None:
    """The noun with the name or synonym `text`, in any case, singular or plural, spaces or hyphens; else None."""
    key = normalise(text)
    if key in phrases():
        return NOUNS[phrases()[key][0]]
    name = _joined().get(key.replace(" ", ""))
    return NOUNS[name] if name is not None else None


def suggest(text: str, n: int = 3) -> list[str]:
    """Up to `n` noun names whose spelling is most similar to `text`, for an error message."""
    close = difflib.get_close_matches(normalise(text), list(phrases()), n=4 * n, cutoff=0.6)
    return list(dict.fromkeys(phrases()[phrase][0] for phrase in close))[:n]
