"""Asks the LLM for one prompt: a cell of the attribute space, and a sentence if the LLM can write one.

A small LLM only chooses among offered cells, enforced by the reply's schema, and a template makes the sentence:
when asked to write, SmolLM2-135M copies its examples or breaks words apart to satisfy a pattern.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, create_model

from segsmith.agents.prompt.draft import JOIN, Draft
from segsmith.agents.prompt.rules import Lexicon, named_classes
from segsmith.agents.prompt.space import Offer, compose_sentence, listed, with_article
from segsmith.errors import BadReply
from segsmith.ids import make_id, seed_of
from segsmith.prompts import fill
from segsmith.prompts.vocabulary import Suited, Vocabulary
from segsmith.protocols import ChatModel

logger = logging.getLogger(__name__)

State = Annotated[str, StringConstraints(pattern="^[a-z]+( [a-z]+){0,4}$", max_length=40)]


def _one_line(text: str) -> str:
    """Reject control characters, line breaks and overrides of the reading direction."""
    if not text.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return text


Sentence = Annotated[str, StringConstraints(min_length=20, max_length=220), AfterValidator(_one_line)]


class PromptWriter:
    """T(c) of SynthSeg-Agents. `spoken` is class -> its name in plain English, in the order of the class list.

    `listed` is class -> places and states that suit it, from the vocabulary. If the LLM `writes_sentences`, it is
    asked for them instead, once per class.
    """

    def __init__(
        self,
        chat: ChatModel,
        words: Vocabulary,
        spoken: Mapping[str, str],
        lexicon: Lexicon,
        listed: Mapping[str, Suited],
        *,
        writes_sentences: bool,
        seed: int,
    ) -> None:
        self._chat = chat
        self._words = words
        self._spoken = spoken
        self._lexicon = lexicon
        self._listed = listed
        self._writes_sentences = writes_sentences
        self._seed = seed
        self._suited: dict[str, Suited] = {}
        self._suiting = threading.Lock()

    def write(self, class_name: str, offer: Offer, advice: str, round: int, seed: int) -> Draft:
        """One draft from the offered cells. Raises `BadReply` if the LLM never replies in the schema."""
        schema = self._schema(offer)
        ask = self._sentence_questions if self._writes_sentences else self._cell_questions
        system, user = ask(class_name, offer, advice)
        reply: Any = self._chat.ask(system, user, schema, seed=seed)
        cell = {name: str(getattr(reply, name, "")) for name in ("place", "light", "weather", "state")}
        attributes = {**cell, "viewpoint": offer.viewpoint, "companion": JOIN.join(offer.companions)}
        text = getattr(reply, "sentence", "").strip() or compose_sentence(
            self._spoken[class_name], [self._spoken[c] for c in offer.companions], attributes, self._words
        )
        named = named_classes(text, self._lexicon)
        return Draft(
            id=make_id("p", class_name, text),
            class_name=class_name,
            text=text,
            attributes=attributes,
            round=round,
            classes=tuple(name for name in self._spoken if name in named),
        )

    def suits(self, class_name: str) -> Suited:
        """Places and states that suit a class; those of the vocabulary if the LLM gives no usable reply."""
        if not self._writes_sentences:
            return self._listed[class_name]
        with self._suiting:
            if class_name not in self._suited:
                self._suited[class_name] = self._brainstorm(class_name)
            return self._suited[class_name]

    def _schema(self, offer: Offer) -> Any:
        fields: dict[str, Any] = {
            "place": (_one_of(offer.places), ...),
            "light": (_one_of(offer.lights), ...),
        }
        if offer.weathers:
            fields["weather"] = (_one_of(offer.weathers), ...)
        fields["state"] = (State if self._writes_sentences else _one_of(offer.states), ...)
        if self._writes_sentences:
            fields["sentence"] = (Sentence, ...)
        return create_model("Photograph", __config__=ConfigDict(extra="forbid"), **fields)

    def _cell_questions(self, class_name: str, offer: Offer, advice: str) -> tuple[str, str]:
        subject = listed([self._spoken[name] for name in (class_name, *offer.companions)])
        return fill("cells_system"), fill("cells_user", subject=subject, advice=advice)

    def _sentence_questions(self, class_name: str, offer: Offer, advice: str) -> tuple[str, str]:
        companion = (
            listed([self._spoken[c] for c in offer.companions]) if offer.companions else "nothing else"
        )
        return fill("sentence_system"), fill(
            "sentence_user",
            subject=with_article(self._spoken[class_name]),
            companion=companion,
            classes=", ".join(self._spoken.values()),
            places=", ".join(offer.places),
            lights=", ".join(offer.lights),
            weathers=", ".join(offer.weathers) or "none, it is indoors",
            states=", ".join(offer.states),
            viewpoint=self._words.viewpoints[offer.viewpoint],
            advice=advice,
        )

    def _brainstorm(self, class_name: str) -> Suited:
        everywhere = tuple(self._words.places)
        one_place: Any = _one_of(everywhere)
        schema = create_model(
            "Suits",
            __config__=ConfigDict(extra="forbid"),
            places=(list[one_place], Field(min_length=3, max_length=len(everywhere))),
            states=(list[State], Field(min_length=3, max_length=12)),
        )
        user = fill("suits_user", subject=self._spoken[class_name], places=", ".join(everywhere))
        seed = seed_of(self._seed, class_name, "suits")
        try:
            reply: Any = self._chat.ask(fill("suits_system"), user, schema, seed=seed)
        except BadReply as bad:
            logger.warning("no places and states for %s: %s", class_name, bad)
            return self._listed[class_name]
        return Suited(tuple(dict.fromkeys(reply.places)), tuple(dict.fromkeys(reply.states)))


def _one_of(options: Sequence[str]) -> Any:
    return Literal[tuple(options)]
