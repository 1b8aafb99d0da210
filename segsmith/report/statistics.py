"""The numbers the report shows: pure functions of one reading of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segsmith.config import Config
from segsmith.reasons import PromptProblem, Reason, Shortfall, UndrawnReason, VerdictReason
from segsmith.report.reader import finite
from segsmith.report.run_data import RunData


@dataclass(frozen=True)
class FunnelStep:
    """One bar of a funnel; `share` in [0, 1] is its count relative to the first bar of its funnel."""

    name: str
    count: int
    share: float
    note: str


@dataclass(frozen=True)
class ReasonCount:
    """How many images or prompts have a reason; `wording` is "" for a reason this version does not know."""

    reason: str
    wording: str
    count: int


@dataclass(frozen=True)
class ClassRow:
    """A class in the table; shares and IoUs are in [0, 1], None where nothing is known."""

    name: str
    index: int
    quota: int
    prompts: int
    drawn: int
    accepted: int
    acceptance: float | None
    """Accepted images as a share of those judged."""
    auc: float | None
    """How well the judge's CLIP tells it from the others."""
    pixel_share: float | None
    """Its pixels as a share of all mask pixels."""
    iou_held_out: float | None
    iou_test_set: float | None


@dataclass(frozen=True)
class LabelChange:
    """An image's labels by source, and the classes that relabelling added to and removed from the labels before."""

    labels: Mapping[str, tuple[str, ...]]
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class VisitCounts:
    """Admitted prompts in each cell of place and light, the most frequent places and lights first."""

    places: Sequence[str]
    lights: Sequence[str]
    cells: Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class Costs:
    """Time in seconds, tokens and US dollars; None where nothing was measured."""

    wall_seconds: float | None
    drawing_seconds: float | None
    training_seconds: float | None
    images_per_second: float | None
    trained_per_second: float | None
    peak_memory_mb: float | None
    tokens_in: int | None
    tokens_out: int | None
    calls: int | None
    usd: float | None


def prompt_funnel(data: RunData) -> list[FunnelStep]:
    """Prompts written, then admitted."""
    written, status = data.prompt_counts.written, data.prompt_counts.status
    return [
        FunnelStep("written", written, 1.0 if written else 0.0, ""),
        FunnelStep(
            "admitted",
            status["admitted"],
            ratio(status["admitted"], written) or 0.0,
            f"{status['refined']} refined, {status['dropped']} dropped",
        ),
    ]


def image_funnel(data: RunData) -> list[FunnelStep]:
    """Images drawn, accepted, labelled, masked."""
    images = data.image_counts
    drawn, judged = images.drawn.total(), images.judged.total()
    counts = (
        ("drawn", drawn, f"{drawn - judged} not judged yet" if drawn > judged else ""),
        ("accepted", images.accepted.total(), f"{images.rejected} rejected"),
        ("labelled", images.labelled, ""),
        ("masked", images.masked, ""),
    )
    return [FunnelStep(name, n, ratio(n, drawn) or 0.0, note) for name, n, note in counts]


def reject_reasons(data: RunData) -> list[ReasonCount]:
    """Why images were rejected, the most frequent reason first."""
    return _by_frequency(data.image_counts.reject_reasons, VerdictReason)


def undrawn_reasons(data: RunData) -> list[ReasonCount]:
    """Why requested images were not drawn, the most frequent reason first."""
    return _by_frequency(data.undrawn, UndrawnReason)


def drop_reasons(data: RunData) -> list[ReasonCount]:
    """Why prompts were dropped, the most frequent reason first."""
    problems = data.prompt_counts.drop_problems
    return _by_frequency({r or "no reason recorded": n for r, n in problems.items()}, PromptProblem)


def _by_frequency(counts: Mapping[str, int], reasons: type[Reason]) -> list[ReasonCount]:
    return [ReasonCount(label(r), reasons.wording_of(r), n) for r, n in Counter(counts).most_common()]


def class_rows(data: RunData, config: Config) -> list[ClassRow]:
    """One row per class of the list, in the order of the masks' indices."""
    images = data.image_counts
    area = images.masks * config.images.size**2
    held_out, test_set = (score.iou if score else {} for score in (data.held_out, data.test_set))
    return [
        ClassRow(
            name,
            index,
            config.wanted[name],
            data.prompt_counts.admitted[name],
            images.drawn[name],
            images.accepted[name],
            ratio(images.accepted[name], images.judged[name]),
            data.auc.get(name),
            ratio(images.pixels[name], area),
            held_out.get(name),
            test_set.get(name),
        )
        for index, name in enumerate(config.classes, 1)
    ]


def shortfalls(rows: Sequence[ClassRow], data: RunData) -> list[tuple[ClassRow, str]]:
    """Classes for which drawing ended before their quota, each with the reason last recorded.

    A class that a later session filled up is left out.
    """
    short = [row for row in rows if row.name in data.shortfalls and row.accepted < row.quota]
    reasons = [data.shortfalls[row.name] for row in short]
    return [
        (row, Shortfall.wording_of(reason) or label(reason))
        for row, reason in zip(short, reasons, strict=True)
    ]


def visit_counts(data: RunData) -> VisitCounts:
    """How many admitted prompts name each place and light; "any" stands for none."""
    cells = data.prompt_counts.visits
    places, lights = Counter[str](), Counter[str]()
    for (place, light), n in cells.items():
        places[place] += n
        lights[light] += n
    return VisitCounts([p for p, _ in places.most_common()], [n for n, _ in lights.most_common()], cells)


def label_change(found: Mapping[str, tuple[str, ...]]) -> LabelChange:
    """Compare relabelling with CLIP's labels, or the prompt's where CLIP gave none; `found` is source -> classes."""
    after = found.get("relabel")
    before = found.get("clip", found.get("prompt"))
    if after is None or before is None:
        return LabelChange(found)
    added = tuple(name for name in after if name not in before)
    return LabelChange(found, added, tuple(name for name in before if name not in after))


def costs(data: RunData) -> Costs:
    """Sum up what the ledger holds; time and money of several sessions add up."""
    llm = data.usage.get("llm")
    speeds = [v for v in (finite(epoch.get("images_per_second")) for epoch in data.epochs) if v]
    return Costs(
        wall_seconds=finite(data.summary.wall_seconds) or None,
        drawing_seconds=data.drawing_seconds,
        training_seconds=_total_seconds(data.epochs),
        images_per_second=finite(data.summary.images_per_second) or None,
        trained_per_second=sum(speeds) / len(speeds) if speeds else None,
        peak_memory_mb=finite(data.summary.peak_memory_mb) or None,
        tokens_in=llm.tokens_in if llm else None,
        tokens_out=llm.tokens_out if llm else None,
        calls=llm.calls if llm else None,
        usd=sum(row.usd for row in data.usage.values()) if data.usage else None,
    )


def ratio(part: float, whole: float) -> float | None:
    """Part of whole, or None where there is no whole."""
    return part / whole if whole else None


def label(reason: str) -> str:
    """A stored reason as a label: ``not_there`` becomes ``not there``."""
    return "reviewer" if reason == VerdictReason.PERSON else reason.replace("_", " ")


def _total_seconds(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of all rows that record theirs; None where none does."""
    seconds = [v for v in (finite(row.get("seconds")) for row in rows) if v is not None]
    return sum(seconds) if seconds else None
