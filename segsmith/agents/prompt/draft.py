"""A prompt on its way through the agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from segsmith.memory.ledger import PromptRow, PromptStatus


class Draft(TypedDict):
    """A prompt that is not decided yet. Plain JSON, since it travels in the graph's state."""

    id: str
    class_name: str
    text: str
    attributes: dict[str, str]
    """place, light, weather, state, companion, viewpoint; "" where it has none. See `companions_of`."""
    parent_id: str | None
    """The prompt it refines."""
    refines: int
    """How often its line was refined."""
    round: int
    classes: list[str]
    """Every class of the list that the text names."""
    problem: str
    """Empty, or ``reason: explanation`` with one of `REASONS`."""
    numbers: dict[str, float]
    """What the critique measured."""
    nearest: NotRequired[str]
    """The likest prompt in memory at that time, whose cosine is among the numbers."""


JOIN = ", "
"""Between companions in a prompt's attributes; no class name holds it."""


def companions_of(attributes: Mapping[str, str]) -> tuple[str, ...]:
    """The classes that a prompt shows beside its own."""
    return tuple(filter(None, attributes.get("companion", "").split(JOIN)))


REASONS = ("rule", "off_topic", "familiar", "irrational", "unreviewed", "not_there", "bad_reply", "repeated")
"""Why a prompt is refined or dropped: it breaks a rule; CLIP reads another class; it is not novel; the model
finds it absurd; the model's review failed; no image of it showed the class; the rewrite failed; the rewrite was
written before."""


def reason_of(problem: str) -> str:
    """The countable part of a draft's problem, one of `REASONS`."""
    return problem.partition(":")[0]


def explanation_of(problem: str) -> str:
    """The part of a draft's problem that a language model is told."""
    return problem.partition(": ")[2]


def to_row(draft: Draft, status: PromptStatus) -> PromptRow:
    """The draft as the ledger keeps it."""
    return PromptRow(
        id=draft["id"],
        class_name=draft["class_name"],
        text=draft["text"],
        classes=tuple(draft["classes"]),
        attributes=draft["attributes"],
        parent_id=draft["parent_id"],
        round=draft["round"],
        status=status,
        critique={
            "reason": reason_of(draft["problem"]),
            "problem": draft["problem"],
            **({"nearest": draft["nearest"]} if draft.get("nearest") else {}),
            **draft["numbers"],
        },
    )


def from_row(row: PromptRow, *, round: int, problem: str) -> Draft:
    """A prompt of the ledger as a draft of another round, with what is wrong with it."""
    return Draft(
        id=row.id,
        class_name=row.class_name,
        text=row.text,
        attributes=dict(row.attributes),
        parent_id=row.parent_id,
        refines=0,
        round=round,
        classes=list(row.classes),
        problem=problem,
        numbers={},
    )
