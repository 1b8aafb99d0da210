"""A prompt on its way through the agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from segsmith.memory.ledger import PromptRow, PromptStatus
from segsmith.reasons import PromptProblem

JOIN = ", "
"""Between companions in a prompt's attributes; no class name contains it."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a draft: the reason it is counted under, and an explanation for the language model."""

    reason: PromptProblem
    text: str

    def __str__(self) -> str:
        """``reason: text``, as stored in checkpoints and in the ledger's critique."""
        return f"{self.reason}: {self.text}"

    @classmethod
    def parse(cls, stored: str) -> Problem | None:
        """The problem that `str` wrote; None for an empty text. Raises `ValueError` for an unknown reason."""
        reason, _, text = stored.partition(": ")
        return cls(PromptProblem(reason), text) if stored else None


@dataclass(frozen=True)
class Draft:
    """A prompt that is neither admitted nor dropped yet."""

    id: str
    class_name: str
    text: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    """place, light, weather, state, companion, viewpoint; "" where it has none. See `companions`."""
    parent_id: str | None = None
    """The prompt it refines."""
    refines: int = 0
    """Number of refinements between it and the first draft."""
    round: int = 0
    classes: tuple[str, ...] = ()
    """Every class of the list that the text names."""
    problem: Problem | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What the critique measured."""
    nearest: str = ""
    """The most similar prompt in memory at the time of the critique; its cosine is among the numbers."""

    @property
    def companions(self) -> tuple[str, ...]:
        """The classes that it shows beside its own."""
        return tuple(filter(None, self.attributes.get("companion", "").split(JOIN)))

    @property
    def asked(self) -> tuple[str, ...]:
        """The class it was written for, then its companions."""
        return (self.class_name, *self.companions)

    def rejected(self, reason: PromptProblem, text: str) -> Draft:
        """The draft with this problem."""
        return replace(self, problem=Problem(reason, text))

    def measured(self, **numbers: float) -> Draft:
        """The draft with these further numbers."""
        return replace(self, numbers={**self.numbers, **numbers})

    def to_state(self) -> dict[str, Any]:
        """Plain JSON for the graph's state, whose checkpoints must be readable by every later version."""
        return {
            **asdict(self),
            "classes": list(self.classes),
            "problem": "" if self.problem is None else str(self.problem),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Draft:
        """The draft that `to_state` wrote."""
        return cls(**{
            **state, "classes": tuple(state["classes"]), "problem": Problem.parse(state["problem"])
        })  # fmt: skip


def to_row(draft: Draft, status: PromptStatus) -> PromptRow:
    """The draft as the ledger stores it."""
    return PromptRow(
        id=draft.id,
        class_name=draft.class_name,
        text=draft.text,
        classes=draft.classes,
        attributes=draft.attributes,
        parent_id=draft.parent_id,
        round=draft.round,
        status=status,
        critique={
            "reason": draft.problem.reason if draft.problem else "",
            "problem": str(draft.problem) if draft.problem else "",
            **({"nearest": draft.nearest} if draft.nearest else {}),
            **draft.numbers,
        },
    )


def from_row(row: PromptRow, *, round: int, problem: Problem) -> Draft:
    """A prompt of the ledger as a draft of another round, with what is wrong with it."""
    return Draft(
        id=row.id,
        class_name=row.class_name,
        text=row.text,
        attributes=row.attributes,
        parent_id=row.parent_id,
        round=round,
        classes=row.classes,
        problem=problem,
    )
