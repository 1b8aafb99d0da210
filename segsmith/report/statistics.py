"""The numbers the report shows: pure functions of one reading of a run."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segsmith.config import Config
from segsmith.memory.ledger import ImageRow
from segsmith.reasons import PromptProblem, Shortfall, UndrawnReason, VerdictReason
from segsmith.report.run_data import RunData, finite

DECISIONS_SHOWN = 200


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


@dataclass(frozen=True)
class ReviewerDecision:
    """A reviewer's decision with the text of the prompt it concerns."""

    kind: str
    subject: str
    action: str
    prompt: str
    note: str


def prompt_funnel(data: RunData) -> list[FunnelStep]:
    """Prompts written, then admitted."""
    written = len(data.prompts)
    status = Counter(p.status for p in data.prompts.values())
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
    drawn, accepted = len(data.images), {i.id for i in data.accepted}
    labelled = {i for rows in data.labels.values() for i in rows} & accepted
    unjudged = drawn - len(accepted) - len(data.rejected)
    counts = (
        ("drawn", drawn, f"{unjudged} not judged yet" if unjudged else ""),
        ("accepted", len(accepted), f"{len(data.rejected)} rejected"),
        ("labelled", len(labelled), ""),
        ("masked", len(accepted & set(data.masks)), ""),
    )
    return [FunnelStep(name, n, ratio(n, drawn) or 0.0, note) for name, n, note in counts]


def reject_reasons(data: RunData) -> list[ReasonCount]:
    """Why images were rejected, the most frequent reason first."""
    counts = Counter(data.verdicts[i.id].reason for i in data.rejected)
    return [ReasonCount(label(r), VerdictReason.wording_of(r), n) for r, n in counts.most_common()]


def undrawn_reasons(data: RunData) -> list[ReasonCount]:
    """Why requested images were not drawn, the most frequent reason first."""
    counts = Counter(row.reason for row in data.undrawn)
    return [ReasonCount(label(r), UndrawnReason.wording_of(r), n) for r, n in counts.most_common()]


def drop_reasons(data: RunData) -> list[ReasonCount]:
    """Why prompts were dropped, the most frequent reason first."""
    problems = (str(p.critique.get("problem") or "") for p in data.prompts.values() if p.status == "dropped")
    counts = Counter(text.partition(":")[0] or "no reason recorded" for text in problems)
    return [ReasonCount(label(r), PromptProblem.wording_of(r), n) for r, n in counts.most_common()]


def class_rows(data: RunData, config: Config) -> list[ClassRow]:
    """One row per class of the list, in the order of the masks' indices."""
    prompts = Counter(p.class_name for p in data.prompts.values() if p.status == "admitted")
    drawn = Counter(data.target(i) for i in data.images)
    judged = Counter(data.target(i) for i in data.images if i.id in data.verdicts)
    accepted = Counter(data.target(i) for i in data.accepted)
    area = len(data.masks) * config.images.size**2
    held_out, test_set = (score.iou if score else {} for score in (data.held_out, data.test_set))
    return [
        ClassRow(
            name,
            index,
            config.wanted[name],
            prompts[name],
            drawn[name],
            accepted[name],
            ratio(accepted[name], judged[name]),
            ratio(data.pixels.get(name, 0), area),
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


def median_sharpness(data: RunData) -> float | None:
    """Median sharpness of the judged images, the unit in which sharpness is shown."""
    values = [finite(verdict.scores.get("sharpness")) for verdict in data.verdicts.values()]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def probabilities(data: RunData) -> dict[str, tuple[list[float], list[float]]]:
    """Class -> probabilities of that class in the (accepted, rejected) images drawn for it."""
    found: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for image in data.images:
        verdict = data.verdicts.get(image.id)
        value = None if verdict is None else finite(verdict.scores.get("probability"))
        if verdict is not None and value is not None:
            found[data.target(image)][0 if verdict.accepted else 1].append(value)
    return dict(found)


def visit_counts(data: RunData) -> VisitCounts:
    """How many admitted prompts name each place and light; "any" stands for none."""
    cells: Counter[tuple[str, str]] = Counter()
    for prompt in data.prompts.values():
        if prompt.status == "admitted":
            place, light = (str(prompt.attributes.get(name) or "any") for name in ("place", "light"))
            cells[place, light] += 1
    places, lights = Counter[str](), Counter[str]()
    for (place, light), n in cells.items():
        places[place] += n
        lights[light] += n
    return VisitCounts([p for p, _ in places.most_common()], [n for n, _ in lights.most_common()], cells)


def label_change(data: RunData, image_id: str) -> LabelChange:
    """Compare relabelling with CLIP's labels, or with the prompt's where CLIP gave none."""
    found = {s: rows[image_id] for s, rows in data.labels.items() if image_id in rows}
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
        drawing_seconds=_total_seconds(data.drawing),
        training_seconds=_total_seconds(data.epochs),
        images_per_second=finite(data.summary.images_per_second) or None,
        trained_per_second=sum(speeds) / len(speeds) if speeds else None,
        peak_memory_mb=finite(data.summary.peak_memory_mb) or None,
        tokens_in=llm.tokens_in if llm else None,
        tokens_out=llm.tokens_out if llm else None,
        calls=llm.calls if llm else None,
        usd=sum(row.usd for row in data.usage.values()) if data.usage else None,
    )


def reviewer_decisions(data: RunData) -> tuple[list[ReviewerDecision], list[tuple[str, int]]]:
    """The newest `DECISIONS_SHOWN` decisions, and (kind and action, count) over all of them."""
    prompt_ids = {image.id: image.prompt_id for image in data.images}
    rows = []
    for (kind, subject), row in list(data.decisions.items())[-DECISIONS_SHOWN:]:
        prompt = data.prompts.get(prompt_ids.get(subject, subject))
        rows.append(ReviewerDecision(kind, subject, row.action, prompt.text if prompt else "", row.note))
    counts = Counter(f"{row.kind} {row.action}" for row in data.decisions.values())
    return rows, counts.most_common()


def certainty(data: RunData, image: ImageRow) -> float:
    """The probability on which a judged image was accepted or rejected; 0 where there is none."""
    return finite(data.verdicts[image.id].scores.get("probability")) or 0.0


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
