"""Questions about a run, answered from the ledger by their keywords, without a model."""

from __future__ import annotations

import re

from segsmith.agents.prompt.rules import Lexicon, named_classes
from segsmith.review.commands import nth
from segsmith.review.facts import RunFacts, Standing

ABOUT_THIS = {"this", "that", "it", "its", "here", "why"}
"""Words of a question that may refer to the item on the screen."""


def answer(facts: RunFacts, question: str, lexicon: Lexicon, present: str = "") -> list[str]:
    """Lines that answer "why was the third bus rejected?", "which class is behind?", an id, or a class.

    `present` is the id of the image or prompt on the screen; "the third one" is the third of its class.
    The list is empty if the question was not understood.
    """
    if match := re.search(r"\b[ip]-[0-9a-f]{2,12}\b", question.lower()):
        return _of_id(facts, match.group())
    names = named_classes(question, lexicon)
    words = set(re.findall(r"[a-z]+", question.lower()))
    if (number := nth(question)) and (names or present):
        name = names[0] if names else facts.target(present)
        return _of_nth(facts, name, number, "rejected" if "rejected" in words else "any")
    if words & {"behind", "missing", "short", "left", "lacking"}:
        return facts.behind()
    if names:
        return [line for name in names for line in facts.status(name)]
    if words & {"status", "many", "far", "progress", "accepted", "rejected", "drawn"}:
        return facts.status()
    return _of_id(facts, present) if present and words & ABOUT_THIS else []


def _of_nth(facts: RunFacts, name: str, number: int, standing: Standing) -> list[str]:
    """The n-th image drawn; if the question says "rejected" and that one is not, the n-th rejected one."""
    found, first = facts.nth_image(name, number), ""
    if found and standing == "rejected" and facts.standing(found) != "rejected":
        first = f"{name} number {number} was not rejected; rejected image number {number} of {name}:"
        found = facts.nth_image(name, number, standing)
    if found is None and first:
        return [
            f"{name} number {number} was not rejected: {facts.verdict_line(facts.of_class[name][number - 1])}"
        ]
    if found is None:
        return [f"{name} has no image number {number}: {_images(len(facts.of_class[name]))} drawn so far"]
    return [first, *_of_id(facts, found)] if first else _of_id(facts, found)


def _of_id(facts: RunFacts, beginning: str) -> list[str]:
    images = [i for i in facts.images if i.startswith(beginning)]
    prompts = [i for i in facts.prompts if i.startswith(beginning)]
    if len(images) == 1:
        i = images[0]
        number = facts.of_class[facts.target(i)].index(i) + 1
        return [
            f"{i} is {facts.target(i)} number {number} in drawing order: {facts.verdict_line(i)}",
            facts.scores_line(i),
            f"prompt: {facts.prompts[facts.images[i].prompt_id].text}",
        ]
    if len(prompts) == 1:
        return facts.prompt_lines(prompts[0])
    if images or prompts:
        return [f"several ids of this run begin with {beginning}"]
    return [f"no id of this run begins with {beginning}"]


def _images(count: int) -> str:
    return f"{count} image was" if count == 1 else f"{count} images were"
