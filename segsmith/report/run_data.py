"""What the report knows about a run: one reading of its ledger that tolerates damage."""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from segsmith.errors import SegsmithError
from segsmith.memory.ledger import (
    DecisionKind,
    DecisionRow,
    GuidanceRow,
    ImageRow,
    Ledger,
    MaskRow,
    ModelRow,
    PromptRow,
    RunSummary,
    UndrawnRow,
    UsageRow,
    VerdictRow,
)
from segsmith.memory.real_images import RealSet
from segsmith.memory.run_folder import RunFolder, is_id
from segsmith.types import Evaluation

LABEL_SOURCES = ("prompt", "clip", "real", "relabel")
DECISION_KINDS: tuple[DecisionKind, ...] = ("prompt", "verdict", "label", "mask")
LAST_EPOCH = 1_000_000
NUMBERS = {
    "probability": "probability",
    "threshold": "threshold",
    "runner_up": "runner-up",
    "sharpness": "sharpness / median",
    "duplicate_cosine": "cosine to most similar image",
}
"""Score of a verdict -> its name on the page."""
NOTHING: Mapping[str, Any] = {}

Row = TypeVar("Row")
Kept = TypeVar("Kept")
Value = TypeVar("Value")


@dataclass(frozen=True)
class RunData:
    """Everything the report needs from a run, read once.

    Damaged rows are left out. `problems` says in one sentence each what was left out and which files are
    missing; it is empty for an intact run.
    """

    prompts: Mapping[str, PromptRow]
    images: Sequence[ImageRow]
    undrawn: Sequence[UndrawnRow]
    verdicts: Mapping[str, VerdictRow]
    """Image id -> verdict; of its scores only `NUMBERS`, since one for each class takes most of a ledger's memory."""
    labels: Mapping[str, Mapping[str, tuple[str, ...]]]
    """Source -> image id -> classes; without the scores."""
    masks: Mapping[str, float]
    """Image id -> share of its mask's pixels that are 255."""
    pixels: Mapping[str, int]
    """Class -> number of its pixels in all masks."""
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
    real_images: int | None
    """Images of the dataset that the run augments; None for a run that started from class names."""
    problems: Sequence[str]

    def target(self, image: ImageRow) -> str:
        """The class the image was drawn for."""
        return self.prompts[image.prompt_id].class_name

    @cached_property
    def accepted(self) -> list[ImageRow]:
        return [i for i in self.images if i.id in self.verdicts and self.verdicts[i.id].accepted]

    @cached_property
    def rejected(self) -> list[ImageRow]:
        return [i for i in self.images if i.id in self.verdicts and not self.verdicts[i.id].accepted]

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
    reader = _Reader()
    # Rows before what they refer to: a session may be writing, and what is read later is more complete.
    masks, pixels = _masks(ledger, reader)
    labels = {
        source: dict(reader.rows(f"{source} labels", partial(_label_sets, ledger, source), _label_ok))
        for source in LABEL_SOURCES
    }
    verdicts = reader.kept("verdicts", ledger.each_verdict, _verdict_ok, _shown_scores)
    images = reader.rows("images", ledger.images, _image_ok)
    prompts = {p.id: p for p in reader.rows("prompts", ledger.prompts, _prompt_ok)}
    known = [image for image in images if image.prompt_id in prompts]
    reader.count_lost("images", "belong to no known prompt", len(images) - len(known), len(images))
    events = reader.rows("events", ledger.events, _event_ok)
    decisions: dict[tuple[str, str], DecisionRow] = {}
    for kind in DECISION_KINDS:
        for row in reader.rows(f"{kind} decisions", partial(ledger.decisions, kind), _decision_ok):
            decisions[row.kind, row.subject] = row
    thresholds = reader.value("thresholds", lambda: ledger.thresholds, NOTHING)
    versions = reader.value("versions", lambda: ledger.versions, NOTHING)
    real_set = reader.value("list of real images", partial(RealSet.open, run.real), None)
    reader.missing_files(run.images.name, "image", [run.image(image.id) for image in known])
    reader.missing_files(run.masks.name, "mask", [run.mask(image_id) for image_id in masks])
    return RunData(
        prompts=prompts,
        images=known,
        undrawn=reader.rows("undrawn images", ledger.undrawn, lambda row: _texts(row.id, row.reason)),
        verdicts={v.image_id: v for v in verdicts},
        labels=labels,
        masks=masks,
        pixels=pixels,
        thresholds={str(k): v for k, v in ((k, finite(v)) for k, v in thresholds.items()) if v is not None},
        summary=reader.value("summary", lambda: ledger.summary, RunSummary()),
        evaluation=_evaluation(ledger, reader),
        versions={str(name): str(version) for name, version in versions.items()},
        epochs=_last_epochs(detail for _, kind, detail in events if kind == "epoch"),
        drawing=[detail for _, kind, detail in events if kind == "drawn"],
        shortfalls={
            str(detail.get("class", "")): str(detail.get("reason", ""))
            for _, kind, detail in events
            if kind == "missing"
        },
        usage={row.role: row for row in reader.rows("usage", ledger.usage, _usage_ok)},
        models={row.role: row for row in reader.rows("models", ledger.models, _model_ok)},
        decisions=decisions,
        guidance=reader.rows("wishes", lambda: ledger.guidance(active_only=False), _guidance_ok),
        run_id=reader.value("run id", lambda: ledger.run_id, ""),
        last_event=events[-1][0] if events else None,
        real_images=None if real_set is None else len(real_set.images),
        problems=tuple(reader.problems),
    )


def finite(value: object) -> float | None:
    """The number, or None for anything that is not a finite number."""
    try:
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond the range of floats
        pass
    return None


class _Reader:
    """Reads tables one by one and collects, in `problems`, what could not be used."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def value(self, name: str, read: Callable[[], Value], default: Value) -> Value:
        """What `read` returns, or `default` where that part of the ledger is damaged."""
        try:
            return read()
        except (SegsmithError, OSError):  # their messages name paths, which are not for the page
            self.problems.append(f"The {name} cannot be read.")
        except (sqlite3.Error, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            self.problems.append(f"The {name} cannot be read ({error}).")
        except RecursionError:
            self.problems.append(f"The {name} cannot be read (nested too deeply).")
        return default

    def rows(
        self, name: str, read: Callable[[], Iterable[Row] | Mapping[str, Row]], usable: Callable[[Row], bool]
    ) -> list[Row]:
        """The usable rows of a table."""
        return self.kept(name, read, usable, lambda row: row)

    def kept(
        self,
        name: str,
        read: Callable[[], Iterable[Row] | Mapping[str, Row]],
        usable: Callable[[Row], bool],
        keep: Callable[[Row], Kept],
    ) -> list[Kept]:
        """What `keep` keeps of each usable row of a table; the rest is not held where `read` is an iterator."""

        def read_all() -> tuple[list[Kept], int]:
            found, total = read(), 0
            kept: list[Kept] = []
            for row in found.values() if isinstance(found, Mapping) else found:
                total += 1
                if usable(row):
                    kept.append(keep(row))
            return kept, total

        nothing: tuple[list[Kept], int] = ([], 0)
        kept, total = self.value(name, read_all, nothing)
        self.count_lost(name, "are damaged and left out", total - len(kept), total)
        return kept

    def count_lost(self, name: str, what: str, lost: int, total: int) -> None:
        if lost:
            self.problems.append(f"{lost} of {total} {name} {what}.")

    def missing_files(self, folder: str, name: str, paths: Sequence[Path]) -> None:
        missing = sum(not path.exists() for path in paths)
        self.count_lost(f"{name} files", f"are missing from {folder}/", missing, len(paths))


def _masks(ledger: Ledger, reader: _Reader) -> tuple[dict[str, float], Counter[str]]:
    """`RunData.masks` and `RunData.pixels`."""
    pixels: Counter[str] = Counter()

    def keep(row: MaskRow) -> tuple[str, float]:
        pixels.update(row.pixels)
        return row.image_id, row.ignore_share

    masks = dict(reader.kept("masks", ledger.each_mask, _mask_ok, keep))
    return masks, pixels if masks else Counter()  # a table that breaks off is left out whole


def _shown_scores(row: VerdictRow) -> VerdictRow:
    return replace(row, scores={name: row.scores[name] for name in NUMBERS if name in row.scores})


def _evaluation(ledger: Ledger, reader: _Reader) -> dict[str, Evaluation]:
    """The evaluations with finite numbers; one without a usable mIoU is left out."""
    found = {}
    for name, score in reader.value("evaluation", lambda: ledger.evaluation, NOTHING).items():
        miou = finite(score.miou)
        if miou is None:
            reader.problems.append(f"The evaluation {name!r} has no usable mIoU.")
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


def _last_epochs(details: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One entry per epoch, in order; of an epoch that was trained again after a stop, the last."""
    numbered = ((finite(detail.get("epoch")), detail) for detail in details)
    return [
        detail
        for _, detail in sorted(
            {int(n): detail for n, detail in numbered if n is not None and 0 <= n <= LAST_EPOCH}.items()
        )
    ]


def _texts(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


def _prompt_ok(row: PromptRow) -> bool:
    return (
        _texts(row.id, row.class_name, row.text, row.status, *row.classes)
        and (row.parent_id is None or isinstance(row.parent_id, str))
        and isinstance(row.attributes, Mapping)
        and isinstance(row.critique, Mapping)
    )


def _image_ok(row: ImageRow) -> bool:
    return _texts(row.prompt_id, row.backend) and is_id(row.id)


def _verdict_ok(row: VerdictRow) -> bool:
    return _texts(row.image_id, row.reason) and isinstance(row.scores, Mapping)


def _label_sets(ledger: Ledger, source: str) -> Iterable[tuple[str, tuple[str, ...]]]:
    return ledger.label_sets(source).items()


def _label_ok(row: tuple[str, tuple[str, ...]]) -> bool:
    return _texts(row[0], *row[1])


def _mask_ok(row: MaskRow) -> bool:
    return (
        is_id(row.image_id)
        and isinstance(row.pixels, Mapping)
        and all(finite(n) is not None for n in row.pixels.values())
        and finite(row.ignore_share) is not None
    )


def _event_ok(row: tuple[float, str, dict[str, Any]]) -> bool:
    return finite(row[0]) is not None and isinstance(row[1], str) and isinstance(row[2], Mapping)


def _usage_ok(row: UsageRow) -> bool:
    counts = (row.calls, row.tokens_in, row.tokens_out, row.usd)
    return _texts(row.role, row.model) and all(finite(n) is not None for n in counts)


def _model_ok(row: ModelRow) -> bool:
    return _texts(row.role, row.name, row.revision, row.licence, row.source, row.sha256)


def _decision_ok(row: DecisionRow) -> bool:
    return _texts(row.kind, row.subject, row.action, row.note)


def _guidance_ok(row: GuidanceRow) -> bool:
    return _texts(row.class_name, row.said)
