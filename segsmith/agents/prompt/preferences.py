"""A reviewer's wishes for future prompts: from plain words to preferences in the attribute space.

A wish consists of vocabulary values and a few plain words. Anything else that was typed, including instructions to
the LLM, is stored in the ledger and used nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, create_model

from segsmith.agents.prompt.rules import Lexicon, named_classes
from segsmith.errors import BadReply
from segsmith.memory.ledger import GuidanceRow
from segsmith.prompts import fill
from segsmith.prompts.vocabulary import Vocabulary
from segsmith.protocols import ChatModel
from segsmith.terminal_text import quoted

MAX_WORDS = 8
PLAIN_WORD = r"^[a-z][a-z-]{1,23}$"
AGAINST = {
    "no",
    "not",
    "never",
    "without",
    "avoid",
    "fewer",
    "less",
    "none",
    "stop",
    "dont",
    "nothing",
    "skip",
}
IN_FAVOUR = {"more", "only", "prefer", "rather", "mostly", "often", "but"}
THEM = {"them", "these", "those", "they", "it"}
FILLER = {
    *AGAINST, *IN_FAVOUR, *THEM, "a", "all", "also", "an", "and", "any", "at", "be", "bit", "but", "by",
    "can", "could", "do", "every", "everything", "few", "for", "from", "give", "have", "i", "image",
    "images", "in", "instead", "is", "let", "lets", "like", "lot", "lots", "make", "many", "me", "much",
    "my", "of", "on", "one", "ones", "or", "our", "photo", "photos", "picture", "pictures", "please",
    "prompt", "prompts", "seen", "should", "show", "shown", "so", "some", "than", "that", "the", "their",
    "then", "there", "this", "to", "too", "us", "use", "very", "want", "we", "will", "with", "would", "you",
    "your",
}  # fmt: skip
"""Words without a meaning for a wish."""


@dataclass(frozen=True)
class Wish:
    """A parsed wish: attribute -> values of the vocabulary; `words` must not occur in a prompt."""

    prefer: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    avoid: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.prefer or self.avoid or self.words)

    def as_json(self) -> dict[str, Any]:
        """As the ledger stores it."""
        return {
            "prefer": {k: list(v) for k, v in self.prefer.items()},
            "avoid": {k: list(v) for k, v in self.avoid.items()},
            "words": list(self.words),
        }

    def __str__(self) -> str:
        parts = [f"more of {', '.join(v)} ({a})" for a, v in self.prefer.items()]
        parts += [f"none of {', '.join(v)} ({a})" for a, v in self.avoid.items()]
        parts += [f"never the word {', '.join(self.words)}"] if self.words else []
        return "; ".join(parts)


@dataclass(frozen=True)
class Understood:
    """A wish, the class it is for ("" for all), and the words that were not understood."""

    class_name: str
    wish: Wish
    unused: tuple[str, ...] = ()


def values(vocabulary: Vocabulary) -> dict[str, tuple[str, ...]]:
    """Attribute -> all its values; states word by word ("red", "sleeping")."""
    states = {
        w: None for kind in vocabulary.kinds.values() for key in ("qualities", "colours") for w in kind[key]
    }
    return {
        "place": tuple(vocabulary.places),
        "light": tuple(vocabulary.lights),
        "weather": tuple(vocabulary.weathers),
        "viewpoint": tuple(vocabulary.viewpoints),
        "state": tuple(states),
    }


def wish_of(data: Mapping[str, Any], vocabulary: Vocabulary) -> Wish:
    """A wish from JSON, without values that are not in the vocabulary."""
    known = values(vocabulary)

    def held(part: str) -> dict[str, tuple[str, ...]]:
        given = data.get(part) or {}
        kept = {a: tuple(v for v in known[a] if v in given.get(a, ())) for a in known}
        return {a: v for a, v in kept.items() if v}

    words = [w for w in data.get("words", ()) if isinstance(w, str) and re.match(PLAIN_WORD, w)]
    return Wish(held("prefer"), held("avoid"), tuple(dict.fromkeys(words))[:MAX_WORDS])


def understand(said: str, lexicon: Lexicon, vocabulary: Vocabulary, present: str = "") -> Understood:
    """Parse a wish with the vocabulary alone, such as "more of them at night, and no cartoons".

    A word of `AGAINST` or `IN_FAVOUR` applies until the next one or the end of the sentence, to vocabulary values and
    their synonyms. Other words after a word of `AGAINST` become words to avoid. `present` is the class on the screen,
    which "them" refers to.
    """
    names = named_classes(said, lexicon)
    class_name = names[0] if len(names) == 1 else ""
    if not names and THEM & set(_words(said)):
        class_name = present
    phrases = _phrases(vocabulary)
    found: dict[bool, dict[str, list[str]]] = {True: {}, False: {}}
    words: list[str] = []
    unused: list[str] = []
    named = {word for name in lexicon for word in name}
    for sentence in re.split(r"[.;!?]", said):
        tokens, positive, at = _words(sentence), True, 0
        while at < len(tokens):
            token, meant = tokens[at], _meant(tokens[at:], phrases)
            if token in AGAINST or token in IN_FAVOUR:
                positive = token not in AGAINST
            elif meant:
                for attribute, value in phrases[meant]:
                    found[positive].setdefault(attribute, []).append(value)
                at += len(meant) - 1
            elif token not in FILLER and not {token, _singular(token)} & named:
                (unused if positive else words).append(_singular(token))
            at += 1
    wish = wish_of({"prefer": found[True], "avoid": found[False], "words": words}, vocabulary)
    return Understood(class_name, wish, tuple(dict.fromkeys(unused)))


def ask_wish(
    said: str,
    chat: ChatModel,
    lexicon: Lexicon,
    vocabulary: Vocabulary,
    classes: Sequence[str],
    present: str,
    seed: int,
) -> Understood:
    """Parse a wish with the LLM, restricted to the vocabulary by the schema; `understand` is the fallback."""
    options = tuple(f"{a}: {v}" for a, vs in values(vocabulary).items() for v in vs)
    one: Any = Literal[options]
    one_class: Any = Literal[("all", *classes)]
    word: Any = Annotated[str, StringConstraints(pattern=PLAIN_WORD)]
    schema = create_model(
        "Wish",
        __config__=ConfigDict(extra="forbid"),
        class_name=(one_class, ...),
        prefer=(list[one], Field(max_length=12)),
        avoid=(list[one], Field(max_length=12)),
        avoid_words=(list[word], Field(max_length=MAX_WORDS)),
    )
    user = fill("wish_user", said=quoted(said), present=present or "none", classes=", ".join(classes))
    try:
        reply: Any = chat.ask(fill("wish_system"), user, schema, seed=seed)
    except BadReply:
        return understand(said, lexicon, vocabulary, present)
    wish = wish_of(
        {"prefer": _grouped(reply.prefer), "avoid": _grouped(reply.avoid), "words": reply.avoid_words},
        vocabulary,
    )
    return Understood("" if reply.class_name == "all" else reply.class_name, wish)


def leaning(rows: Iterable[GuidanceRow], class_name: str, vocabulary: Vocabulary) -> Wish:
    """All active wishes for a class, merged; later ones win over earlier ones that contradict them."""
    prefer: dict[str, dict[str, None]] = {}
    avoid: dict[str, dict[str, None]] = {}
    words: dict[str, None] = {}
    for row in rows:
        if not row.active or row.class_name not in ("", class_name):
            continue
        wish = wish_of(row.wish, vocabulary)
        for wanted, into, against in ((wish.prefer, prefer, avoid), (wish.avoid, avoid, prefer)):
            for attribute, names in wanted.items():
                for name in names:
                    against.get(attribute, {}).pop(name, None)
                    into.setdefault(attribute, {})[name] = None
        words |= dict.fromkeys(wish.words)
    return Wish(_tuples(prefer), _tuples(avoid), tuple(words))


def unwanted_word(text: str, words: Sequence[str]) -> str:
    """The first of `words` that a text contains, in singular or plural; "" for none."""
    said = {form for word in _words(text) for form in (word, _singular(word))}
    return next((word for word in words if word in said), "")


def _grouped(pairs: Iterable[str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for pair in pairs:
        attribute, _, value = pair.partition(": ")
        grouped.setdefault(attribute, []).append(value)
    return grouped


def _tuples(groups: Mapping[str, Mapping[str, None]]) -> dict[str, tuple[str, ...]]:
    return {attribute: tuple(names) for attribute, names in groups.items() if names}


def _meant(tokens: Sequence[str], phrases: Mapping[tuple[str, ...], Any]) -> tuple[str, ...]:
    """The longest phrase that the tokens start with; () for none."""
    tries = (tuple(map(_singular, tokens[:length])) for length in range(min(3, len(tokens)), 0, -1))
    return next((words for words in tries if words in phrases), ())


def _phrases(vocabulary: Vocabulary) -> dict[tuple[str, ...], list[tuple[str, str]]]:
    """Words -> (attribute, value) pairs that they mean: names of values and their synonyms."""
    phrases: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for attribute, value, said in _sayings(vocabulary):
        meant = phrases.setdefault(tuple(map(_singular, _words(said))), [])
        if (attribute, value) not in meant:
            meant.append((attribute, value))
    return phrases


def _sayings(vocabulary: Vocabulary) -> Iterator[tuple[str, str, str]]:
    for attribute, names in values(vocabulary).items():
        for name in names:
            yield attribute, name, name
    for attribute, said in vocabulary.said.items():
        for name, others in said.items():
            for other in others:
                yield attribute, name, other
    for place in vocabulary.indoor:
        yield from (("place", place, word) for word in ("indoors", "indoor", "inside"))
    for place in vocabulary.outdoor:
        yield from (("place", place, word) for word in ("outdoors", "outdoor", "outside"))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z][a-z-]*[a-z]|[a-z]", text.lower().replace("'", "").replace("’", ""))


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
