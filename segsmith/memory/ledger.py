"""The run's SQLite ledger: prompts, images, verdicts, labels, masks and events.

Files are written before their rows are committed, so a row never names an incomplete file. Every write is an upsert,
and ids are derived from content, so running a step twice changes nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from segsmith.memory.schema import open_ledger, open_ledger_read_only
from segsmith.types import ClassTally, Evaluation, Sighting, Testimony

EVIDENCE = """
SELECT e.image_id, i.prompt_id, p.class_name, p.classes, e.cosines, e.sharpness, e.blank, e.duplicate_cosine,
       e.text_shares, COALESCE(l.scores, '{}'), e.rowid,
       (SELECT json_group_object(t.witness, json(t.scores)) FROM testimonies t WHERE t.image_id=e.image_id)
FROM evidence e JOIN images i ON i.id=e.image_id JOIN prompts p ON p.id=i.prompt_id
LEFT JOIN labels l ON l.image_id=e.image_id AND l.source='real'"""
MOST_VARIABLES = 10_000
"""Values compared in one statement; SQLite allows about 32,000."""
COUNT_TRANSACTION = """
INSERT INTO meta VALUES ('sequence', '1')
ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1
"""

PAGE = 1000
"""Number of rows that are read at a time where a table is read bit by bit."""

PromptStatus = Literal["admitted", "refined", "dropped"]


@dataclass(frozen=True)
class PromptRow:
    """A prompt, its status and its critique."""

    id: str
    class_name: str
    text: str
    classes: tuple[str, ...]
    attributes: Mapping[str, str]
    parent_id: str | None
    round: int
    status: PromptStatus
    critique: Mapping[str, Any]


@dataclass(frozen=True)
class ImageRow:
    """A drawn image."""

    id: str
    prompt_id: str
    seed: int
    backend: str
    round: int
    sha256: str


@dataclass(frozen=True)
class UndrawnRow:
    """An image that was requested but not finished; it is not tried again."""

    id: str
    prompt_id: str
    round: int
    reason: Literal["filtered", "refused", "unsafe"]
    detail: str = ""


@dataclass(frozen=True)
class VerdictRow:
    """The judge's decision on an image. `reason` is a `VerdictReason`, or what another version stored."""

    image_id: str
    accepted: bool
    reason: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Evidence:
    """What was measured of an image, once, and what its prompt asked for: all that a verdict is made from."""

    image_id: str
    prompt_id: str
    target: str
    """The class that the prompt was written for."""
    asked: tuple[str, ...]
    """Every class that the prompt names."""
    cosines: tuple[float, ...]
    """CLIP cosine with each class of the list, then with each background prompt."""
    sharpness: float
    blank: bool
    duplicate_cosine: float
    """Likeness to the most similar earlier image, in [-1, 1]."""
    text_shares: tuple[float, ...] = ()
    """The prompt's own probability of each class (prompt space of SynthSeg-Agents Fig. 3)."""
    real: Mapping[str, float] = field(default_factory=dict)
    """Class -> probability by the classifier trained on real images; only classes that it may judge."""
    heard: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Witness -> class -> how sure it is that the class is there."""
    signature: bytes = b""
    """Little-endian float32, compared with later images; `Ledger.signatures` reads it."""


@dataclass(frozen=True)
class LabelRow:
    """Image labels from one source: prompt, CLIP, classifier trained on real images, agreement, or relabelling ViT.

    Those of "relabel" are final. Its scores are the ViT's, and those of "agreement" follow from all sources.
    """

    image_id: str
    source: Literal["prompt", "clip", "real", "agreement", "relabel"]
    classes: tuple[str, ...]
    scores: Mapping[str, float] = field(default_factory=dict)


WitnessKind = Literal["detector", "vlm", "attention"]


@dataclass(frozen=True)
class TestimonyRow:
    """What a witness said about an image. `model` is the witness's `name`."""

    __test__ = False  # not a test class, whatever its name

    image_id: str
    witness: WitnessKind
    model: str
    testimony: Testimony


@dataclass(frozen=True)
class MaskRow:
    """Facts about a mask; the mask itself is the file `RunFolder.mask`."""

    image_id: str
    pixels: Mapping[str, int]
    ignore_share: float
    """Share of the pixels that are 255."""
    sources: Mapping[str, Any]
    """How each component was found, and the labels that the mask was made for."""
    sha256: str = ""
    """Of the file; "" in ledgers of schema 3 and earlier."""


@dataclass(frozen=True)
class UsageRow:
    """Cost of calls of an LLM or image model; rows add up."""

    role: Literal["llm", "images"]
    model: str
    calls: int
    tokens_in: int = 0
    tokens_out: int = 0
    images: int = 0
    usd: float = 0.0


@dataclass(frozen=True)
class ModelRow:
    """A model that the run used, for provenance."""

    role: Literal["llm", "images", "judge", "detector", "vlm", "labeler", "masks", "segmenter"]
    name: str
    revision: str = ""
    licence: str = ""
    source: Literal["package", "hub", "file", "url"] = "package"
    sha256: str = ""


DecisionSource = Literal["terminal", "file", "server"]
DecisionKind = Literal["prompt", "verdict", "label", "mask"]


@dataclass(frozen=True)
class DecisionRow:
    """A reviewer's decision, which overrides the agents."""

    kind: DecisionKind
    subject: str
    action: Literal["accept", "reject", "edit"]
    value: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    source: DecisionSource = "terminal"


@dataclass(frozen=True)
class GuidanceRow:
    """A reviewer's standing wish for future prompts. `id` is 0 until it is in the ledger."""

    class_name: str
    said: str
    wish: Mapping[str, Any]
    active: bool = True
    id: int = 0


@dataclass(frozen=True)
class RunSummary:
    """What a run has taken so far, over all its sessions."""

    wall_seconds: float = 0.0
    """Without the time that a reviewer took to decide."""
    peak_memory_mb: float = 0.0
    images_per_second: float = 0.0
    """While drawing."""
    command: str = ""
    """The command that the last session was started with."""


@dataclass(frozen=True)
class DatasetInputs:
    """What the exported dataset was made from, as hashes; compared with the ledger they show what is out of date.

    Hashes, because a ledger that listed a million images here would read them whenever the run is opened. "" equals
    nothing, so it marks a part as out of date.
    """

    accepted: str
    """Of the ids of the accepted images."""
    labels: str
    """Of the classes of the accepted images that are labelled."""
    masked: str
    """Of the ids of the accepted images whose mask no reviewer rejected."""


@dataclass(frozen=True)
class FileCheck:
    """When the files of a part of the run were last known to be those that were written (`files.Unchanged`)."""

    at: int
    """Nanoseconds, by the clock of the file system."""
    inode: int
    """Of the run folder; a copy of it has another, and is checked again."""
    files: int = -1
    """Number of files after the check (`files.count_unchanged`); -1 if one had changed, or they were not counted.

    While it stays the same, none of them has changed or is gone, so they need not be compared one by one.
    """


@dataclass(frozen=True)
class Judgement:
    """What the verdicts in the ledger follow from."""

    centre: tuple[float, ...]
    """Subtracted from the cosines of an image; () where there were too few images."""
    thresholds: Mapping[str, float]
    """Class -> probability that an image must reach."""
    like_real: Mapping[str, float]
    """Class -> probability by the classifier trained on real images that an image must reach."""
    sharpness: float
    """Median over images."""
    auc: Mapping[str, float] = field(default_factory=dict)
    """Class -> area under the ROC curve of CLIP's cosine with it, in [0, 1]; see `decision.class_auc`."""
    settings: str = ""
    """The judge's settings and the quotas, as JSON."""
    measured: int = 0
    """Images with evidence rows up to this one have a verdict."""
    decisions: int = 0
    """Reviewer's decisions up to this one are in the verdicts."""
    testimonies: int = 0
    """What witnesses said up to this one is in the verdicts."""


@dataclass(frozen=True)
class Passed:
    """An image that passed the judge's tests of single images."""

    image_id: str
    prompt_id: str
    probability: float
    """Of the prompt's class."""
    order: int
    """Grows in the order of measuring."""
    reason: str = ""
    """That of its verdict so far; "" for none."""


@dataclass(frozen=True)
class StepCounts:
    """Prompts written and admitted, and images drawn, accepted, labelled and masked."""

    STEPS: ClassVar = ("written", "admitted", "drawn", "accepted", "labelled", "masked")

    written: int = 0
    admitted: int = 0
    drawn: int = 0
    accepted: int = 0
    labelled: int = 0
    """Accepted images that were relabelled."""
    masked: int = 0
    """Accepted images with a mask."""

    @property
    def values(self) -> tuple[int, ...]:
        """The counts in the order of `STEPS`."""
        return tuple(getattr(self, step) for step in self.STEPS)


Value = TypeVar("Value")


class _Meta(Generic[Value]):
    """A property of the ledger, stored as JSON under `key` in table meta; `decode` gets None where it is unset."""

    def __init__(
        self, key: str, decode: Callable[[Any], Value], encode: Callable[[Value], Any] = lambda value: value
    ) -> None:
        self._key = key
        self._decode = decode
        self._encode = encode

    @overload
    def __get__(self, ledger: None, owner: type) -> _Meta[Value]: ...
    @overload
    def __get__(self, ledger: Ledger, owner: type) -> Value: ...
    def __get__(self, ledger: Ledger | None, owner: type) -> _Meta[Value] | Value:
        if ledger is None:
            return self
        row = ledger._one("SELECT value FROM meta WHERE key=?", self._key)
        return self._decode(None if row is None else json.loads(row[0]))

    def __set__(self, ledger: Ledger, value: Value) -> None:
        with ledger.transaction():
            ledger._db.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", (self._key, _dump(self._encode(value)))
            )


def _mapping(stored: Any) -> Mapping[str, Any]:
    return dict(stored or {})


def _summary(stored: Any) -> RunSummary:
    known = RunSummary.__dataclass_fields__
    return RunSummary(**{key: value for key, value in (stored or {}).items() if key in known})


def _evaluations(stored: Any) -> Mapping[str, Evaluation]:
    """Ledgers written before the test set had that name call it "real"."""
    return {
        "test_set" if name == "real" else name: Evaluation(
            miou=math.nan if score.get("miou") is None else score["miou"],
            iou={c: _finite(iou) for c, iou in score.get("iou", {}).items()},
            pixel_accuracy=math.nan if score.get("pixel_accuracy") is None else score["pixel_accuracy"],
            classes=tuple(score.get("classes", score.get("iou", {}))),
            examples=tuple(score.get("examples", ())),
            confusion=tuple(map(tuple, score.get("confusion", ()))),
        )
        for name, score in (stored or {}).items()
    }


def _stored_evaluations(scores: Mapping[str, Evaluation]) -> dict[str, Any]:
    return {
        name: {**asdict(score), "iou": {c: _finite(iou) for c, iou in score.iou.items()}}
        for name, score in scores.items()
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _inputs(stored: Any) -> DatasetInputs | None:
    if stored is None:
        return None
    if isinstance(stored["verdict"], str):
        return DatasetInputs(stored["verdict"], stored["label"], stored["mask"])
    # Ledgers of earlier versions hold the lists themselves.
    labels = (_labelled(image_id, _dump(classes)) for image_id, classes in stored["label"])
    return DatasetInputs(_hash_of(stored["verdict"]), _hash_of(labels), _hash_of(stored["mask"]))


def _stored_inputs(inputs: DatasetInputs | None) -> Any:
    if inputs is None:
        return None
    return {"verdict": inputs.accepted, "label": inputs.labels, "mask": inputs.masked}


def _labelled(image_id: str, classes: str) -> str:
    """A line of `DatasetInputs.labels`; `classes` is a JSON list."""
    return f"{image_id} {classes}"


def _hash_of(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _checks(stored: Any) -> Mapping[str, FileCheck]:
    return {part: FileCheck(**check) for part, check in (stored or {}).items()}


def _judgement(stored: Any) -> Judgement | None:
    return None if stored is None else Judgement(**{**stored, "centre": tuple(stored["centre"])})


def _auto(stored: Any) -> tuple[str, ...]:
    return tuple((stored or {}).get("auto", ()))


class Ledger:
    """Typed access to the run's database; safe to share between threads of one process."""

    schema_version = _Meta("schema_version", int)
    run_id = _Meta("run_id", lambda stored: str(stored or ""))
    """The run's name in a prompt memory that several runs share; "" before the first prompt."""
    fixed_settings: _Meta[Mapping[str, Any]] = _Meta("fixed_settings", _mapping)
    """Setting -> value, of the settings that give the stored data its meaning (`run_config.FIXED`)."""
    versions: _Meta[Mapping[str, str]] = _Meta("versions", _mapping)
    """Package -> version, of the last session."""
    summary = _Meta("summary", _summary, asdict)
    thresholds: _Meta[Mapping[str, float]] = _Meta("thresholds", _mapping)
    """Class -> probability that an image must reach, of the last judgement."""
    judgement: _Meta[Judgement | None] = _Meta(
        "judgement", _judgement, lambda value: None if value is None else asdict(value)
    )
    """None before the first judgement, and where images were removed since the last one."""
    logit_scale = _Meta("logit_scale", lambda stored: float(stored or 1.0))
    """CLIP's logit scale, by which the judge multiplies cosines."""
    region_centre: _Meta[list[float] | None] = _Meta("region_centre", lambda stored: stored)
    """Median cosine of each text over regions; empty where there were too few, None before it was measured."""
    testimonies_made = _Meta("testimonies_made", lambda stored: int(stored or 0))
    """Number of testimonies written so far; with one of another model in its place, a testimony counts again."""
    _planned: _Meta[Mapping[str, Any]] = _Meta("planned", _mapping)
    """``round`` and ``prompts`` of the last `plan_round`."""
    batch_sizes: _Meta[Mapping[str, int]] = _Meta("image_batch_size", _mapping)
    """Image backend -> the batch size that fitted, so that a resumed run does not run out of memory again."""
    patch_scores_sha256 = _Meta("patch_scores_sha256", lambda stored: str(stored or ""))
    """Of ``patch_scores.npz``; "" in ledgers of schema 3 and earlier."""
    evaluation = _Meta("evaluation", _evaluations, _stored_evaluations)
    """Keys: synthetic_val (held-out generated images), real_val (held-out real ones), real_val_guessed (without
    masks of their own), test_set (simulator)."""
    built_from = _Meta("built_from", _inputs, _stored_inputs)
    """What the exported dataset was made from; None before the first export."""
    checked: _Meta[Mapping[str, FileCheck]] = _Meta(
        "checked", _checks, lambda value: {part: asdict(check) for part, check in value.items()}
    )
    """``masks`` and ``dataset`` -> the last check of these files."""
    finished_at: _Meta[float | None] = _Meta("finished_at", lambda stored: stored)
    """Unix time at which the run finished; None while it has not."""
    auto: _Meta[tuple[str, ...]] = _Meta("review", _auto, lambda value: {"auto": value})
    """What a reviewer leaves to the agents: kinds of decision, ``class:<name>``, or ``all``."""
    set_aside: _Meta[Mapping[str, int]] = _Meta("set_aside", _mapping)
    """"images" and "masks" -> how many the last session could not make, because units of work failed."""

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        """Open the ledger, creating or migrating it unless `read_only`.

        Raises `SegsmithError` for a file that is no ledger or of a version that is not supported.
        """
        self._lock = threading.RLock()
        self._depth = 0
        self._upserts: dict[str, str] = {}
        self.read_only = read_only
        self._db = open_ledger_read_only(Path(path)) if read_only else open_ledger(path)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # -- writing ----------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all that is written inside, or nothing of it; transactions nest, and the outermost commits."""
        with self._lock:
            self._depth += 1
            try:
                yield
                if self._depth == 1:
                    self._db.execute(COUNT_TRANSACTION)
                    self._db.commit()
            except BaseException:
                if self._depth == 1:
                    self._db.rollback()
                raise
            finally:
                self._depth -= 1

    def add_prompts(self, rows: Iterable[PromptRow]) -> None:
        self._upsert(
            "prompts",
            [
                (r.id, r.class_name, r.text, _dump(r.classes), _dump(r.attributes), r.parent_id, r.round,
                 r.status, _dump(r.critique))
                for r in rows
            ],
        )  # fmt: skip

    def add_pending_image(self, image_id: str, sha256: str) -> None:
        """Record the hash of an image before its file is written, so that a later session can trust the file."""
        self.add_pending_images({image_id: sha256})

    def add_pending_images(self, hashes: Mapping[str, str]) -> None:
        """As `add_pending_image`, for image id -> SHA-256."""
        self._upsert("pending_images", list(hashes.items()))

    def add_images(self, rows: Iterable[ImageRow]) -> None:
        """Add images whose files are written; they are pending no longer."""
        rows = list(rows)
        with self.transaction():
            self._upsert("images", [(r.id, r.prompt_id, r.seed, r.backend, r.round, r.sha256) for r in rows])
            self._db.executemany("DELETE FROM pending_images WHERE id=?", [(r.id,) for r in rows])

    def add_undrawn(self, rows: Iterable[UndrawnRow]) -> None:
        self._upsert("undrawn", [(r.id, r.prompt_id, r.round, r.reason, r.detail) for r in rows])

    def add_verdicts(self, rows: Iterable[VerdictRow]) -> None:
        self._upsert("verdicts", [(r.image_id, int(r.accepted), r.reason, _dump(r.scores)) for r in rows])

    def set_reasons(self, reasons: Mapping[str, tuple[bool, str]]) -> None:
        """Image id -> (accepted, reason) of verdicts that change and keep their numbers."""
        with self.transaction():
            self._db.executemany(
                "UPDATE verdicts SET accepted=?, reason=? WHERE image_id=?",
                [(int(accepted), reason, image_id) for image_id, (accepted, reason) in reasons.items()],
            )

    def add_evidence(self, rows: Iterable[Evidence]) -> None:
        """Store what was measured of images; the rest of an `Evidence` is read from their prompts and labels."""
        self._upsert(
            "evidence",
            [
                (r.image_id, _dump(r.cosines), _dump(r.text_shares), r.sharpness, int(r.blank),
                 r.duplicate_cosine, r.signature)
                for r in rows
            ],
        )  # fmt: skip

    def replace_class_scores(self, rows: Iterable[tuple[str, Sequence[float], Sequence[float]]]) -> None:
        """Replace cosines and text shares of measured images; rows are (image id, cosines, text shares)."""
        with self.transaction():
            self._db.executemany(
                "UPDATE evidence SET cosines=?2, text_shares=?3 WHERE image_id=?1",
                [(image_id, _dump(cosines), _dump(shares)) for image_id, cosines, shares in rows],
            )

    def add_labels(self, rows: Iterable[LabelRow]) -> None:
        self._upsert("labels", [(r.image_id, r.source, _dump(r.classes), _dump(r.scores)) for r in rows])

    def forget_labels(self, source: str) -> None:
        """Delete the labels of one source."""
        with self.transaction():
            self._db.execute("DELETE FROM labels WHERE source=?", (source,))

    def add_testimonies(self, rows: Iterable[TestimonyRow]) -> None:
        values = [(r.image_id, r.witness, r.model, *map(_dump, testimony_columns(r.testimony))) for r in rows]
        with self.transaction():
            self._upsert("testimonies", values)
            self.testimonies_made += len(values)

    def add_masks(self, rows: Iterable[MaskRow]) -> None:
        self._upsert(
            "masks",
            [(r.image_id, _dump(r.pixels), r.ignore_share, _dump(r.sources), r.sha256) for r in rows],
        )

    def forget_images(self, ids: Iterable[str]) -> None:
        """Delete images with everything that was derived from them, so that they are drawn again."""
        of_image = [
            ("images", "id"),
            *((t, "image_id") for t in ("verdicts", "evidence", "testimonies", "labels", "masks")),
        ]
        keys = [(i,) for i in ids]
        with self.transaction():
            for table, column in reversed(of_image):
                self._db.executemany(f"DELETE FROM {table} WHERE {column}=?", keys)
            self._db.execute("DELETE FROM meta WHERE key='judgement'")

    def forget_masks(self, ids: Iterable[str]) -> None:
        """Delete masks, so that they are made again."""
        with self.transaction():
            self._db.executemany("DELETE FROM masks WHERE image_id=?", [(i,) for i in ids])

    def add_usage(self, row: UsageRow) -> None:
        self._append(
            "usage",
            ("role", "model", "calls", "tokens_in", "tokens_out", "images", "usd"),
            (row.role, row.model, row.calls, row.tokens_in, row.tokens_out, row.images, row.usd),
        )

    def add_models(self, rows: Iterable[ModelRow]) -> None:
        self._upsert("models", [(r.role, r.name, r.revision, r.licence, r.source, r.sha256) for r in rows])

    def add_decision(self, row: DecisionRow) -> None:
        self._append(
            "decisions",
            ("kind", "subject", "action", "value", "note", "source"),
            (row.kind, row.subject, row.action, _dump(row.value), row.note, row.source),
        )

    def mark_seen(self, kind: DecisionKind, decisions: Mapping[str, str]) -> None:
        """Remember that a reviewer has seen these subjects, each with the agents' decision at that time."""
        self._upsert("seen", [(kind, subject, decision) for subject, decision in decisions.items()])

    def unmark(self, kind: DecisionKind, subject: str) -> None:
        """Forget that a reviewer has seen a subject."""
        with self.transaction():
            self._db.execute("DELETE FROM seen WHERE kind=? AND subject=?", (kind, subject))

    def add_guidance(self, row: GuidanceRow) -> None:
        self._append(
            "guidance",
            ("class_name", "said", "wish", "active"),
            (row.class_name, row.said, _dump(row.wish), int(row.active)),
        )

    def set_guidance(self, guidance_id: int, *, wish: Mapping[str, Any] | None = None, active: bool) -> None:
        """Edit, withdraw or reactivate a wish."""
        with self.transaction():
            self._db.execute(
                "UPDATE guidance SET active=?1, wish=COALESCE(?2, wish) WHERE id=?3",
                (int(active), None if wish is None else _dump(wish), guidance_id),
            )

    def log(self, kind: str, **detail: Any) -> None:
        """Append an event; `detail` must be JSON."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO events (at, kind, detail) VALUES (?, ?, ?)", (time.time(), kind, _dump(detail))
            )

    # -- reading ----------------------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        """Number of transactions committed so far, over all sessions.

        Each checkpoint of the graph records it. A ledger whose number is below that of a checkpoint has lost
        transactions that the checkpoint relies on (a lost write-ahead log, an older backup).
        """
        row = self._one("SELECT value FROM meta WHERE key='sequence'")
        return 0 if row is None else int(row[0])

    @property
    def has_prompts(self) -> bool:
        return self._one("SELECT 1 FROM prompts LIMIT 1") is not None

    @property
    def has_images(self) -> bool:
        return self._one("SELECT 1 FROM images LIMIT 1") is not None

    def prompts(self, status: PromptStatus | None = None) -> list[PromptRow]:
        """Prompts in the order they were written, of one status or all."""
        rows = self._all("SELECT * FROM prompts WHERE ?1 IS NULL OR status=?1 ORDER BY rowid", status)
        return [_prompt(row) for row in rows]

    def each_prompt(self) -> Iterator[PromptRow]:
        """The rows of `prompts`, read in pages; the ledger may be written to in between."""
        return map(
            _prompt, self._pages("SELECT *, rowid FROM prompts WHERE rowid > ? ORDER BY rowid LIMIT ?")
        )

    def prompts_of(self, ids: Sequence[str]) -> list[PromptRow]:
        """These prompts in the order they were written; ids of none are left out."""
        sql = "SELECT *, rowid FROM prompts WHERE id"
        rows = [row for part in _parts(ids) for row in self._all(_among(sql, part), *part)]
        return [_prompt(row[:-1]) for row in sorted(rows, key=lambda row: row[-1])]

    def prompt_texts(self, ids: Sequence[str]) -> dict[str, str]:
        """Prompt or image id -> the text of the prompt; ids of neither are left out."""
        image = "SELECT i.id, p.text FROM images i JOIN prompts p ON p.id=i.prompt_id WHERE i.id"
        return {
            row[0]: row[1]
            for sql in ("SELECT id, text FROM prompts WHERE id", image)
            for part in _parts(ids)
            for row in self._all(_among(sql, part), *part)
        }

    def yields_of(self, prompt_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Prompt id -> (images judged, accepted)."""
        sql = "SELECT prompt_id, judged, accepted FROM prompt_counts WHERE prompt_id"
        return {
            row[0]: (row[1], row[2])
            for part in _parts(prompt_ids)
            for row in self._all(_among(sql, part), *part)
        }

    def classes_of(self, kind: DecisionKind, ids: Sequence[str]) -> dict[str, str]:
        """Prompt or image id -> the class it was made for; `kind` says which of them `ids` are."""
        sql = "SELECT i.id, p.class_name FROM images i JOIN prompts p ON p.id=i.prompt_id WHERE i.id"
        if kind == "prompt":
            sql = "SELECT p.id, p.class_name FROM prompts p WHERE p.id"
        return {row[0]: row[1] for part in _parts(ids) for row in self._all(_among(sql, part), *part)}

    def prompt(self, prompt_id: str) -> PromptRow:
        row = self._one("SELECT * FROM prompts WHERE id=?", prompt_id)
        if row is None:
            raise KeyError(prompt_id)
        return _prompt(row)

    def image(self, image_id: str) -> ImageRow:
        """Raises `KeyError` for an image that was not drawn."""
        row = self._one("SELECT * FROM images WHERE id=?", image_id)
        if row is None:
            raise KeyError(image_id)
        return ImageRow(*row)

    def images(self, *, judged: bool | None = None) -> list[ImageRow]:
        """Images in the order they were drawn; `judged` keeps those with, or without, a verdict."""
        where = {None: "1", True: "v.image_id NOT NULL", False: "v.image_id IS NULL"}[judged]
        rows = self._all(
            f"SELECT i.* FROM images i LEFT JOIN verdicts v ON v.image_id=i.id WHERE {where} ORDER BY i.rowid"
        )
        return [ImageRow(*row) for row in rows]

    def each_image(self) -> Iterator[tuple[ImageRow, str | None]]:
        """Images in the order they were drawn, read in pages, each with the SHA-256 of its mask's file.

        The hash is None for an image without a mask, and "" for some masks (`MaskRow.sha256`).
        """
        for *image, sha256 in self._pages(
            """SELECT i.*, m.sha256, i.rowid FROM images i LEFT JOIN masks m ON m.image_id=i.id
               WHERE i.rowid > ? ORDER BY i.rowid LIMIT ?"""
        ):
            yield ImageRow(*image), sha256

    def each_drawn(self) -> Iterator[ImageRow]:
        """The rows of `images`, read in pages; the ledger may be written to in between."""
        rows = self._pages("SELECT *, rowid FROM images WHERE rowid > ? ORDER BY rowid LIMIT ?")
        return (ImageRow(*row) for row in rows)

    def pending_images(self) -> dict[str, str]:
        """Image id -> SHA-256 that its file must have, of images without a row yet."""
        return dict(self._all("SELECT id, sha256 FROM pending_images"))

    def unmeasured(self) -> list[ImageRow]:
        """Images without evidence, in the order they were drawn."""
        rows = self._all(
            """SELECT i.* FROM images i LEFT JOIN evidence e ON e.image_id=i.id
               WHERE e.image_id IS NULL ORDER BY i.rowid"""
        )
        return [ImageRow(*row) for row in rows]

    def measured(self, ids: Sequence[str]) -> set[str]:
        """Those of these images that have evidence; `ids` are at most some thousand."""
        marks = ", ".join("?" * len(ids))
        return {
            row[0] for row in self._all(f"SELECT image_id FROM evidence WHERE image_id IN ({marks})", *ids)
        }

    def drawn_among(self, ids: Sequence[str]) -> set[str]:
        """Those of these images that have a row."""
        sql = "SELECT id FROM images WHERE id"
        return {row[0] for part in _parts(ids) for row in self._all(_among(sql, part), *part)}

    def undrawn(self) -> list[UndrawnRow]:
        """Images that were not finished, in order."""
        return [UndrawnRow(*row) for row in self._all("SELECT * FROM undrawn ORDER BY rowid")]

    def undrawn_reasons(self) -> dict[str, int]:
        """Reason -> number of images that were not finished, the most frequent reason first."""
        rows = self._all(
            "SELECT reason, COUNT(*) FROM undrawn GROUP BY reason ORDER BY COUNT(*) DESC, MIN(rowid)"
        )
        return dict(rows)

    def accepted(self, at_most: int = -1) -> list[ImageRow]:
        """Accepted images in the order they were drawn; the first `at_most` of them, or all."""
        rows = self._all(
            "SELECT i.* FROM images i JOIN verdicts v ON v.image_id=i.id WHERE v.accepted ORDER BY i.rowid LIMIT ?",
            at_most,
        )
        return [ImageRow(*row) for row in rows]

    def accepted_ids(self) -> list[str]:
        """Ids of the accepted images in the order they were drawn."""
        sql = "SELECT i.id FROM images i JOIN verdicts v ON v.image_id=i.id WHERE v.accepted ORDER BY i.rowid"
        return [image_id for (image_id,) in self._all(sql)]

    def verdicts(self) -> dict[str, VerdictRow]:
        return {verdict.image_id: verdict for verdict in self.each_verdict()}

    def each_verdict(self) -> Iterator[VerdictRow]:
        """The rows of `verdicts`, read in pages; the ledger may be written to in between."""
        for image_id, accepted, reason, scores in self._pages(
            "SELECT image_id, accepted, reason, scores, rowid FROM verdicts WHERE rowid > ? ORDER BY rowid LIMIT ?"
        ):
            yield VerdictRow(image_id, bool(accepted), reason, json.loads(scores))

    def verdicts_of(self, ids: Sequence[str]) -> Iterator[VerdictRow]:
        """The verdicts on these images."""
        sql = "SELECT image_id, accepted, reason, scores FROM verdicts WHERE image_id"
        for part in _parts(ids):
            for image_id, accepted, reason, scores in self._all(_among(sql, part), *part):
                yield VerdictRow(image_id, bool(accepted), reason, json.loads(scores))

    def verdict(self, image_id: str) -> VerdictRow:
        """Raises `KeyError` for an image without one."""
        row = self._one("SELECT image_id, accepted, reason, scores FROM verdicts WHERE image_id=?", image_id)
        if row is None:
            raise KeyError(image_id)
        return VerdictRow(row[0], bool(row[1]), row[2], json.loads(row[3]))

    def mask(self, image_id: str) -> MaskRow:
        """Raises `KeyError` for an image without one."""
        row = self._one(
            "SELECT image_id, pixels, ignore_share, sources, sha256 FROM masks WHERE image_id=?", image_id
        )
        if row is None:
            raise KeyError(image_id)
        return MaskRow(row[0], json.loads(row[1]), row[2], json.loads(row[3]), row[4])

    def evidence(self, ids: Sequence[str] | None = None) -> dict[str, Evidence]:
        """Image id -> what was measured of it, in the order of drawing, without signatures; of some ids or all."""
        if ids is None:
            rows = self._all(f"{EVIDENCE} ORDER BY i.rowid")
        else:
            rows = [
                row
                for part in _parts(ids)
                for row in self._all(_among(f"{EVIDENCE} WHERE i.id", part), *part)
            ]
        return {row[0]: _evidence(row) for row in rows}

    def unheard(self, witness: WitnessKind, model: str, classes: Sequence[str]) -> list[ImageRow]:
        """Accepted images about which this model has not said anything yet, or not about all classes."""
        rows = self._all(
            """SELECT i.*, t.scores FROM images i JOIN verdicts v ON v.image_id=i.id
               LEFT JOIN testimonies t ON t.image_id=i.id AND t.witness=?1 AND t.model=?2
               WHERE v.accepted ORDER BY i.rowid""",
            witness,
            model,
        )
        wanted = set(classes)
        return [ImageRow(*row[:-1]) for row in rows if row[-1] is None or wanted - json.loads(row[-1]).keys()]

    def testimonies(self, ids: Sequence[str]) -> dict[str, dict[WitnessKind, Testimony]]:
        """Image id -> witness -> what it said; images that no witness spoke about are left out.

        Without maps, which take most of the time: `attention_maps` reads them.
        """
        found: dict[str, dict[WitnessKind, Testimony]] = {}
        sql = "SELECT image_id, witness, scores, counts, sightings FROM testimonies WHERE image_id"
        for part in _parts(ids):
            for image_id, witness, *said in self._all(_among(sql, part), *part):
                found.setdefault(image_id, {})[witness] = read_testimony(*map(json.loads, said))
        return found

    def attention_maps(self, ids: Sequence[str]) -> dict[str, dict[str, NDArray[np.uint8]]]:
        """Image id -> class -> (h, w) map of what the image model attended to, where a witness recorded it."""
        sql = "SELECT image_id, maps FROM testimonies WHERE witness='attention' AND image_id"
        return {
            image_id: {name: _read_map(*stored) for name, stored in json.loads(maps).items()}
            for part in _parts(ids)
            for image_id, maps in self._all(_among(sql, part), *part)
        }

    def evidence_after(self, row: int, limit: int) -> list[tuple[int, Evidence]]:
        """Up to `limit` measurements in the order of measuring, each with its row number, after row number `row`."""
        rows = self._all(f"{EVIDENCE} WHERE e.rowid > ? ORDER BY e.rowid LIMIT ?", row, limit)
        return [(row[10], _evidence(row)) for row in rows]

    def evidence_sample(self, size: int) -> list[Evidence]:
        """The measured images with the least ids.

        Ids are hashes, so this is a random sample, and it depends only on which images were measured.
        """
        return [_evidence(row) for row in self._all(f"{EVIDENCE} ORDER BY e.image_id LIMIT ?", size)]

    def signatures(self, rows: Sequence[int]) -> dict[int, bytes]:
        """Row number of evidence -> signature."""
        return {
            row: data
            for part in _parts(rows)
            for row, data in self._all(
                _among("SELECT rowid, signature FROM evidence WHERE rowid", part), *part
            )
        }

    def measured_rows(self, after: int = 0) -> list[tuple[int, str]]:
        """(Row number, image id) of the measured images in the order of measuring, after row number `after`."""
        return self._all("SELECT rowid, image_id FROM evidence WHERE rowid > ? ORDER BY rowid", after)

    def passed(self, class_name: str) -> list[Passed]:
        """The images of a class whose verdict says that they passed the tests of single images."""
        rows = self._all(
            """SELECT v.image_id, i.prompt_id, v.scores, e.rowid, v.reason
               FROM prompt_counts c JOIN images i ON i.prompt_id=c.prompt_id JOIN verdicts v ON v.image_id=i.id
               JOIN evidence e ON e.image_id=i.id
               WHERE c.class_name=? AND c.judged > 0 AND v.reason IN ('ok', 'beyond_top_k', 'surplus')""",
            class_name,
        )
        return [Passed(r[0], r[1], json.loads(r[2])["probability"], r[3], r[4]) for r in rows]

    def judged_prompts(self, ids: Sequence[str]) -> set[str]:
        """Those of these prompts that have an image with a verdict."""
        sql = "SELECT prompt_id FROM prompt_counts WHERE judged > 0 AND prompt_id"
        return {row[0] for part in _parts(ids) for row in self._all(_among(sql, part), *part)}

    def outcomes(self, prompt_ids: Sequence[str]) -> dict[str, set[str]]:
        """Prompt id -> reasons of its images' verdicts ("undecided" without one) and of its unfinished images."""
        found: dict[str, set[str]] = {}
        for part in _parts(prompt_ids):
            for sql in (
                "SELECT i.prompt_id, COALESCE(v.reason, 'undecided') FROM images i "
                "LEFT JOIN verdicts v ON v.image_id=i.id WHERE i.prompt_id",
                "SELECT prompt_id, reason FROM undrawn WHERE prompt_id",
            ):
                for prompt_id, reason in self._all(_among(sql, part), *part):
                    found.setdefault(prompt_id, set()).add(reason)
        return found

    def waiting(self, per_prompt: int) -> dict[str, list[str]]:
        """Class -> admitted prompts with fewer than `per_prompt` images and unfinished images, oldest first."""
        rows = self._all(
            """SELECT class_name, prompt_id FROM prompt_counts
               WHERE admitted AND drawn + undrawn < ? ORDER BY rowid""",
            per_prompt,
        )
        waiting: dict[str, list[str]] = {}
        for class_name, prompt_id in rows:
            waiting.setdefault(class_name, []).append(prompt_id)
        return waiting

    def requested(self, prompt_ids: Sequence[str]) -> set[str]:
        """Ids of these prompts' images, drawn or not finished."""
        return {
            row[0]
            for part in _parts(prompt_ids)
            for table in ("images", "undrawn")
            for row in self._all(_among(f"SELECT id FROM {table} WHERE prompt_id", part), *part)
        }

    def gained(self, round: int) -> set[str]:
        """Classes with an accepted image of this round."""
        rows = self._all(
            """SELECT DISTINCT p.class_name FROM images i JOIN verdicts v ON v.image_id=i.id
               JOIN prompts p ON p.id=i.prompt_id WHERE i.round=? AND v.accepted""",
            round,
        )
        return {row[0] for row in rows}

    def yields(self, class_name: str, round: int) -> dict[str, tuple[int, int]]:
        """Prompt id -> (images judged, accepted), of the prompts of a class that were drawn in this round."""
        rows = self._all(
            """SELECT DISTINCT c.prompt_id, c.judged, c.accepted FROM images i
               JOIN prompt_counts c ON c.prompt_id=i.prompt_id WHERE i.round=? AND c.class_name=?""",
            round,
            class_name,
        )
        return {row[0]: (row[1], row[2]) for row in rows}

    def admitted_in(self, class_name: str, round: int) -> list[PromptRow]:
        """Admitted prompts of a class that were written in this round."""
        rows = self._all(
            "SELECT * FROM prompts WHERE class_name=? AND round=? AND status='admitted' ORDER BY rowid",
            class_name,
            round,
        )
        return [_prompt(row) for row in rows]

    @property
    def drawn(self) -> int:
        """Number of images drawn."""
        row = self._one("SELECT COALESCE(SUM(drawn), 0) FROM class_counts")
        return 0 if row is None else int(row[0])

    def decisions_made(self, kind: DecisionKind) -> int:
        """Number of the latest decision of this kind; 0 for none."""
        row = self._one("SELECT COALESCE(MAX(id), 0) FROM decisions WHERE kind=?", kind)
        return 0 if row is None else int(row[0])

    def measured_vectors(self, batch: int) -> Iterator[list[tuple[str, str, list[float], bytes]]]:
        """Batches of (image id, text of its prompt, cosines, signature), in the order of measuring."""
        last = -1
        while rows := self._all(
            """SELECT e.image_id, p.text, e.cosines, e.signature, e.rowid
               FROM evidence e JOIN images i ON i.id=e.image_id JOIN prompts p ON p.id=i.prompt_id
               WHERE e.rowid > ? ORDER BY e.rowid LIMIT ?""",
            last,
            batch,
        ):
            yield [(r[0], r[1], json.loads(r[2]), r[3]) for r in rows]
            last = rows[-1][4]

    def labels(self, source: str) -> dict[str, LabelRow]:
        """Image id -> labels of one source."""
        rows = self._all("SELECT * FROM labels WHERE source=? ORDER BY rowid", source)
        return {r[0]: LabelRow(r[0], r[1], tuple(json.loads(r[2])), json.loads(r[3])) for r in rows}

    def verdict_scores(self, ids: Sequence[str]) -> dict[str, dict[str, float]]:
        """Image id -> the numbers of its verdict."""
        sql = "SELECT image_id, scores FROM verdicts WHERE image_id"
        return {i: json.loads(s) for part in _parts(ids) for i, s in self._all(_among(sql, part), *part)}

    def labels_of(self, source: str, ids: Sequence[str]) -> dict[str, LabelRow]:
        """`labels` of some images."""
        rows = [
            row
            for part in _parts(ids)
            for row in self._all(
                _among("SELECT * FROM labels WHERE source=? AND image_id", part), source, *part
            )
        ]
        return {r[0]: LabelRow(r[0], r[1], tuple(json.loads(r[2])), json.loads(r[3])) for r in rows}

    def label_sets(self, source: str, ids: Sequence[str] | None = None) -> dict[str, tuple[str, ...]]:
        """Image id -> classes by one source, of some images or all; `labels` without the scores.

        Those take most of the memory.
        """
        sets: dict[str, tuple[str, ...]] = {}  # few, each of many images
        found = {}
        rows: Iterable[tuple[Any, ...]]
        if ids is None:
            rows = self._pages(
                "SELECT image_id, classes, rowid FROM labels WHERE source=? AND rowid > ? ORDER BY rowid LIMIT ?",
                source,
            )
        else:
            sql = "SELECT image_id, classes FROM labels WHERE source=? AND image_id"
            rows = (row for part in _parts(ids) for row in self._all(_among(sql, part), source, *part))
        for image_id, text in rows:
            if text not in sets:
                sets[text] = tuple(json.loads(text))
            found[image_id] = sets[text]
        return found

    def each_mask(self) -> Iterator[MaskRow]:
        """The rows of `masks`, read in pages; the ledger may be written to in between."""
        for image_id, pixels, ignored, sources, sha256 in self._pages(
            """SELECT image_id, pixels, ignore_share, sources, sha256, rowid FROM masks
               WHERE rowid > ? ORDER BY rowid LIMIT ?"""
        ):
            yield MaskRow(image_id, json.loads(pixels), ignored, json.loads(sources), sha256)

    def mask_pixels(self, ids: Sequence[str]) -> Iterator[MaskRow]:
        """The masks of these images without their sources and hashes, which take most of the time."""
        sql = "SELECT image_id, pixels, ignore_share FROM masks WHERE image_id"
        for part in _parts(ids):
            for image_id, pixels, ignored in self._all(_among(sql, part), *part):
                yield MaskRow(image_id, json.loads(pixels), ignored, {})

    def masks(self) -> dict[str, MaskRow]:
        """Image id -> its mask's row."""
        return {mask.image_id: mask for mask in self.each_mask()}

    def dataset_inputs(self) -> DatasetInputs:
        """What a dataset would be made from now."""
        labels = self._each(  # a subquery of all accepted images would be read again for each page
            """SELECT v.image_id, l.classes
               FROM verdicts v CROSS JOIN labels l ON l.image_id=v.image_id AND l.source='relabel'
               WHERE v.accepted AND v.image_id > ? ORDER BY v.image_id LIMIT ?"""
        )
        dropped = self.rejected("mask")
        ids = "SELECT image_id FROM verdicts WHERE accepted AND image_id > ? ORDER BY image_id LIMIT ?"
        return DatasetInputs(
            accepted=_hash_of(row[0] for row in self._each(ids)),
            labels=_hash_of(_labelled(*row) for row in labels),
            masked=_hash_of(row[0] for row in self._each(ids) if row[0] not in dropped),
        )

    def mask_hashes(self) -> Iterator[tuple[str, str]]:
        """(Image id, SHA-256 of the mask's file) of the accepted images that have a mask, by id, read in pages.

        The hash is "" in ledgers of schema 3 and earlier.
        """
        return self._each(
            """SELECT m.image_id, m.sha256 FROM masks m JOIN verdicts v ON v.image_id=m.image_id
               WHERE v.accepted AND m.image_id > ? ORDER BY m.image_id LIMIT ?"""
        )

    @property
    def uncertain_share(self) -> float:
        """Mean share of pixels that are 255 in the masks, in [0, 1]; 0 without masks."""
        row = self._one("SELECT COALESCE(AVG(ignore_share), 0) FROM masks")
        return 0.0 if row is None else float(row[0])

    @property
    def last_round(self) -> int | None:
        """Number of the last round in which images were drawn; None without images."""
        row = self._one("SELECT MAX(round) FROM images")
        return None if row is None else row[0]

    @property
    def last_writing(self) -> int:
        """Number of the last round in which prompts were written; -1 without prompts."""
        row = self._one("SELECT COALESCE(MAX(round), -1) FROM prompts")
        return -1 if row is None else int(row[0])

    def drawn_in(self, round: int) -> list[str]:
        """Ids of the prompts that images of this round were drawn for, sorted."""
        rows = self._all("SELECT DISTINCT prompt_id FROM images WHERE round=? ORDER BY prompt_id", round)
        return [row[0] for row in rows]

    def plan_round(self, round: int, prompt_ids: Sequence[str]) -> None:
        """Record the prompts to draw in a round, in place of those of the round before."""
        self._planned = {"round": round, "prompts": list(prompt_ids)}

    def planned(self, round: int) -> list[str]:
        """Ids of the prompts to draw in a round; of a round that is not the last one planned, those drawn in it."""
        last = self._planned
        return list(last["prompts"]) if last.get("round") == round else self.drawn_in(round)

    @property
    def is_overruled(self) -> bool:
        """Whether a verdict contradicts the reviewer's latest decision about it."""
        row = self._one(
            """SELECT 1 FROM (SELECT subject, action, MAX(id) FROM decisions WHERE kind='verdict' GROUP BY subject) d
               JOIN verdicts v ON v.image_id=d.subject WHERE v.accepted <> (d.action='accept') LIMIT 1"""
        )
        return row is not None

    def step_counts(self) -> dict[str, StepCounts]:
        """Class of a prompt -> how many of its prompts and images reached each step."""
        prompts = self._all(
            "SELECT class_name, COUNT(*), SUM(status='admitted') FROM prompts GROUP BY class_name"
        )
        images = self._all(
            """SELECT p.class_name, COUNT(*), COALESCE(SUM(v.accepted), 0),
                      COALESCE(SUM(v.accepted AND l.image_id NOT NULL), 0),
                      COALESCE(SUM(v.accepted AND m.image_id NOT NULL), 0)
               FROM images i JOIN prompts p ON p.id=i.prompt_id
               LEFT JOIN verdicts v ON v.image_id=i.id
               LEFT JOIN labels l ON l.image_id=i.id AND l.source='relabel'
               LEFT JOIN masks m ON m.image_id=i.id GROUP BY p.class_name"""
        )
        of_images = {name: counts for name, *counts in images}
        return {name: StepCounts(*counts, *of_images.get(name, ())) for name, *counts in prompts}

    def reject_reasons(self, classes: Sequence[str]) -> dict[str, int]:
        """Reason -> rejected images of prompts of these classes, the most frequent reason first."""
        rows = self._all(
            _among(
                """SELECT v.reason, COUNT(*) FROM verdicts v JOIN images i ON i.id=v.image_id
                   JOIN prompts p ON p.id=i.prompt_id WHERE NOT v.accepted AND p.class_name""",
                classes,
            )
            + " GROUP BY v.reason ORDER BY COUNT(*) DESC, MIN(i.rowid)",
            *classes,
        )
        return dict(rows)

    def drop_reasons(self, classes: Sequence[str]) -> dict[str, int]:
        """Reason (or status) -> prompts of these classes that are not admitted, the most frequent first."""
        rows = self._all(
            _among(
                """SELECT COALESCE(NULLIF(json_extract(critique, '$.reason'), ''), status) AS why, COUNT(*)
                   FROM prompts WHERE status <> 'admitted' AND class_name""",
                classes,
            )
            + " GROUP BY why ORDER BY COUNT(*) DESC, MIN(rowid)",
            *classes,
        )
        return {str(reason): count for reason, count in rows}

    def prompt_yields(self, classes: Sequence[str]) -> list[tuple[str, str, str, int, int]]:
        """(Id, class, text, images drawn, accepted) of the admitted prompts of these classes, in their order."""
        rows = self._all(
            _among(
                """SELECT p.id, p.class_name, p.text, c.drawn, c.accepted FROM prompts p
                   JOIN prompt_counts c ON c.prompt_id=p.id WHERE p.status='admitted' AND p.class_name""",
                classes,
            )
            + " ORDER BY p.rowid",
            *classes,
        )
        return rows

    def unlabelled(self, source: str) -> list[ImageRow]:
        """Images without labels of this source, in the order they were drawn."""
        rows = self._all(
            """SELECT i.* FROM images i LEFT JOIN labels l ON l.image_id=i.id AND l.source=?
               WHERE l.image_id IS NULL ORDER BY i.rowid""",
            source,
        )
        return [ImageRow(*row) for row in rows]

    def usage(self) -> dict[str, UsageRow]:
        """Role -> the sum of its rows; `model` is the last one used."""
        rows = self._all("SELECT role, model, calls, tokens_in, tokens_out, images, usd FROM usage_totals")
        return {row[0]: UsageRow(*row) for row in rows}

    def models(self) -> dict[str, ModelRow]:
        """Role -> the model used for it."""
        return {row[0]: ModelRow(*row) for row in self._all("SELECT * FROM models ORDER BY rowid")}

    def decisions(self, kind: DecisionKind, ids: Sequence[str] | None = None) -> dict[str, DecisionRow]:
        """Subject -> the latest decision of this kind about it: those of `ids` or all."""
        rows = self._of_kind("SELECT kind, subject, action, value, note, source FROM decisions", kind, ids)
        return {r[1]: _decision(r) for r in rows}

    def each_decision(self, kind: DecisionKind) -> Iterator[tuple[int, DecisionRow]]:
        """The latest decision of this kind about each subject, with its number, by subject, read in pages."""
        for _, number, *row in self._each(
            """SELECT subject, MAX(id), kind, subject, action, value, note, source FROM decisions
               WHERE kind=? AND subject > ? GROUP BY subject ORDER BY subject LIMIT ?""",
            kind,
        ):
            yield number, _decision(row)

    def decided(self, kind: DecisionKind, ids: Sequence[str] | None = None) -> set[str]:
        """Subjects that a reviewer has decided about: those of `ids` or all."""
        return {row[0] for row in self._of_kind("SELECT subject FROM decisions", kind, ids)}

    def seen(self, kind: DecisionKind, ids: Sequence[str] | None = None) -> dict[str, str]:
        """Subject that a reviewer has seen -> the agents' decision at that time: those of `ids` or all."""
        return {row[0]: row[1] for row in self._of_kind("SELECT subject, decision FROM seen", kind, ids)}

    def decision(self, kind: DecisionKind, subject: str) -> DecisionRow | None:
        """The latest decision of this kind about a subject; None without one."""
        row = self._one(
            """SELECT kind, subject, action, value, note, source FROM decisions
               WHERE kind=? AND subject=? ORDER BY id DESC LIMIT 1""",
            kind,
            subject,
        )
        return None if row is None else _decision(row)

    def subjects_like(self, kind: DecisionKind, name: str, at_most: int) -> tuple[list[str], int]:
        """Up to `at_most` ids of what a decision of this kind may be about, and the number of all that fit `name`.

        Those are the id `name` itself, else the ids that begin with it, with or without their prefix (``i-``,
        ``p-``), oldest first. Labels are those of relabelling.
        """
        table = {
            "prompt": "prompts s",
            "verdict": "images s",
            "label": "images s JOIN labels l ON l.image_id=s.id AND l.source='relabel'",
            "mask": "images s JOIN masks m ON m.image_id=s.id",
        }[kind]
        name = name.encode(errors="replace").decode()  # an argument of a command may hold lone surrogates
        begins = "substr(s.id, 1, length(?1))=?1 OR substr(s.id, instr(s.id, '-') + 1, length(?1))=?1"
        for fits in ("s.id=?1", f"?1<>'' AND ({begins})"):
            rows = self._all(
                f"SELECT s.id, COUNT(*) OVER () FROM {table} WHERE {fits} ORDER BY s.rowid LIMIT ?2",
                name,
                at_most,
            )
            if rows:
                return [row[0] for row in rows], rows[0][1]
        return [], 0

    def class_of(self, subject: str) -> str:
        """The class that a prompt was written for or an image drawn for. Raises `KeyError` for neither."""
        row = self._one(
            """SELECT class_name FROM prompts WHERE id=?1 OR id=(SELECT prompt_id FROM images WHERE id=?1)""",
            subject,
        )
        if row is None:
            raise KeyError(subject)
        return str(row[0])

    def admitted(self, ids: Sequence[str] | None = None) -> list[str]:
        """Admitted prompts, those of `ids` or all, in the order they were written."""
        rows = self._some("SELECT p.id FROM prompts p WHERE p.status='admitted'", "p.id", ids, "p.rowid")
        return [row[0] for row in rows]

    def standings(self, ids: Sequence[str] | None = None) -> dict[str, bool]:
        """Image id -> whether it is accepted, of judged images: those of `ids` or all."""
        rows = self._some(
            "SELECT v.image_id, v.accepted FROM verdicts v WHERE 1", "v.image_id", ids, "v.rowid"
        )
        return {image_id: bool(accepted) for image_id, accepted in rows}

    def final_labels(self, ids: Sequence[str] | None = None) -> dict[str, tuple[str, ...]]:
        """Image id -> classes by relabelling, of accepted images: those of `ids` or all."""
        rows = self._some(
            """SELECT l.image_id, l.classes FROM labels l JOIN verdicts v ON v.image_id=l.image_id
               WHERE l.source='relabel' AND v.accepted""",
            "l.image_id",
            ids,
            "l.rowid",
        )
        return {image_id: tuple(json.loads(classes)) for image_id, classes in rows}

    def final_masks(
        self, ids: Sequence[str] | None = None
    ) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...] | None]]:
        """(Image id, classes by relabelling, classes that its mask was made for), of `final_labels` with a mask.

        The last is None for a mask that did not record them.
        """
        rows = self._some(
            """SELECT m.image_id, l.classes, json_extract(m.sources, '$.labels') FROM masks m
               JOIN labels l ON l.image_id=m.image_id AND l.source='relabel'
               JOIN verdicts v ON v.image_id=m.image_id WHERE v.accepted""",
            "m.image_id",
            ids,
            "m.rowid",
        )
        for image_id, classes, made_for in rows:
            yield (
                image_id,
                tuple(json.loads(classes)),
                None if made_for is None else tuple(json.loads(made_for)),
            )

    def rejected(self, kind: DecisionKind) -> set[str]:
        """Subjects that a reviewer rejected."""
        return {subject for subject, row in self.decisions(kind).items() if row.action == "reject"}

    def guidance(self, *, active_only: bool = True) -> list[GuidanceRow]:
        """Wishes, oldest first."""
        rows = self._all(
            "SELECT class_name, said, wish, active, id FROM guidance WHERE active OR ?1 ORDER BY id",
            not active_only,
        )
        return [GuidanceRow(r[0], r[1], json.loads(r[2]), bool(r[3]), r[4]) for r in rows]

    def events(self, kind: str | None = None) -> list[tuple[float, str, dict[str, Any]]]:
        """(Unix time, kind, detail), oldest first."""
        rows = self._all("SELECT at, kind, detail FROM events WHERE ?1 IS NULL OR kind=?1 ORDER BY id", kind)
        return [(at, name, json.loads(detail)) for at, name, detail in rows]

    def each_event(self) -> Iterator[tuple[float, str, dict[str, Any]]]:
        """The rows of `events`, read in pages; the ledger may be written to in between."""
        for at, kind, detail in self._pages(
            "SELECT at, kind, detail, id FROM events WHERE id > ? ORDER BY id LIMIT ?"
        ):
            yield at, kind, json.loads(detail)

    def tallies(self) -> dict[str, ClassTally]:
        """Class -> counts of admitted prompts and of their images; a class without such a prompt is left out."""
        rows = self._all(
            """SELECT class_name, admitted, drawn, judged, accepted FROM class_counts
               WHERE admitted ORDER BY class_name"""
        )
        return {row[0]: ClassTally(*row[1:]) for row in rows}

    # -- plumbing ---------------------------------------------------------------------------------

    def _upsert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if not rows:
            return
        if table not in self._upserts:
            self._upserts[table] = self._upsert_into(table)
        with self.transaction():
            self._db.executemany(self._upserts[table], rows)

    def _upsert_into(self, table: str) -> str:
        """The statement that adds rows to a table, or changes those that have these keys.

        Not INSERT OR REPLACE: that would move a row to the end, and order is part of the result.
        """
        about = self._all(f"PRAGMA table_info({table})")
        columns, keys = [r[1] for r in about], [r[1] for r in about if r[5]]
        others = [c for c in columns if c not in keys]
        update = ", ".join(f"{c}=excluded.{c}" for c in others)
        changed = " OR ".join(f"{table}.{c} IS NOT excluded.{c}" for c in others)
        marks = ", ".join("?" * len(columns))
        return (
            f"INSERT INTO {table} VALUES ({marks}) "
            f"ON CONFLICT({', '.join(keys)}) DO UPDATE SET {update} WHERE {changed}"
        )

    def _append(self, table: str, columns: Sequence[str], values: Sequence[Any]) -> None:
        """Insert a row that has no id of its own; `at` is now."""
        marks = ", ".join("?" * (len(columns) + 1))
        with self.transaction():
            self._db.execute(
                f"INSERT INTO {table} (at, {', '.join(columns)}) VALUES ({marks})", (time.time(), *values)
            )

    def _all(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def _some(
        self, sql: str, column: str, ids: Sequence[str] | None, order: str
    ) -> Iterator[tuple[Any, ...]]:
        """Rows of `sql`, which ends in a condition: all in an order, or those whose `column` is one of `ids`."""
        if ids is None:
            yield from self._all(f"{sql} ORDER BY {order}")
            return
        for part in _parts(ids):
            yield from self._all(_among(f"{sql} AND {column}", part), *part)

    def _of_kind(self, sql: str, kind: DecisionKind, ids: Sequence[str] | None) -> Iterator[tuple[Any, ...]]:
        """Rows of a table of decisions, in their order: all of a kind, or those about `ids`."""
        if ids is None:
            yield from self._all(f"{sql} WHERE kind=? ORDER BY rowid", kind)
            return
        for part in _parts(ids):
            yield from self._all(
                f"{_among(f'{sql} WHERE kind=? AND subject', part)} ORDER BY rowid", kind, *part
            )

    def _pages(self, sql: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Rows without their last column, the row number; `sql` selects at most ? of them after row number ?.

        They are read in pages, and the ledger may be written to in between.
        """
        last = 0
        while rows := self._all(sql, *values, last, PAGE):
            yield from (row[:-1] for row in rows)
            last = rows[-1][-1]

    def _each(self, sql: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Rows in pages; `sql` selects at most ? of them after the first column ?, in its order.

        The ledger may be written to in between.
        """
        after = ""
        while rows := self._all(sql, *values, after, PAGE):
            yield from rows
            after = rows[-1][0]

    def _one(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
        with self._lock:
            row: tuple[Any, ...] | None = self._db.execute(sql, values).fetchone()
            return row


def prompt_families(prompts: Iterable[PromptRow]) -> dict[str, str]:
    """Prompt id -> id of the prompt at the root of its refinements (itself, if it refines nothing)."""
    parents = {prompt.id: prompt.parent_id for prompt in prompts}
    return {prompt_id: _root(prompt_id, parents) for prompt_id in parents}


def _root(prompt_id: str, parents: Mapping[str, str | None]) -> str:
    seen = {prompt_id}
    while (parent := parents.get(prompt_id)) is not None and parent not in seen:
        seen.add(parent)
        prompt_id = parent
    return prompt_id


def _parts(items: Sequence[Value]) -> Iterator[Sequence[Value]]:
    return (items[start : start + MOST_VARIABLES] for start in range(0, len(items), MOST_VARIABLES))


def _among(sql: str, values: Sequence[Any]) -> str:
    return f"{sql} IN ({', '.join('?' * len(values))})"


def _evidence(row: tuple[Any, ...]) -> Evidence:
    return Evidence(
        image_id=row[0],
        prompt_id=row[1],
        target=row[2],
        asked=tuple(json.loads(row[3])),
        cosines=tuple(json.loads(row[4])),
        sharpness=row[5],
        blank=bool(row[6]),
        duplicate_cosine=row[7],
        text_shares=tuple(json.loads(row[8])),
        real=json.loads(row[9]),
        heard=json.loads(row[11]),
    )


def _decision(row: Sequence[Any]) -> DecisionRow:
    return DecisionRow(row[0], row[1], row[2], json.loads(row[3]), row[4], row[5])


def testimony_columns(said: Testimony) -> tuple[Any, Any, Any, Any]:
    """What is stored of a testimony, as values of JSON: scores, counts, sightings and maps."""
    sightings = [[s.class_name, s.score, s.box_xyxy] for s in said.sightings]
    return said.scores, said.counts, sightings, {name: _dump_map(m) for name, m in said.maps.items()}


def read_testimony(
    scores: dict[str, float], counts: dict[str, int], sightings: list[Any], maps: Mapping[str, Any] = {}
) -> Testimony:
    """The reverse of `testimony_columns`, with or without maps."""
    located = tuple(Sighting(name, score, tuple(box)) for name, score, box in sightings)
    return Testimony(scores, counts, located, {name: _read_map(*stored) for name, stored in maps.items()})


def _dump_map(of_class: NDArray[np.uint8]) -> tuple[int, int, str]:
    height, width = of_class.shape
    return height, width, base64.b64encode(of_class.tobytes()).decode()


def _read_map(height: int, width: int, text: str) -> NDArray[np.uint8]:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _prompt(row: tuple[Any, ...]) -> PromptRow:
    id_, class_name, text, classes, attributes, parent, round_, status, critique = row
    return PromptRow(
        id_, class_name, text, tuple(json.loads(classes)), json.loads(attributes), parent, round_, status,
        json.loads(critique),
    )  # fmt: skip
