"""The director: decides what to write and draw next, and when to stop. Pure functions of counts and settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from segsmith.config import BudgetConfig, Config
from segsmith.memory.ledger import Ledger
from segsmith.types import ClassTally

Reason = Literal["need_prompts", "draw", "quota_met", "stalled", "budget_spent", "nothing_accepted"]

PRIOR_ACCEPTED, PRIOR_JUDGED = 3.0, 5.0
"""Prior of a class's yield: 3 of 5 images accepted, with the weight of five judged images (ours)."""
SPARE = 1.25
"""Factor on the expected number of images, since a spare image is cheaper than another round (ours)."""


@dataclass(frozen=True)
class ClassProgress:
    """Counts of one class in this run."""

    tally: ClassTally = field(default_factory=ClassTally)
    idle_rounds: int = 0
    """Consecutive rounds in which images were requested for the class and none was accepted."""

    @property
    def expected_yield(self) -> float:
        """Accepted share of judged images, in (0, 1); close to the prior while few are judged."""
        return (self.tally.accepted + PRIOR_ACCEPTED) / (self.tally.judged + PRIOR_JUDGED)


@dataclass(frozen=True)
class Plan:
    """The director's decision for one round."""

    reason: Reason
    draw: tuple[str, ...] = ()
    """Prompt ids to draw now."""
    write: Mapping[str, int] = field(default_factory=dict)
    """Class -> prompts to write, for this round ("need_prompts") or the next one ("draw")."""
    missing: Mapping[str, int] = field(default_factory=dict)
    """Class -> number of accepted images missing from the quota, if drawing ends here."""
    cap: str = ""
    """The cap that ended drawing, such as "max_images = 9"; "" for none."""


@dataclass(frozen=True)
class Spent:
    """What a run has cost over all its sessions."""

    hours: float = 0.0
    usd: float = 0.0


NOTHING_SPENT = Spent()


def spent(ledger: Ledger) -> Spent:
    """What the run has cost so far, from the ledger."""
    return Spent(ledger.summary.wall_seconds / 3600, sum(row.usd for row in ledger.usage().values()))


def cap_reached(budget: BudgetConfig, drawn: int, rounds_done: int, cost: Spent) -> str:
    """The first cap that is reached, as a setting ("max_images = 9"); "" if none is."""
    for name, value in (
        ("max_images", drawn), ("max_hours", cost.hours), ("max_usd", cost.usd), ("max_rounds", rounds_done)
    ):  # fmt: skip
        cap = getattr(budget, name)
        if cap is not None and value >= cap:
            return f"{name} = {cap:g}"
    return ""


def plan_round(
    config: Config,
    progress: Mapping[str, ClassProgress],
    waiting: Mapping[str, Sequence[str]],
    rounds_done: int,
    cost: Spent = NOTHING_SPENT,
) -> Plan:
    """Decide the next round from each class's progress and the admitted prompts still `waiting` to be drawn.

    Classes that have their quota, or were idle for `budget.patience` rounds, are left out. Each other class gets
    slightly more prompts than its measured yield calls for, at most `prompts.batch` per round, and prompts for the
    next round are written while this round's are drawn.
    """
    missing = {c: config.wanted[c] - progress[c].tally.accepted for c in config.classes}
    missing = {c: n for c, n in missing.items() if n > 0}
    if not missing:
        return Plan("quota_met")
    hopeful = [c for c in missing if progress[c].idle_rounds < config.budget.patience]
    if not hopeful:
        return _stop("stalled", progress, missing)
    drawn = sum(p.tally.drawn for p in progress.values())
    left = math.inf if config.budget.max_images is None else config.budget.max_images - drawn
    if cap := cap_reached(config.budget, drawn, rounds_done, cost):
        return _stop("budget_spent", progress, missing, cap)

    draw: list[str] = []
    write: dict[str, int] = {}
    for name in hopeful:
        wanted = math.ceil(SPARE * missing[name] / progress[name].expected_yield / config.images.per_prompt)
        now = list(waiting.get(name, ()))[: min(wanted, config.prompts.batch)]
        draw += now
        short = min(wanted - len(now), config.prompts.batch) - (len(waiting.get(name, ())) - len(now))
        if short > 0:
            write[name] = short
    if left < math.inf:
        draw = draw[: max(1, int(left) // config.images.per_prompt)]
    if draw:
        return Plan("draw", draw=tuple(draw), write=write)
    return Plan("need_prompts", write=write)


def _stop(
    reason: Reason, progress: Mapping[str, ClassProgress], missing: Mapping[str, int], cap: str = ""
) -> Plan:
    """End drawing, with reason "nothing_accepted" if there is nothing to label."""
    empty = not any(p.tally.accepted for p in progress.values())
    return Plan("nothing_accepted" if empty else reason, missing=missing, cap=cap)
