"""The attribute space of prompts, read from ``vocabulary.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Suited:
    """What suits a class: names of places, and states such as "sleeping black"."""

    places: tuple[str, ...]
    states: tuple[str, ...]


@dataclass(frozen=True)
class Vocabulary:
    """The values of each attribute; most mappings are name -> the phrase for it in a sentence."""

    outdoor: Mapping[str, str]
    indoor: Mapping[str, str]
    outdoor_lights: Mapping[str, str]
    indoor_lights: Mapping[str, str]
    weathers: Mapping[str, str]
    viewpoints: Mapping[str, str]
    kinds: Mapping[str, Mapping[str, list[str]]]
    said: Mapping[str, Mapping[str, list[str]]]
    """Attribute -> value -> its synonyms in users' requests."""

    @property
    def places(self) -> dict[str, str]:
        return {**self.outdoor, **self.indoor}

    @property
    def lights(self) -> dict[str, str]:
        return {**self.outdoor_lights, **self.indoor_lights}

    def lights_of(self, place: str) -> tuple[str, ...]:
        """Names of the lights that are possible in a place."""
        return tuple(self.indoor_lights if place in self.indoor else self.outdoor_lights)

    def weathers_of(self, place: str) -> tuple[str, ...]:
        """Names of the weathers that are possible in a place; none indoors."""
        return () if place in self.indoor else tuple(self.weathers)

    def suited(self, names: Iterable[str]) -> Suited:
        """What suits a class with these names: its own name first, then synonyms."""
        kind = next((k for n in names if (k := self._kind(n))), "other")
        words = self.kinds[kind]
        qualities, colours = words["qualities"], words["colours"]
        return Suited(
            places=tuple(words.get("places", self.places)),
            states=(*qualities, *colours, *(f"{q} {c}" for q in qualities for c in colours)),
        )

    def _kind(self, name: str) -> str | None:
        """The kind that lists `name` or, if there is none, its last word (as in "school bus")."""
        name = name.lower().replace("_", " ")
        for candidate in (name, name.split()[-1]):
            for kind, words in self.kinds.items():
                if candidate in words["classes"]:
                    return kind
        return None


@cache
def load_vocabulary() -> Vocabulary:
    """The vocabulary of the package."""
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
