"""Texts of the mini CLIP: its byte-pair vocabulary, and the phrases of its training."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from open_clip.tokenizer import SimpleTokenizer

from segsmith.world.language import (
    COLOURS,
    LIGHTS,
    PLACES,
    STATES,
    WEATHERS,
    ObjectSpec,
    SceneSpec,
    caption,
    spoken,
)
from segsmith.world.nouns import NOUNS, plurals

FREQUENT_MERGES = 5000
"""Number of most frequent merges that are always kept, so that other words are split into few pieces."""

NOUN_TEMPLATES = (
    "a photo of a {}", "a photo of a {}", "a photo of a {}.", "a {}", "{}", "a picture of a {}",
    "a photo of the {}", "a small picture of a {}", "a clean photo of a {}", "an image of a {}",
    "a blurry photo of a {}", "a photo of {}", "a close-up photo of a {}", "a photo of one {}",
)  # fmt: skip
EMPTY_PHRASES = (
    "an empty scene", "a photo of nothing", "nothing", "an empty background", "background",
    "a photo of an empty place", "a photo with no object", "a plain background with no object",
    "empty scenery", "a photo of the background", "an empty picture", "a photo with nothing in it",
)  # fmt: skip
EMPTY_TEMPLATES = ("an empty {}", "a photo of an empty {}", "a photo of a {} with nothing in it")
ATTRIBUTE_TEMPLATES = {
    "place": ("a {}", "a photo of a {}", "a photo taken in a {}", "a picture of a {}", "{}"),
    "light": ("{}", "a photo at {}", "a photo taken at {}", "a picture in {}"),
    "weather": ("{} weather", "a photo in {} weather", "{}", "a picture in {}"),
}


def article(text: str) -> str:
    """Corrects the article: "a apple" becomes "an apple"."""
    words = text.split(" ")
    for at, (word, following) in enumerate(pairwise(words)):
        if word == "a" and following[:1] in "aeiou" and following[:1]:
            words[at] = "an"
    return " ".join(words)


def names(noun: str) -> tuple[str, ...]:
    """All names of a noun; its key and its ordinary spelling come first."""
    entry = NOUNS[noun]
    return tuple(dict.fromkeys((entry.name, spoken(entry), *entry.synonyms)))


def noun_prompt(noun: str, rng: np.random.Generator, synonym_share: float = 0.25) -> str:
    """A prompt such as "a photo of a dog", with a synonym in `synonym_share` of the cases."""
    said = names(noun)
    plain = said[: 2 if said[1:] and said[1] == spoken(NOUNS[noun]) else 1]
    name = _pick(said, rng) if rng.random() < synonym_share else _pick(plain, rng)
    return article(_pick(NOUN_TEMPLATES, rng).format(name))


def empty_prompt(rng: np.random.Generator, places: tuple[str, ...] | None = None) -> str:
    """A phrase for an image without objects; with `places`, in one of these."""
    if places is None:
        return _pick(EMPTY_PHRASES, rng)
    return article(_pick(EMPTY_TEMPLATES, rng).format(_pick(places, rng)))


def attribute_prompt(kind: str, said: tuple[str, ...], rng: np.random.Generator) -> str:
    """A phrase for a place, light or weather; `said` are its names, the canonical one first."""
    word = said[0] if rng.random() < 0.6 else _pick(said, rng)
    return article(_pick(ATTRIBUTE_TEMPLATES[kind], rng).format(word))


def write_vocabulary(texts: Iterable[str], path: Path) -> int:
    """Write open_clip's byte-pair merges, reduced to the frequent ones and those in `texts`; returns the new size.

    Byte-pair encoding applies the earliest merge first, so a text whose merges are all kept is split exactly as with
    the full vocabulary.
    """
    full = SimpleTokenizer()
    rank = full.bpe_ranks
    made_by = {"".join(pair): pair for pair in sorted(rank, key=rank.__getitem__, reverse=True)}
    kept = {pair for pair in rank if rank[pair] < FREQUENT_MERGES}

    def keep(token: str) -> None:
        pair = made_by.get(token)
        if pair is not None:
            kept.add(pair)
            for part in pair:
                keep(part)

    for token in {token for text in texts for token in full.encode(text)}:
        keep(full.decoder[token])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in sorted(kept, key=rank.__getitem__))]
    path.write_bytes(gzip.compress("\n".join(lines).encode("utf-8"), mtime=0))
    return SimpleTokenizer(bpe_path=str(path)).vocab_size


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def all_phrases() -> list[str]:
    """All words of the world in context: the texts that the vocabulary must split as CLIP's does."""
    said = [*NOUN_TEMPLATES, *EMPTY_PHRASES, *EMPTY_TEMPLATES]
    said += [template for templates in ATTRIBUTE_TEMPLATES.values() for template in templates]
    for words in (PLACES, LIGHTS, WEATHERS, COLOURS, STATES):
        said += [phrase for key, synonyms in words.items() for phrase in (key, *synonyms)]
    for noun in NOUNS:
        said += [form for name in names(noun) for form in (name, *plurals(name))]
    rng = np.random.default_rng(0)
    for noun in NOUNS:
        spec = SceneSpec((ObjectSpec(noun, int(rng.integers(1, 7))),), "street", "day", "clear")
        said += [caption(replace(spec, place=place), rng) for place in PLACES]
    return said
