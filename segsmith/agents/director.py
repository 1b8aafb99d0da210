"""The director: decides what to write and draw next, and when to stop. Pure functions of counts and settings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from segsmith.config import BudgetConfig, Config
from segsmith.memory.ledger import Ledger
from segsmith.types import ClassTally

Reason = Literal["need_prompts", "draw", "quota_met", "stalled", "budget_spent", "nothing_accepted"]

PRIOR_ACCEPTED, PRIOR_JUDGED = 3.0, 5.0
"""Prior of a class's yield: 3 of 5 images accepted, with the weight of five judged images (ours)."""
CONFIDENCE = 1.28
"""Standard deviations of spare images: a class gets what it lacks with probability 0.9, since spare images are
cheaper than another round (ours)."""
GROWTH = 2
"""A round may draw up to this many times the prompts that a class has drawn before (ours).

So the number of rounds grows with the logarithm of the quota, and the yield is measured on few images first.
"""


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

    Classes that have their quota, or were idle for `budget.patience` rounds, are left out. Each other class gets the
    prompts that its measured yield calls for, with spares (`prompts_wanted`), as far as its round may grow
    (`round_limit`). Prompts for the next round are written while this round's are drawn, as many as `max_images`
    will let it draw.
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

    per_prompt = config.images.per_prompt
    chosen: dict[str, list[str]] = {}
    write: dict[str, int] = {}
    for name in hopeful:
        wanted = prompts_wanted(missing[name], progress[name].expected_yield, per_prompt)
        there = list(waiting.get(name, ()))
        now = there[: min(wanted, round_limit(config, progress[name]))]
        chosen[name] = now
        next_limit = round_limit(config, progress[name], drawing=len(now))
        short = min(wanted - len(now), next_limit) - (len(there) - len(now))
        if short > 0:
            write[name] = short
    draw = _interleaved(list(chosen.values()))
    if left < math.inf:
        allowed = max(1, int(left) // per_prompt)
        draw = draw[:allowed]
        ready = max(len(draw), sum(len(waiting.get(name, ())) for name in hopeful))
        write = _first(write, max(0 if draw else 1, allowed - ready))
    if draw:
        return Plan("draw", draw=tuple(draw), write=write)
    return Plan("need_prompts", write=write)


def prompts_wanted(missing: int, expected_yield: float, per_prompt: int) -> int:
    """Prompts whose images contain `missing` accepted ones with probability 0.9.

    A normal approximation in which all images of a prompt succeed or fail together, the least favourable case.
    """
    deviation = CONFIDENCE * math.sqrt(per_prompt * expected_yield * (1 - expected_yield))
    root = (deviation + math.sqrt(deviation**2 + 4 * expected_yield * missing)) / (2 * expected_yield)
    return math.ceil(root**2 / per_prompt)


def round_limit(config: Config, progress: ClassProgress, drawing: int = 0) -> int:
    """Maximum number of prompts that a class draws in its next round.

    `drawing` is the number of its prompts that are about to be drawn before that round. A class without success in
    its last round goes back to `prompts.batch`.
    """
    if progress.idle_rounds:
        return config.prompts.batch
    drawn = progress.tally.drawn // config.images.per_prompt + drawing
    return max(config.prompts.batch, GROWTH * drawn)


def rounds_needed(config: Config, expected_yield: float) -> int:
    """Rounds that the largest quota takes at a yield, in (0, 1]; the last one may have to be repeated."""
    drawn = accepted = 0.0
    rounds, quota = 0, max(config.wanted.values(), default=0)
    while accepted < quota:
        tally = ClassTally(drawn=int(drawn), judged=int(drawn), accepted=int(accepted))
        wanted = prompts_wanted(math.ceil(quota - accepted), expected_yield, config.images.per_prompt)
        drawn += config.images.per_prompt * min(wanted, round_limit(config, ClassProgress(tally)))
        accepted = drawn * expected_yield
        rounds += 1
    return rounds


def _interleaved(groups: Sequence[Sequence[str]]) -> list[str]:
    """The items of all groups, each group spread evenly, so that a cap within a round leaves no class behind."""
    placed = [
        ((i + 0.5) / len(group), g, item) for g, group in enumerate(groups) for i, item in enumerate(group)
    ]
    return [item for _, _, item in sorted(placed, key=lambda place: place[:2])]


def _first(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """The counts, reduced evenly to a `total`; classes that are left with none are left out."""
    return dict(Counter(_interleaved([[name] * count for name, count in counts.items()])[:total]))


def _stop(
    reason: Reason, progress: Mapping[str, ClassProgress], missing: Mapping[str, int], cap: str = ""
) -> Plan:
    """End drawing, with reason "nothing_accepted" if there is nothing to label."""
    empty = not any(p.tally.accepted for p in progress.values())
    return Plan("nothing_accepted" if empty else reason, missing=missing, cap=cap)
