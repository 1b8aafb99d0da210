"""Which cells of the attribute space to request next, and the sentence for a cell. Pure; no model is used."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segsmith.agents.prompt.preferences import Wish, unwanted_word
from segsmith.memory.prompt_memory import Cell
from segsmith.prompts import fill
from segsmith.prompts.vocabulary import Suited, Vocabulary

OFFERED_PLACES = 4
OFFERED_LIGHTS = 3
OFFERED_WEATHERS = 2
OFFERED_STATES = 4
LEANING = 0.6
"""Share of offers restricted to what the reviewer prefers; the rest explores (ours)."""


@dataclass(frozen=True)
class Offer:
    """Vocabulary names that the LLM may choose from for one prompt. Places are all indoors or all outdoors.

    `weathers` is empty indoors; `companions` are further classes to show.
    """

    places: tuple[str, ...]
    lights: tuple[str, ...]
    weathers: tuple[str, ...]
    states: tuple[str, ...]
    viewpoint: str
    companions: tuple[str, ...] = ()


class Planner:
    """Makes offers in which the least-visited cells come first (prompt-space exploration).

    Every offer counts as a fraction of a visit to each of its values, so the offers of one batch spread over the
    space although they are requested at the same time. Without `explore` every offer is the whole list in its order.
    A reviewer's `wish` has priority: values to avoid are offered only if nothing else is left, and a share `LEANING`
    of the offers contains only preferred values.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        suited: Suited,
        visits: Mapping[Cell, float],
        rng: random.Random,
        *,
        explore: bool,
        wish: Wish | None = None,
    ) -> None:
        self._wish = wish or Wish()
        self._vocabulary = vocabulary
        self._suited = suited
        self._visits = defaultdict[Cell, float](float, visits)
        self._rng = rng
        self._explore = explore

    def offer(
        self,
        companions: tuple[str, ...] = (),
        *,
        shared: Sequence[str] = (),
        shun: Mapping[str, str] | None = None,
    ) -> Offer:
        """The next offer.

        `shared` are the places that suit the companions. The attributes in `shun`, those of a rejected prompt, are
        left out unless nothing else is left.
        """
        shun = shun or {}
        lean = bool(self._wish.prefer) and self._rng.random() < LEANING
        both = tuple(p for p in self._suited.places if p in shared)
        places = self._places(_without(both or self._suited.places, shun.get("place")), lean)
        if not self._explore:
            first = self._rng.choice(places)
            places = self._same_side(first, places)
            return Offer(
                places=places,
                lights=self._wished("light", self._vocabulary.lights_of(first), lean),
                weathers=self._wished("weather", self._vocabulary.weathers_of(first), lean),
                states=self._wished("state", self._suited.states, lean),
                viewpoint=self._rng.choice(
                    self._wished("viewpoint", tuple(self._vocabulary.viewpoints), lean)
                ),
                companions=companions,
            )
        first = self._least("place", places, 1)[0]
        places = self._least("place", self._same_side(first, places), OFFERED_PLACES)
        lights = self._wished("light", _without(self._vocabulary.lights_of(first), shun.get("light")), lean)
        weathers = self._wished("weather", self._vocabulary.weathers_of(first), lean)
        states = self._wished("state", _without(self._suited.states, shun.get("state")), lean)
        viewpoints = self._wished("viewpoint", tuple(self._vocabulary.viewpoints), lean)
        offer = Offer(
            places=places,
            lights=self._least("light", lights, OFFERED_LIGHTS, beside=places),
            weathers=self._least("weather", weathers, OFFERED_WEATHERS),
            states=self._least("state", states, OFFERED_STATES),
            viewpoint=self._least("viewpoint", viewpoints, 1)[0],
            companions=companions,
        )
        self._count(offer)
        return offer

    def _places(self, places: Sequence[str], lean: bool) -> tuple[str, ...]:
        """Places that fit the wish; a preferred place is offered even if it is not listed for the class.

        Preferred lights and weathers restrict the places, too: there is no rain indoors.
        """
        prefer = self._wish.prefer
        wanted = prefer.get("place", ()) if lean else ()
        left = tuple(wanted) or self._wished("place", places, lean)
        if lean:
            for attribute, of in (
                ("light", self._vocabulary.lights_of),
                ("weather", self._vocabulary.weathers_of),
            ):
                fitting = tuple(p for p in left if set(of(p)) & set(prefer.get(attribute, ())))
                left = fitting or left
        return left

    def _wished(self, attribute: str, options: Sequence[str], lean: bool) -> tuple[str, ...]:
        """The options without those to avoid, with `lean` only the preferred ones; all of them if none is left."""
        avoided = self._wish.avoid.get(attribute, ())
        left = [o for o in options if not _any_of(o, avoided) and not unwanted_word(o, self._wish.words)]
        left = left or list(options)
        if lean and (preferred := self._wish.prefer.get(attribute)):
            left = [o for o in left if _any_of(o, preferred)] or left
        return tuple(left)

    def _same_side(self, first: str, places: Sequence[str]) -> tuple[str, ...]:
        inside = first in self._vocabulary.indoor
        return tuple(p for p in places if (p in self._vocabulary.indoor) == inside)

    def _least(
        self, attribute: str, options: Sequence[str], count: int, beside: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """The `count` least-visited options, in random order; ties are broken at random.

        `beside` are places: visits of the pairs (place, light) with them count, too.
        """

        def visited(option: str) -> float:
            pairs = sum(self._visits["place", place, attribute, option] for place in beside)
            return self._visits[attribute, option] + pairs

        shuffled = self._rng.sample(list(options), len(options))
        least = sorted(shuffled, key=visited)[:count]
        self._rng.shuffle(least)
        return tuple(least)

    def _count(self, offer: Offer) -> None:
        dealt = {
            "place": offer.places,
            "light": offer.lights,
            "weather": offer.weathers,
            "state": offer.states,
            "viewpoint": (offer.viewpoint,),
        }
        for attribute, names in dealt.items():
            for name in names:
                self._visits[attribute, name] += 1 / len(names)
        for place in offer.places:
            for light in offer.lights:
                share = 1 / (len(offer.places) * len(offer.lights))
                self._visits["place", place, "light", light] += share


def compose_sentence(
    spoken: str, spoken_companions: Sequence[str], cell: Mapping[str, str], words: Vocabulary
) -> str:
    """The sentence for a cell, e.g. "a photo of a small black dog and a cat in a park at night, seen up close"."""
    subject = listed([f"{cell['state']} {spoken}".strip(), *spoken_companions])
    weather = cell.get("weather", "")
    return fill(
        "sentence",
        subject=subject,
        place=words.places[cell["place"]],
        light=words.lights[cell["light"]],
        weather=f", {words.weathers[weather]}" if weather else "",
        viewpoint=words.viewpoints[cell["viewpoint"]],
    )


def listed(things: Sequence[str]) -> str:
    """["old bus", "cat", "dog"] becomes "an old bus, a cat and a dog"."""
    *front, last = map(with_article, things)
    return f"{', '.join(front)} and {last}" if front else last


def with_article(phrase: str) -> str:
    """ "old bus" becomes "an old bus"."""
    return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"


def _without(options: Sequence[str], shunned: str | None) -> tuple[str, ...]:
    left = tuple(option for option in options if option != shunned)
    return left or tuple(options)


def _any_of(option: str, names: Sequence[str]) -> bool:
    """Whether the option is one of the names, or a state that contains one as a word ("old red")."""
    return option in names or any(name in option.split() for name in names)
