"""Numbers of a run as the report tells them: pure functions over one reading of the ledger."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from segsmith.config import Config
from segsmith.memory.ledger import (
    DecisionKind,
    DecisionRow,
    GuidanceRow,
    ImageRow,
    LabelRow,
    Ledger,
    MaskRow,
    ModelRow,
    PromptRow,
    RunSummary,
    UsageRow,
    VerdictRow,
)
from segsmith.reasons import PromptProblem, Shortfall, VerdictReason
from segsmith.types import Evaluation

SOURCES = ("prompt", "clip", "relabel")
KINDS: tuple[DecisionKind, ...] = ("prompt", "verdict", "label", "mask")


@dataclass(frozen=True)
class Book:
    """Everything the report needs of a ledger, read once."""

    prompts: Mapping[str, PromptRow]
    images: Sequence[ImageRow]
    verdicts: Mapping[str, VerdictRow]
    labels: Mapping[str, Mapping[str, LabelRow]]
    masks: Mapping[str, MaskRow]
    thresholds: Mapping[str, float]
    summary: RunSummary
    evaluation: Mapping[str, Evaluation]
    versions: Mapping[str, str]
    epochs: Sequence[Mapping[str, Any]]
    drawing: Sequence[Mapping[str, Any]]
    shortfalls: Mapping[str, str]
    usage: Mapping[str, UsageRow]
    models: Mapping[str, ModelRow]
    decisions: Mapping[tuple[str, str], DecisionRow]
    guidance: Sequence[GuidanceRow]
    run_id: str
    last_event: float | None

    def target(self, image: ImageRow) -> str:
        """The class the image was drawn for."""
        return self.prompts[image.prompt_id].class_name

    @cached_property
    def accepted(self) -> list[ImageRow]:
        return [i for i in self.images if i.id in self.verdicts and self.verdicts[i.id].accepted]

    @cached_property
    def rejected(self) -> list[ImageRow]:
        return [i for i in self.images if i.id in self.verdicts and not self.verdicts[i.id].accepted]


@dataclass(frozen=True)
class Step:
    """One bar of the funnel; `share` in [0, 1] is its length beside the first bar of its group."""

    name: str
    count: int
    share: float
    note: str


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
    pixels: float | None
    iou_val: float | None
    iou_real: float | None


def read_book(ledger: Ledger) -> Book:
    """Read a ledger, however far its run came."""
    events = ledger.events()
    return Book(
        prompts={p.id: p for p in ledger.prompts()},
        images=ledger.images(),
        verdicts=ledger.verdicts(),
        labels={source: ledger.labels(source) for source in SOURCES},
        masks=ledger.masks(),
        thresholds=ledger.thresholds,
        summary=ledger.summary,
        evaluation=ledger.evaluation,
        versions=ledger.versions,
        epochs=_last_epochs(detail for _, kind, detail in events if kind == "epoch"),
        drawing=[detail for _, kind, detail in events if kind == "drawn"],
        shortfalls={
            str(detail.get("class", "")): str(detail.get("reason", ""))
            for _, kind, detail in events
            if kind == "missing"
        },
        usage=ledger.usage(),
        models=ledger.models(),
        decisions={(k, subject): row for k in KINDS for subject, row in ledger.decisions(k).items()},
        guidance=ledger.guidance(active_only=False),
        run_id=ledger.run_id,
        last_event=events[-1][0] if events else None,
    )


def prompt_funnel(book: Book) -> list[Step]:
    """Prompts written, then admitted."""
    written = len(book.prompts)
    status = Counter(p.status for p in book.prompts.values())
    return [
        Step("written", written, 1.0 if written else 0.0, ""),
        Step(
            "admitted",
            status["admitted"],
            ratio(status["admitted"], written) or 0.0,
            f"{status['refined']} rewritten, {status['dropped']} dropped",
        ),
    ]


def image_funnel(book: Book) -> list[Step]:
    """Images drawn, accepted, labelled, masked."""
    drawn, accepted = len(book.images), {i.id for i in book.accepted}
    labelled = {i for rows in book.labels.values() for i in rows} & accepted
    unjudged = drawn - len(book.verdicts)
    counts = (
        ("drawn", drawn, f"{unjudged} not judged" if unjudged else ""),
        ("accepted", len(accepted), f"{len(book.rejected)} rejected"),
        ("labelled", len(labelled), ""),
        ("masked", len(accepted & set(book.masks)), ""),
    )
    return [Step(name, n, ratio(n, drawn) or 0.0, note) for name, n, note in counts]


def reject_reasons(book: Book) -> list[tuple[str, str, int]]:
    """(reason, plain words, images), the most frequent first."""
    counts = Counter(book.verdicts[i.id].reason for i in book.rejected)
    return [(short(r), VerdictReason.wording_of(r), n) for r, n in counts.most_common()]


def drop_reasons(book: Book) -> list[tuple[str, str, int]]:
    """(kind of problem a prompt was dropped for, plain words, prompts), the most frequent first."""
    problems = (str(p.critique.get("problem") or "") for p in book.prompts.values() if p.status == "dropped")
    counts = Counter(text.partition(":")[0] or "no reason kept" for text in problems)
    return [(short(kind), PromptProblem.wording_of(kind), n) for kind, n in counts.most_common()]


def held_out(book: Book) -> Evaluation | None:
    """The score on split val: of generated pictures, or of real ones in a run that enlarges a dataset."""
    return book.evaluation.get("synthetic_val") or book.evaluation.get("real_val")


def class_rows(book: Book, config: Config) -> list[ClassRow]:
    """One row per class of the list, in the order of the mask's indices."""
    prompts = Counter(p.class_name for p in book.prompts.values() if p.status == "admitted")
    drawn = Counter(book.target(i) for i in book.images)
    judged = Counter(book.target(i) for i in book.images if i.id in book.verdicts)
    accepted = Counter(book.target(i) for i in book.accepted)
    pixels: Counter[str] = Counter()
    for mask in book.masks.values():
        pixels.update(mask.pixels)
    area = len(book.masks) * config.images.size**2
    val, real = (score.iou if score else {} for score in (held_out(book), book.evaluation.get("test_set")))
    return [
        ClassRow(
            name,
            index,
            config.wanted[name],
            prompts[name],
            drawn[name],
            accepted[name],
            ratio(accepted[name], judged[name]),
            ratio(pixels[name], area),
            finite(val.get(name)),
            finite(real.get(name)),
        )
        for index, name in enumerate(config.classes, 1)
    ]


def gaps(rows: Sequence[ClassRow], book: Book) -> list[tuple[ClassRow, str]]:
    """Classes the run gave up on before their quota, each with the reason last given.

    A class that a later call filled up is no gap any more.
    """
    short_of = [row for row in rows if row.name in book.shortfalls and row.accepted < row.quota]
    return [
        (row, Shortfall.wording_of(book.shortfalls[row.name]) or book.shortfalls[row.name])
        for row in short_of
    ]


def typical_sharpness(book: Book) -> float | None:
    """Median sharpness of the judged images; sharpness means something only beside it."""
    values = [finite(verdict.scores.get("sharpness")) for verdict in book.verdicts.values()]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def probabilities(book: Book) -> dict[str, tuple[list[float], list[float]]]:
    """Class -> target probabilities of the (accepted, rejected) images drawn for it."""
    found: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for image in book.images:
        verdict = book.verdicts.get(image.id)
        value = None if verdict is None else finite(verdict.scores.get("probability"))
        if verdict is not None and value is not None:
            found[book.target(image)][0 if verdict.accepted else 1].append(value)
    return dict(found)


def visit_map(book: Book) -> tuple[list[str], list[str], dict[tuple[str, str], int]]:
    """(places, lights, prompts admitted in each cell); names sorted by how often they occur."""
    cells: Counter[tuple[str, str]] = Counter()
    for prompt in book.prompts.values():
        if prompt.status == "admitted":
            cells[prompt.attributes.get("place") or "any", prompt.attributes.get("light") or "any"] += 1
    rows, columns = Counter[str](), Counter[str]()
    for (place, light), n in cells.items():
        rows[place] += n
        columns[light] += n
    return [p for p, _ in rows.most_common()], [n for n, _ in columns.most_common()], dict(cells)


def label_change(book: Book, image_id: str) -> tuple[dict[str, tuple[str, ...]], list[str], list[str]]:
    """Labels by source, and the classes relabelling added to, and removed from, what CLIP said.

    Where CLIP said nothing the prompt's labels take its place.
    """
    found = {s: rows[image_id].classes for s, rows in book.labels.items() if image_id in rows}
    after = found.get("relabel")
    before = found.get("clip", found.get("prompt"))
    if after is None or before is None:
        return found, [], []
    return found, [c for c in after if c not in before], [c for c in before if c not in after]


def ratio(part: float, whole: float) -> float | None:
    """Part of whole, or None where there is no whole."""
    return part / whole if whole else None


def finite(value: object) -> float | None:
    """The number, or None for anything that is not a finite one."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None


def short(reason: str) -> str:
    """A reason as a label: ``wrong_class`` becomes ``wrong class``."""
    return reason.replace("_", " ")


def _last_epochs(details: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One entry per epoch, in order; an epoch that was trained again after a stop counts once."""
    return [e for _, e in sorted({int(d["epoch"]): d for d in details if "epoch" in d}.items())]
