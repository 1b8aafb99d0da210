"""The funnel of a run: the number of prompts and images that reached each step, and why the others did not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from segsmith.memory.ledger import Ledger, StepCounts


@dataclass(frozen=True)
class PromptYield:
    """An admitted prompt and what came of it."""

    id: str
    class_name: str
    text: str
    drawn: int
    accepted: int


@dataclass(frozen=True)
class Funnel:
    """Counts of some classes; a prompt and its images count for the class that the prompt was written for."""

    classes: Mapping[str, StepCounts]
    image_rejects: Mapping[str, int]
    """Reason -> rejected images, the most frequent first."""
    prompt_rejects: Mapping[str, int]
    """Reason -> prompts that are not admitted, the most frequent first."""
    prompts: Sequence[PromptYield] = ()
    """The admitted prompts, in the order they were written, where they were asked for."""

    @property
    def total(self) -> StepCounts:
        """The sum over the classes."""
        return StepCounts(*map(sum, zip(*(counts.values for counts in self.classes.values()), strict=True)))

    def as_json(self, *, prompts: bool) -> dict[str, Any]:
        """Plain JSON, with the list of prompts if wanted."""
        listed = [
            {"id": p.id, "class": p.class_name, "text": p.text, "drawn": p.drawn, "accepted": p.accepted}
            for p in self.prompts
        ]
        return {
            "steps": list(StepCounts.STEPS),
            "classes": {name: asdict(counts) for name, counts in self.classes.items()},
            "all": asdict(self.total),
            "image_rejects": dict(self.image_rejects),
            "prompt_rejects": dict(self.prompt_rejects),
            **({"prompts": listed} if prompts else {}),
        }


def read_funnel(ledger: Ledger, classes: Sequence[str], *, prompts: bool = False) -> Funnel:
    """Count these classes; with `prompts`, list their admitted prompts as well."""
    counts = ledger.step_counts()
    return Funnel(
        {name: counts.get(name, StepCounts()) for name in classes},
        ledger.reject_reasons(classes),
        ledger.drop_reasons(classes),
        [PromptYield(*row) for row in ledger.prompt_yields(classes)] if prompts else (),
    )
