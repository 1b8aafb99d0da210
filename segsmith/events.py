"""What a workflow reports while it runs: one frozen dataclass per event, joined in the union `Event`.

Graph nodes stream these objects, `on_event` callbacks receive them, and the progress display renders them. They hold
only what JSON can hold, because LangGraph's server sends them to its clients; `kind` tells them apart there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from segsmith.types import ClassTally


class Stage(StrEnum):
    """A stage after drawing, in a build, `refine` or `train`."""

    HEARING = "hearing"
    RELABELLING = "relabelling"
    SEGMENTING = "segmenting"
    EXPORTING = "exporting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SEEDING = "seeding"
    TRYING_SAM = "trying_sam"
    REFINING = "refining"


@dataclass(frozen=True)
class Notice:
    """Something the user should know; the workflow continues."""

    message: str
    warning: bool = False
    kind: Literal["notice"] = "notice"


@dataclass(frozen=True)
class Downloading:
    """Bytes of a model file on their way. `total` is 0 where the server does not state it."""

    role: str
    model: str
    file: str
    done: int
    total: int
    kind: Literal["download"] = "download"


@dataclass(frozen=True)
class RealImagesRead:
    """The dataset that `augment` adds images to."""

    splits: Mapping[str, int]
    """Split -> usable images."""
    masked: bool
    """Whether any image has a label map."""
    in_training: Mapping[str, int]
    """Class -> real images of split train that show it."""
    to_add: Mapping[str, int]
    """Class -> generated images to add."""
    never_together: tuple[tuple[str, str], ...]
    """Pairs of classes that no real image shows together."""
    skipped: tuple[str, ...]
    """One line for each file that cannot be used."""
    kind: Literal["real_images"] = "real_images"


@dataclass(frozen=True)
class WeakLabelsRead:
    """The dataset that `refine` makes dense."""

    label_kind: str
    splits: Mapping[str, int]
    """Split -> usable images."""
    zero_is_drawn: bool
    """Whether index 0 means background; else it means that nothing was drawn there."""
    background: bool
    """Whether background is a class; if not, every pixel belongs to one of the classes."""
    problems: tuple[str, ...]
    """One line for each file that was skipped or repaired."""
    unlabelled: tuple[str, ...]
    """Ids of training images without any label."""
    never_shown: tuple[str, ...]
    """Classes that no training image shows."""
    kind: Literal["weak_labels"] = "weak_labels"


@dataclass(frozen=True)
class SamTried:
    """What SAM did with drawn labels that it was not shown, in `refine`."""

    masks: int
    crossing: int
    """Masks that cover at least half of a drawn component of another class."""
    partial: int
    """Other masks that miss most of what was held out of their own component."""
    level: float
    """Share of the masks that must be neither for SAM to be used (``labeler.min_sam_agreement``)."""
    used: bool
    kind: Literal["sam_tried"] = "sam_tried"


@dataclass(frozen=True)
class SessionStarted:
    """A build starts, or resumes from where an earlier session stopped."""

    resumed: bool
    wanted: Mapping[str, int]
    """Class -> accepted images wanted."""
    tallies: Mapping[str, ClassTally]
    kind: Literal["start"] = "start"


@dataclass(frozen=True)
class RoundPlanned:
    """The director decided what comes next, and why: a label of the graph's diagram such as ``draw``."""

    reason: str
    kind: Literal["route"] = "route"


@dataclass(frozen=True)
class ImagesDrawn:
    """A batch of this round's images is on disk."""

    done: int
    total: int
    kind: Literal["draw"] = "draw"


@dataclass(frozen=True)
class WorkersBusy:
    """About once a second while workers draw images or make masks."""

    done: int
    """Units of work, shards of up to 32 images."""
    total: int
    set_aside: int
    """Units that failed too often in this session."""
    workers: int
    in_flight: int
    """Units that workers have, those that wait included."""
    images_per_second: float
    per_worker: Mapping[str, float]
    """Worker -> images per second since it joined."""
    kind: Literal["workers"] = "workers"


@dataclass(frozen=True)
class RoundJudged:
    """All images drawn so far have a verdict."""

    tallies: Mapping[str, ClassTally]
    kind: Literal["judge"] = "judge"


@dataclass(frozen=True)
class StageStarted:
    """A stage after drawing begins."""

    stage: Stage
    kind: Literal["stage"] = "stage"


@dataclass(frozen=True)
class MasksMade:
    """A batch of masks is on disk."""

    done: int
    total: int
    kind: Literal["segment"] = "segment"


@dataclass(frozen=True)
class EpochFinished:
    """One epoch of training, counted from 1."""

    epoch: int
    epochs: int
    loss: float
    learning_rate: float
    miou: float | None
    """Of the averaged weights on split val, in [0, 1]; None without such a split."""
    seconds: float | None
    images_per_second: float | None
    """Both None for epochs of an earlier session."""
    step: int = 0
    steps: int = 0
    """Optimisation steps done, and those of the whole training; 0 for epochs of an earlier version."""
    kind: Literal["epoch"] = "epoch"


@dataclass(frozen=True)
class ReviewNeeded:
    """The build pauses for a reviewer."""

    decision: Literal["prompt", "verdict", "label", "mask"]
    subjects: tuple[str, ...]
    """Ids of the prompts or images that nobody has looked at."""
    kind: Literal["pause"] = "pause"


class Status(StrEnum):
    """How a session of a build ended."""

    FINISHED = "finished"
    ALREADY_FINISHED = "already_finished"
    """An earlier session had finished the run, and nothing was left to do."""
    STOPPED = "stopped"
    """The reviewer stopped it; the same call resumes it."""


@dataclass(frozen=True)
class SessionEnded:
    """The last event of a build."""

    status: Status
    reason: str = ""
    """Why drawing ended, a label of the graph's diagram: ``quota_met``, ``stalled``, ``budget_spent``, ..."""
    missing: Mapping[str, int] = field(default_factory=dict)
    """Class -> accepted images short of what was wanted."""
    cap: str = ""
    """The cap that ended drawing, such as ``max_images = 50``; "" for none."""
    kind: Literal["end"] = "end"


Event = (
    Notice
    | Downloading
    | RealImagesRead
    | WeakLabelsRead
    | SamTried
    | SessionStarted
    | RoundPlanned
    | ImagesDrawn
    | WorkersBusy
    | RoundJudged
    | StageStarted
    | MasksMade
    | EpochFinished
    | ReviewNeeded
    | SessionEnded
)
