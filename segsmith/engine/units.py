"""Units of work: a shard of images and what is to be done with it, small enough to be sent anywhere.

A unit holds ids, texts and numbers, never pixels. Its id is a hash of everything that its result depends on, so the
same work has the same id in every session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from segsmith.datasets.records import Origin
from segsmith.ids import make_id
from segsmith.memory.ledger import WitnessKind

Kind = Literal["draw", "teach", "relabel", "regions", "masks", "export"] | WitnessKind
"""Units of a witness are of its kind."""


@dataclass(frozen=True)
class DrawItem:
    """One image to draw and measure."""

    id: str
    prompt: str
    seed: int
    sha256: str = ""
    """Of the image's file in the run folder, where an earlier session wrote it; "" where it must be drawn."""


@dataclass(frozen=True)
class DrawUnit:
    """Images to draw, to write, and to measure with CLIP as one chunk."""

    id: str
    items: tuple[DrawItem, ...]
    batch_size: int
    """Images drawn at once, at most."""
    kind: Literal["draw"] = "draw"


@dataclass(frozen=True)
class MaskItem:
    """One accepted image."""

    id: str
    sha256: str
    """Of its file."""
    labels: tuple[str, ...]
    """Classes that its mask shows."""
    doubted: tuple[str, ...] = ()
    """Classes that are 255 in its mask, because the sources do not agree whether they are there."""


@dataclass(frozen=True)
class MaskUnit:
    """Accepted images that go through SAM together, to get masks; or to calibrate the region check (`regions`)."""

    id: str
    items: tuple[MaskItem, ...]
    patch_scores: str
    """SHA-256 of ``patch_scores.npz``."""
    centre: tuple[float, ...] = ()
    """Of the region check; () where no region is doubted."""
    kind: Literal["masks", "regions"] = "masks"


@dataclass(frozen=True)
class LabelItem:
    """An image that the relabelling ViT sees."""

    id: str
    sha256: str
    """Of its file."""
    real: str = ""
    """File of a real image, relative to ``real/``; "" for one that was generated."""


@dataclass(frozen=True)
class TeachUnit:
    """The model of one fold is trained; its weights are the result."""

    id: str
    items: tuple[LabelItem, ...]
    """All images that any fold's model is trained on."""
    batches: tuple[int, ...]
    """Number of images in each batch of `items`."""
    targets: tuple[tuple[float, ...], ...]
    """Image -> its labels, by class in [0, 1]."""
    kept: tuple[int, ...]
    """Positions in `items` that this fold's model is trained on."""
    fold: int
    features: str
    """Hash of what the features of `items` depend on; the same for all folds."""
    kind: Literal["teach"] = "teach"


@dataclass(frozen=True)
class RelabelUnit:
    """Images that the model of one fold scores."""

    id: str
    items: tuple[LabelItem, ...]
    batches: tuple[int, ...]
    """Number of images in each batch of `items`."""
    weights: str
    """The `TeachUnit` whose weights are used."""
    kind: Literal["relabel"] = "relabel"


@dataclass(frozen=True)
class HearItem:
    """An accepted image that a witness is asked about."""

    id: str
    sha256: str
    """Of its file."""
    prompt: str
    seed: int
    """Prompt and seed are for the simulator's stand-ins; for others the prompt is ""."""


@dataclass(frozen=True)
class HearUnit:
    """A witness is asked about images."""

    id: str
    items: tuple[HearItem, ...]
    witness: str
    """Its name (`Witness.name`)."""
    kind: WitnessKind


@dataclass(frozen=True)
class ExportItem:
    """An image of the dataset."""

    id: str
    split: str
    labels: tuple[str, ...]
    origin: Origin
    sha256: str
    """Of its file; "" where that is not known."""
    mask_sha256: str
    real: tuple[str, str] | None = None
    """Image and mask of a real image, relative to the run folder; None for one that was generated."""


@dataclass(frozen=True)
class ExportUnit:
    """Images whose files of an export are written."""

    id: str
    items: tuple[ExportItem, ...]
    form: str
    """A format of `datasets.detect.EXPORTS`."""
    place: str
    """The folder or the URL that the export is written to (`Sink.place`)."""
    keeps_objects: bool
    """Whether the command wants to know the objects that were found in masks."""
    kind: Literal["export"] = "export"


Unit = DrawUnit | MaskUnit | TeachUnit | RelabelUnit | HearUnit | ExportUnit


def unit_id(kind: Kind, *depends_on: object, images: Sequence[str]) -> str:
    """A short id of a unit; `depends_on` is whatever the result depends on beside the images."""
    return make_id("u", kind, *depends_on, *images)
