"""The one record of a labelled image, read from a dataset or written to one, and the dataset that holds it."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsmith.files import Conversion, DecodedImage, open_image, png_bytes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class Problem:
    """Something wrong with a dataset: a kind from `segsmith.datasets.validate`, the file, and a sentence."""

    kind: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.text}"


class DataError(Exception):
    """A record or a dataset cannot be read; `problem` says why."""

    def __init__(self, kind: str, where: object, text: str) -> None:
        self.problem = Problem(kind, str(where), text)
        super().__init__(str(self.problem))


@dataclass(frozen=True)
class Sample:
    """The pixels of a record.

    `data` is the encoded image as stored, `label_map` (H, W) uint8: 0 background, i the i-th class, 255 unknown;
    None where there is no mask. `problems` are those that leave the sample usable.
    """

    data: bytes
    label_map: NDArray[np.uint8] | None
    problems: tuple[Problem, ...] = ()

    @cached_property
    def _decoded(self) -> DecodedImage:
        return open_image(self.data)

    def decode(self) -> Sample:
        """Decode the image now instead of at its first use; errors as of `open_image`."""
        assert self._decoded is not None
        return self

    @property
    def image(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, upright."""
        return self._decoded.pixels

    @property
    def format(self) -> str:
        """Of the stored image, as in `segsmith.files.IMAGE_FORMATS`."""
        return self._decoded.header.format

    @property
    def conversions(self) -> tuple[Conversion, ...]:
        """What was done to the stored image to get `image`."""
        return self._decoded.header.conversions

    @property
    def png(self) -> bytes:
        """The image as PNG: as stored where it is one whose pixels are `image`."""
        return self.data if self._is_stored_as("PNG") else png_bytes(np.ascontiguousarray(self.image))

    @property
    def jpeg(self) -> bytes | None:
        """The image as stored, where it is a JPEG whose pixels are `image`."""
        return self.data if self._is_stored_as("JPEG") else None

    @property
    def index_png(self) -> bytes:
        """The label map as grey PNG, whose values no reader mistakes for colours."""
        assert self.label_map is not None
        return png_bytes(self.label_map)

    def _is_stored_as(self, form: str) -> bool:
        return self.format == form and not self.conversions


class Scores(Mapping[str, float]):
    """Numbers by name, of which a dataset holds millions: a tenth of a dict's memory."""

    __slots__ = ("_names", "_values")

    def __init__(self, scores: Mapping[str, float], names: dict[tuple[str, ...], tuple[str, ...]]) -> None:
        """`names` is filled with the names that `Scores` have, which those of the same names share."""
        own = tuple(scores)
        self._names = names.setdefault(own, own)
        self._values = array("d", scores.values())

    def __getitem__(self, name: str) -> float:
        try:
            return self._values[self._names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Scores({dict(self)})"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an image of a run comes from: a prompt and an image model, or the user's dataset."""

    prompt: str = ""
    prompt_id: str = ""
    family: str = ""
    """The prompt that this prompt and its siblings were refined from."""
    seed: int = 0
    backend: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Of the judge."""
    source: str = "generated"
    """Or "real": an image of the user's dataset."""
    original: str = ""
    """Of a real image: its id in that dataset."""


@dataclass(frozen=True)
class Record:
    """One labelled image. `load` reads its pixels, or raises `DataError`.

    `labels` are the image labels where the format states them. `where` names the record in messages.
    `image_path` is None inside a shard and for images of a run, `origin` None in datasets that segsmith did not make.
    """

    id: str
    split: str
    where: str
    load: Callable[[], Sample]
    labels: tuple[str, ...] | None = None
    image_path: Path | None = None
    origin: Origin | None = None

    def provenance(self) -> dict[str, Any]:
        """What every export keeps beside the image, as JSON."""
        stated = {"split": self.split, "classes": list(self.labels or ())}
        if self.origin is None:
            return {"id": self.id, **stated}
        origin = self.origin
        return {
            "id": self.id,
            "source": origin.source,
            **({"original": origin.original} if origin.original else {}),
            **stated,
            "prompt": origin.prompt,
            "prompt_id": origin.prompt_id,
            "prompt_family": origin.family,
            "seed": origin.seed,
            "backend": origin.backend,
            # JSON has no NaN.
            "scores": {k: v if math.isfinite(v) else None for k, v in origin.scores.items()},
        }


@dataclass
class LabelledDataset:
    """A dataset as its reader found it.

    `records` can be iterated repeatedly; `problems` are those found without reading pixels. A format without
    splits puts everything into split "". `exact_images` is False where the format stores JPEG, so that a
    comparison with the original must allow for it. `knows_background` is False where 0 in a label map may
    also mean that the pixel was not labelled. `without_specks` is True where small objects became unknown
    (`segsmith.datasets.instances.without_specks`).
    """

    format: str
    root: Path
    classes: tuple[str, ...]
    records: Iterable[Record]
    problems: list[Problem] = field(default_factory=list)
    has_label_maps: bool = True
    exact_images: bool = True
    knows_background: bool = True
    without_specks: bool = False

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)


def lossless(records: Iterable[Record]) -> bool:
    """Are all images PNG, so that they can be compared exactly?"""
    return all(record.image_path is None or record.image_path.suffix == ".png" for record in records)
