"""Writing a run's dataset in a format, completely or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from segsmith.config import Config
from segsmith.datasets.card import write_card
from segsmith.datasets.detect import EXPORTS, FORMATS
from segsmith.datasets.mask_objects import ObjectCache
from segsmith.datasets.object_sink import replace_objects
from segsmith.datasets.parallel import in_order
from segsmith.datasets.run_dataset import RunDataset, collect
from segsmith.datasets.staging import Sink, replace_folder
from segsmith.errors import SegsmithError
from segsmith.memory.ledger import Ledger
from segsmith.memory.object_store import store_url
from segsmith.memory.run_folder import RunFolder


@dataclass(frozen=True)
class ExportSummary:
    """What an export holds. `written` is False when an identical one was already there."""

    folder: Path | str
    """A URL for an export to an object store."""
    images: int
    splits: Mapping[str, int]
    written: bool
    notes: tuple[str, ...] = ()
    """What was left out and why; empty for an export that was already there."""


WriteElsewhere = Callable[[Sink, RunDataset, str], Iterator[Any]]
"""Lets others do `Writer.write_one` of a format for all images, and returns what it returned for each, in order."""


def export_dataset(
    run: RunFolder,
    ledger: Ledger,
    config: Config,
    form: str = "voc",
    out: Path | str | None = None,
    elsewhere: WriteElsewhere | None = None,
) -> ExportSummary:
    """Write the accepted, masked images in a format of `EXPORTS`; `out` defaults to ``dataset/<form>`` in the run.

    `out` may be a URL of an object store, whose objects are written one after the other (`object_sink`). With
    `elsewhere` others write the files of images, except in formats whose work cannot be split (`splits_work`).

    Label maps keep their indices (0 background, 1.. in the order of `config.classes`, 255 unknown).
    Everything is written to a sibling folder and renamed, so a reader never finds half an export. An
    identical export is left alone; an older one is removed only after the new one is in place. The caller
    holds the run folder (`RunFolder.held`).

    Raises `SegsmithError` when nothing can be exported, an image does not fit its mask, another process
    exports to `out`, or `out` holds files that no export wrote.
    """
    if form not in EXPORTS:
        raise SegsmithError(
            f"segsmith does not write the format {form!r}.", f"Use one of {', '.join(EXPORTS)}."
        )
    if elsewhere is not None and not splits_work(form):
        elsewhere = None
    data = collect(run, ledger, config, fetch=elsewhere is None)
    data = replace(data, card=write_card(ledger, config, data.records))
    url = None if out is None else store_url(out)
    place: Path | str = run.dataset / form if out is None else url or Path(out)
    # Who may write to the ledger holds the run, and may add to the cache.
    with ObjectCache(run.objects, read_only=ledger.read_only, entries=len(data.records)) as cache:
        return _written(replace(data, cache=cache), form, place, elsewhere)


def check_splits_work(form: str) -> None:
    """Raise `SegsmithError` for a format of `EXPORTS` that only one process can write."""
    if form in EXPORTS and not splits_work(form):
        raise SegsmithError(
            f"The format {form} is written by one process.",
            "Leave out --engine, --address and --workers, or name another --format.",
        )


def splits_work(form: str) -> bool:
    """Whether several processes can write a format of `EXPORTS`."""
    writer = FORMATS[form].write
    return writer is not None and writer.splits_work


def _written(data: RunDataset, form: str, out: Path | str, elsewhere: WriteElsewhere | None) -> ExportSummary:
    chosen = FORMATS[form]
    assert chosen.write is not None
    writer = chosen.write
    notes: list[str] = []
    digest = data.digest(f"{form}-{chosen.version}")

    def fill(sink: Sink) -> None:
        records = writer.order(data)
        if elsewhere is None:
            results = in_order(partial(writer.write_one, sink, data), records)
        else:
            results = elsewhere(sink, data, form)
        notes.extend(writer.finish(sink, data, zip(records, results, strict=True)))

    written = (
        replace_objects(out, digest, fill) if isinstance(out, str) else replace_folder(out, digest, fill)
    )
    return ExportSummary(out, len(data.records), data.counts, written, tuple(notes))
