"""How a dataset is written in a format: files of each image, in any order, then those that stand for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from segsmith.datasets.records import Record
from segsmith.datasets.run_dataset import RunDataset
from segsmith.datasets.staging import Sink

Written = Iterable[tuple[Record, Any]]
"""Images in the order of the export, each with what `Writer.write_one` returned for it."""


@dataclass(frozen=True)
class Writer:
    """Writes a `RunDataset` into a `Sink`."""

    write_one: Callable[[Sink, RunDataset, Record], Any]
    """Stores the files of an image with `Sink.put`, and returns what `finish` needs to know of it."""
    finish: Callable[[Sink, RunDataset, Written], list[str]]
    """Writes the other files as it iterates; returns what a user should know of the export, a sentence each."""
    order: Callable[[RunDataset], Sequence[Record]] = lambda data: data.records
    splits_work: bool = True
    """Whether workers can write images: what `write_one` returns is then JSON, and without pixels."""
