"""Writing a run's dataset in a format, completely or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from segsmith.config import Config
from segsmith.datasets.card import write_card
from segsmith.datasets.detect import EXPORTS, FORMATS
from segsmith.datasets.mask_objects import ObjectCache
from segsmith.datasets.object_sink import replace_objects
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


def export_dataset(
    run: RunFolder, ledger: Ledger, config: Config, form: str = "voc", out: Path | str | None = None
) -> ExportSummary:
    """Write the accepted, masked images in a format of `EXPORTS`; `out` defaults to ``dataset/<form>`` in the run.

    `out` may be a URL of an object store, whose objects are written one after the other (`object_sink`).

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
    data = collect(run, ledger, config)
    data = replace(data, card=write_card(ledger, config, data.records))
    url = None if out is None else store_url(out)
    place: Path | str = run.dataset / form if out is None else url or Path(out)
    # Who may write to the ledger holds the run, and may add to the cache.
    with ObjectCache(run.objects, read_only=ledger.read_only, entries=len(data.records)) as cache:
        return _written(replace(data, cache=cache), form, place)


def _written(data: RunDataset, form: str, out: Path | str) -> ExportSummary:
    chosen = FORMATS[form]
    assert chosen.write is not None
    write = chosen.write
    notes: list[str] = []
    digest = data.digest(f"{form}-{chosen.version}")

    def fill(sink: Sink) -> None:
        notes.extend(write(sink, data))

    written = (
        replace_objects(out, digest, fill) if isinstance(out, str) else replace_folder(out, digest, fill)
    )
    return ExportSummary(out, len(data.records), data.counts, written, tuple(notes))
