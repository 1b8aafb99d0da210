"""Judging again from stored evidence: no image is drawn and no model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segsmith.agents.judge.agent import reconsider
from segsmith.agents.judge.decision import Decision
from segsmith.config import JudgeConfig
from segsmith.errors import SegsmithError
from segsmith.memory.ledger import Ledger, VerdictRow


@dataclass(frozen=True)
class Change:
    """A verdict that changes under other settings."""

    image_id: str
    class_name: str
    before: VerdictRow
    after: VerdictRow


@dataclass(frozen=True)
class Rejudgement:
    """The result of other settings, not written yet."""

    decision: Decision
    changes: tuple[Change, ...]
    """Images whose verdict changes, in the order of drawing."""
    accepted: Mapping[str, int]
    """Class -> number of accepted images under the new verdicts."""

    @property
    def gained(self) -> int:
        return sum(change.after.accepted for change in self.changes)

    @property
    def lost(self) -> int:
        return len(self.changes) - self.gained


def rejudge(
    ledger: Ledger, classes: Sequence[str], config: JudgeConfig, quota: Mapping[str, int]
) -> Rejudgement:
    """Decide about every image of a run again; writes nothing.

    Raises `SegsmithError` if images have no stored measurement.
    """
    before = ledger.verdicts()
    unmeasured = before.keys() - ledger.evidence().keys()
    if not before or unmeasured:
        what = f"{len(unmeasured)} images have" if before else "no image has"
        raise SegsmithError(
            f"This run cannot be judged again: {what} no stored measurement.",
            "Rerun its `segsmith build` command, which measures what is missing.",
        )
    decision = reconsider(ledger, classes, config, quota)
    prompts = {p.id: p.class_name for p in ledger.prompts()}
    target = {image.id: prompts[image.prompt_id] for image in ledger.images()}
    changes = tuple(
        Change(row.image_id, target[row.image_id], before[row.image_id], row)
        for row in decision.verdicts
        if row.image_id in before and row.accepted != before[row.image_id].accepted
    )
    accepted = Counter(target[row.image_id] for row in decision.verdicts if row.accepted)
    return Rejudgement(decision, changes, {name: accepted[name] for name in classes})
