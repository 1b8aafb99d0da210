"""What the report knows about a run: counts of everything, and the images and prompts that the page shows.

The ledger is read once, a page of rows at a time, so memory is bounded by what the page shows.
"""

from __future__ import annotations

import heapq
import statistics
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from segsmith.memory.ledger import (
    DecisionKind,
    DecisionRow,
    GuidanceRow,
    Ledger,
    ModelRow,
    PromptRow,
    RunSummary,
    UsageRow,
)
from segsmith.memory.real_images import RealSet
from segsmith.memory.run_folder import RunFolder
from segsmith.report.charts import BINS, bin_of
from segsmith.report.drawn import DrawnImage, check_files, each_image, prompt_ok
from segsmith.report.reader import DAMAGE, Reader, are_texts, finite
from segsmith.report.selection import Choice, Chosen, RoundRobin
from segsmith.types import Evaluation

DECISION_KINDS: tuple[DecisionKind, ...] = ("prompt", "verdict", "label", "mask")
PROMPT_CAP = 5_000
"""The largest number of prompts in the page; of more, a selection spread over classes and statuses."""
DECISIONS_SHOWN = 200
LAST_EPOCH = 1_000_000
NOTHING: Mapping[str, Any] = {}


@dataclass
class PromptCounts:
    """Counts of all prompts of a run."""

    status: Counter[str] = field(default_factory=Counter)
    admitted: Counter[str] = field(default_factory=Counter)
    """Class -> admitted prompts."""
    visits: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(Place, light) -> admitted prompts; "any" stands for none."""
    drop_problems: Counter[str] = field(default_factory=Counter)
    """Problem -> dropped prompts."""

    @property
    def written(self) -> int:
        return self.status.total()

    def add(self, prompt: PromptRow) -> None:
        self.status[prompt.status] += 1
        if prompt.status == "admitted":
            self.admitted[prompt.class_name] += 1
            place, light = (str(prompt.attributes.get(name) or "any") for name in ("place", "light"))
            self.visits[place, light] += 1
        if prompt.status == "dropped":
            self.drop_problems[str(prompt.critique.get("problem") or "").partition(":")[0]] += 1


@dataclass
class ProbabilityBins:
    """Numbers of images by the probability of the class they were drawn for, in the bins of a histogram."""

    accepted: list[int] = field(default_factory=lambda: [0] * BINS)
    rejected: list[int] = field(default_factory=lambda: [0] * BINS)


@dataclass
class ImageCounts:
    """Counts of all images of a run. Classes are those that images were drawn for."""

    drawn: Counter[str] = field(default_factory=Counter)
    judged: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    reject_reasons: Counter[str] = field(default_factory=Counter)
    labelled: int = 0
    """Accepted images with labels of any source."""
    masked: int = 0
    """Accepted images with a mask."""
    masks: int = 0
    pixels: Counter[str] = field(default_factory=Counter)
    """Class -> number of its pixels in all masks."""
    probabilities: dict[str, ProbabilityBins] = field(default_factory=lambda: defaultdict(ProbabilityBins))
    _sharpness: array[float] = field(default_factory=lambda: array("d"))
    # Eight bytes an image, because a median needs all values.

    @property
    def rejected(self) -> int:
        return self.judged.total() - self.accepted.total()

    @cached_property
    def median_sharpness(self) -> float | None:
        """Of the judged images, the unit in which sharpness is shown; asked for when all have been added."""
        return statistics.median(self._sharpness) if self._sharpness else None

    def add(self, image: DrawnImage) -> None:
        self.drawn[image.target] += 1
        if image.mask is not None:
            self.masks += 1
            self.pixels.update(image.mask.pixels)
        if image.verdict is None:
            return
        self.judged[image.target] += 1
        if image.is_accepted:
            self.accepted[image.target] += 1
            self.labelled += bool(image.labels)
            self.masked += image.mask is not None
        else:
            self.reject_reasons[image.verdict.reason] += 1
        probability, sharpness = (finite(image.verdict.scores.get(n)) for n in ("probability", "sharpness"))
        if probability is not None:
            bins = self.probabilities[image.target]
            (bins.accepted if image.is_accepted else bins.rejected)[bin_of(probability)] += 1
        if sharpness is not None:
            self._sharpness.append(sharpness)


@dataclass
class Events:
    """What the report shows of a run's events."""

    last: float | None = None
    """Unix time of the last one."""
    epochs: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """Of an epoch that was trained again after a stop, the last."""
    drawing_seconds: float | None = None
    shortfalls: dict[str, str] = field(default_factory=dict)
    """Class -> why its drawing ended early."""

    def add(self, at: float, kind: str, detail: Mapping[str, Any]) -> None:
        self.last = at
        if kind == "epoch":
            number = finite(detail.get("epoch"))
            if number is not None and 0 <= number <= LAST_EPOCH:
                self.epochs[int(number)] = detail
        elif kind == "drawn":
            seconds = finite(detail.get("seconds"))
            if seconds is not None:
                self.drawing_seconds = (self.drawing_seconds or 0.0) + seconds
        elif kind == "missing":
            self.shortfalls[str(detail.get("class", ""))] = str(detail.get("reason", ""))


@dataclass(frozen=True)
class Decisions:
    """What reviewers decided."""

    newest: Sequence[DecisionRow]
    """At most `DECISIONS_SHOWN`, the oldest first."""
    counts: Counter[str]
    """Kind and action -> number of all decisions."""
    prompts: Mapping[str, str]
    """Subject of `newest` -> the text of its prompt."""
    verdicts: Mapping[str, DecisionRow]
    """Image id -> decision about its verdict, of the images on the sheets."""


@dataclass(frozen=True)
class RunData:
    """Everything the report needs from a run.

    Damaged rows are left out. `problems` says in one sentence each what was left out and which files are
    missing; it is empty for an intact run.
    """

    prompt_counts: PromptCounts
    image_counts: ImageCounts
    chosen: Chosen
    """The images that the page shows."""
    prompts: Mapping[str, PromptRow]
    """The prompts that the page lists, in the order they were written: those of `chosen`, and others."""
    yields: Mapping[str, tuple[int, int]]
    """Prompt id -> number of (judged, accepted) images, of `prompts`."""
    undrawn: Mapping[str, int]
    """Reason -> number of requested images that were not drawn."""
    thresholds: Mapping[str, float]
    auc: Mapping[str, float]
    """Class -> `segsmith.agents.judge.decision.class_auc`."""
    summary: RunSummary
    evaluation: Mapping[str, Evaluation]
    versions: Mapping[str, str]
    epochs: Sequence[Mapping[str, Any]]
    """In order."""
    drawing_seconds: float | None
    shortfalls: Mapping[str, str]
    usage: Mapping[str, UsageRow]
    models: Mapping[str, ModelRow]
    decisions: Decisions
    guidance: Sequence[GuidanceRow]
    run_id: str
    last_event: float | None
    real_images: int | None
    """Images of the dataset that the run augments; None for a run that started from class names."""
    problems: Sequence[str]

    @property
    def held_out(self) -> Evaluation | None:
        """The score on split val: generated images, or the real ones of a run that augments a dataset."""
        keys = ("synthetic_val", "real_val", "real_val_guessed")
        return next((self.evaluation[key] for key in keys if key in self.evaluation), None)

    @property
    def test_set(self) -> Evaluation | None:
        """The score on the simulator's test set."""
        return self.evaluation.get("test_set")


def read_run(run: RunFolder, ledger: Ledger) -> RunData:
    """Read a run in whatever state it is, without changing it."""
    reader = Reader()
    return reader.complete(lambda: _read(run, ledger, reader))


def _read(run: RunFolder, ledger: Ledger, reader: Reader) -> RunData:
    image_counts, choice = ImageCounts(), Choice()
    for image in each_image(run, ledger, reader):
        image_counts.add(image)
        choice.add(image)
    chosen = choice.chosen()
    if run.remote is not None:  # its other files stay in the store
        _fetch(run, chosen, reader)
    prompt_counts, prompts = _prompts(ledger, reader, chosen)
    events = Events()
    for event in reader.each("events", ledger.each_event, _event_ok):
        events.add(*event)
    thresholds = reader.value("thresholds", lambda: ledger.thresholds, NOTHING)
    versions = reader.value("versions", lambda: ledger.versions, NOTHING)
    real_set = reader.value("list of real images", partial(RealSet.open, run.real), None)
    return RunData(
        prompt_counts=prompt_counts,
        image_counts=image_counts,
        chosen=chosen,
        prompts=prompts,
        yields=_yields(ledger, reader, prompts),
        undrawn=_undrawn(ledger, reader),
        thresholds={str(k): v for k, v in ((k, finite(v)) for k, v in thresholds.items()) if v is not None},
        auc=_auc(ledger, reader),
        summary=reader.value("summary", lambda: ledger.summary, RunSummary()),
        evaluation=_evaluation(ledger, reader),
        versions={str(name): str(version) for name, version in versions.items()},
        epochs=[detail for _, detail in sorted(events.epochs.items())],
        drawing_seconds=events.drawing_seconds,
        shortfalls=events.shortfalls,
        usage={row.role: row for row in reader.rows("usage", ledger.usage, _usage_ok)},
        models={row.role: row for row in reader.rows("models", ledger.models, _model_ok)},
        decisions=_decisions(ledger, reader, chosen),
        guidance=reader.rows("wishes", lambda: ledger.guidance(active_only=False), _guidance_ok),
        run_id=reader.value("run id", lambda: ledger.run_id, ""),
        last_event=events.last,
        real_images=None if real_set is None else len(real_set.images),
        problems=tuple(reader.problems),
    )


def _auc(ledger: Ledger, reader: Reader) -> dict[str, float]:
    judgement = reader.value("judgement", lambda: ledger.judgement, None)
    found = NOTHING if judgement is None else judgement.auc
    return {str(k): v for k, v in ((k, finite(v)) for k, v in found.items()) if v is not None}


def _fetch(run: RunFolder, chosen: Chosen, reader: Reader) -> None:
    """Fetch the files of the images that the page shows from the run's store, and count those that are missing."""
    masked = [image.id for image in chosen.on_sheets if image.mask is not None]
    run.fetch([image.id for image in chosen.on_sheets])
    run.fetch(masked, masks=True)
    check_files(run, [image.id for image in chosen.on_sheets], masked, reader)


def _prompts(ledger: Ledger, reader: Reader, chosen: Chosen) -> tuple[PromptCounts, dict[str, PromptRow]]:
    """`RunData.prompt_counts` and `RunData.prompts`."""
    counts, spread = PromptCounts(), RoundRobin[str](PROMPT_CAP)
    for prompt in reader.each("prompts", ledger.each_prompt, prompt_ok):
        counts.add(prompt)
        spread.add(f"{prompt.class_name}/{prompt.status}", prompt.id)
    wanted = {image.row.prompt_id for image in chosen.on_sheets}
    others = [prompt_id for prompt_id in spread.chosen() if prompt_id not in wanted]
    listed = [*wanted, *others[: max(PROMPT_CAP - len(wanted), 0)]]
    rows = reader.each("prompts", lambda: ledger.prompts_of(listed), prompt_ok, count=False)
    return counts, {prompt.id: prompt for prompt in rows}


def _yields(ledger: Ledger, reader: Reader, prompts: Iterable[str]) -> dict[str, tuple[int, int]]:
    """`RunData.yields`. The ledger sums them, so that one damaged verdict can make them infinite."""
    found = reader.value("yields", lambda: ledger.yields_of(list(prompts)), NOTHING)
    usable = {name: counts for name, counts in found.items() if all(isinstance(n, int) for n in counts)}
    reader.count("yields", DAMAGE, len(found) - len(usable), len(found))
    return usable


def _undrawn(ledger: Ledger, reader: Reader) -> dict[str, int]:
    counts = reader.value("undrawn images", ledger.undrawn_reasons, NOTHING)
    known = {reason: n for reason, n in counts.items() if are_texts(reason)}
    reader.count("undrawn images", DAMAGE, sum(counts.values()) - sum(known.values()), sum(counts.values()))
    return known


def _decisions(ledger: Ledger, reader: Reader, chosen: Chosen) -> Decisions:
    counts: Counter[str] = Counter()
    newest: list[tuple[int, DecisionRow]] = []  # a heap; no two decisions have the same number
    for kind in DECISION_KINDS:
        found = reader.each(f"{kind} decisions", partial(ledger.each_decision, kind), _decision_ok)
        for number, row in found:
            counts[f"{row.kind} {row.action}"] += 1
            heapq.heappush(newest, (number, row))
            if len(newest) > DECISIONS_SHOWN:
                heapq.heappop(newest)
    shown = [row for _, row in sorted(newest)]
    ids = [image.id for image in chosen.on_sheets]
    about = reader.value("verdict decisions", lambda: ledger.decisions("verdict", ids), NOTHING)
    subjects = [row.subject for row in shown]
    texts = reader.value("prompts of decisions", lambda: ledger.prompt_texts(subjects), NOTHING)
    return Decisions(
        newest=shown,
        counts=counts,
        prompts={subject: text for subject, text in texts.items() if are_texts(text)},
        verdicts={subject: row for subject, row in about.items() if _decision_ok((0, row))},
    )


def _evaluation(ledger: Ledger, reader: Reader) -> dict[str, Evaluation]:
    """The evaluations with finite numbers; one without a usable mIoU is left out."""
    found = {}
    for name, score in reader.value("evaluation", lambda: ledger.evaluation, NOTHING).items():
        miou = finite(score.miou)
        if miou is None:
            reader.state(f"The evaluation {name!r} has no usable mIoU.")
            continue
        square = len(score.confusion) == len(score.classes) and all(
            len(row) == len(score.classes) and all(finite(n) is not None for n in row)
            for row in score.confusion
        )
        found[name] = Evaluation(
            miou,
            {str(label): finite(iou) for label, iou in score.iou.items()},
            finite(score.pixel_accuracy) or 0.0,
            tuple(str(label) for label in score.classes),
            tuple(str(example) for example in score.examples),
            score.confusion if square else (),
        )
    return found


def _event_ok(row: tuple[float, str, Mapping[str, Any]]) -> bool:
    return finite(row[0]) is not None and isinstance(row[1], str) and isinstance(row[2], Mapping)


def _usage_ok(row: UsageRow) -> bool:
    counts = (row.calls, row.tokens_in, row.tokens_out, row.usd)
    return are_texts(row.role, row.model) and all(finite(n) is not None for n in counts)


def _model_ok(row: ModelRow) -> bool:
    return are_texts(row.role, row.name, row.revision, row.licence, row.source, row.sha256)


def _decision_ok(numbered: tuple[int, DecisionRow]) -> bool:
    row = numbered[1]
    return are_texts(row.kind, row.subject, row.action, row.note)


def _guidance_ok(row: GuidanceRow) -> bool:
    return are_texts(row.class_name, row.said)
