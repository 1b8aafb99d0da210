"""The attribute space of prompts, read from ``vocabulary.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Suited:
    """What suits one class: names of places, and states such as "sleeping black"."""

    places: tuple[str, ...]
    states: tuple[str, ...]


@dataclass(frozen=True)
class Vocabulary:
    """Attribute values; each mapping is name -> the phrase that a sentence says it with."""

    outdoor: Mapping[str, str]
    indoor: Mapping[str, str]
    outdoor_lights: Mapping[str, str]
    indoor_lights: Mapping[str, str]
    weathers: Mapping[str, str]
    viewpoints: Mapping[str, str]
    kinds: Mapping[str, Mapping[str, list[str]]]
    said: Mapping[str, Mapping[str, list[str]]]
    """Attribute -> value -> what else people say for it."""

    @property
    def places(self) -> dict[str, str]:
        return {**self.outdoor, **self.indoor}

    @property
    def lights(self) -> dict[str, str]:
        return {**self.outdoor_lights, **self.indoor_lights}

    def lights_of(self, place: str) -> tuple[str, ...]:
        """Names of the lights that a place can have."""
        return tuple(self.indoor_lights if place in self.indoor else self.outdoor_lights)

    def weathers_of(self, place: str) -> tuple[str, ...]:
        """Names of the weathers that a place can have: none indoors."""
        return () if place in self.indoor else tuple(self.weathers)

    def suited(self, names: Iterable[str]) -> Suited:
        """What suits a class with these names (its own first, then synonyms)."""
        kind = next((k for n in names if (k := self._kind(n))), "other")
        words = self.kinds[kind]
        qualities, colours = words["qualities"], words["colours"]
        return Suited(
            places=tuple(words.get("places", self.places)),
            states=(*qualities, *colours, *(f"{q} {c}" for q in qualities for c in colours)),
        )

    def _kind(self, name: str) -> str | None:
        """The kind that lists `name` or, failing that, its last word ("school bus")."""
        name = name.lower().replace("_", " ")
        for candidate in (name, name.split()[-1]):
            for kind, words in self.kinds.items():
                if candidate in words["classes"]:
                    return kind
        return None


@cache
def load_vocabulary() -> Vocabulary:
    """The vocabulary that comes with the package."""
    words = tomllib.loads((resources.files("segsmith.prompts") / "vocabulary.toml").read_text("utf-8"))
    return Vocabulary(
        outdoor=words["places"]["outdoor"],
        indoor=words["places"]["indoor"],
        outdoor_lights=words["lights"]["outdoor"],
        indoor_lights=words["lights"]["indoor"],
        weathers=words["weathers"],
        viewpoints=words["viewpoints"],
        kinds=words["kinds"],
        said=words["said"],
    )
