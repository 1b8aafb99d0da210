"""The files of images in an export, written by workers into the folder that is being filled, or to its URL.

Results of units hold names and hashes for the manifest, and what the format's `Writer.finish` needs. They are kept
beside the files while the export is written and are no part of it. Unlike a run, an export does not continue where a
killed command stopped: it is written anew.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from segsmith.datasets.detect import FORMATS
from segsmith.datasets.mask_objects import FoundObjects
from segsmith.datasets.object_sink import ObjectSink
from segsmith.datasets.records import Record
from segsmith.datasets.run_dataset import RunDataset, StoredImage
from segsmith.datasets.staging import SharedSink, Sink
from segsmith.engine.dispatch import Batch
from segsmith.engine.object_units import ObjectUnitStore
from segsmith.engine.store import StagedUnitStore, UnitStore
from segsmith.engine.units import ExportItem, ExportUnit, Unit, unit_id
from segsmith.errors import SegsmithError
from segsmith.memory.object_store import ObjectStore, in_parallel, store_url
from segsmith.memory.run_folder import RunFolder
from segsmith.types import MEASURED_TOGETHER

WORK = ".work"
"""Sub-folder of a folder that is being filled, with the results of units."""

RunBatch = Callable[[list[ExportUnit], UnitStore, Callable[[Unit], None]], Batch]
"""`run_units` with the pool of a run: takes units, the store of their results, and what folds one."""


# -- for the command --------------------------------------------------------------------------------------


def write_records(
    run: RunFolder, sink: Sink, data: RunDataset, form: str, run_batch: RunBatch
) -> Iterator[Any]:
    """Let workers write the files of all images; returns what `Writer.write_one` returned for each, in order.

    Everything is written when this returns, and workers that are late write nothing more. Raises what `run_units`
    raises, and `SegsmithError` where a unit failed too often.
    """
    cache = data.cache if data.cache is not None and data.cache.is_kept else None
    units = _units(run, sink.place, data, form, keeps_objects=cache is not None)
    with ExitStack() as stack:
        results = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", dir=sink.root))
        with tempfile.TemporaryFile("w+", encoding="utf-8", dir=sink.root) as objects:
            _run(units, sink, run_batch, results, objects)
            if cache is not None:
                # Not before: workers read the cache, and a database that changes cannot be read without locks.
                objects.seek(0)
                for line in objects:
                    mask, packed = line.split()
                    cache.add_packed(mask, base64.b64decode(packed))
        return _lines(results, stack.pop_all())


def _run(units: list[ExportUnit], sink: Sink, run_batch: RunBatch, results: TextIO, objects: TextIO) -> None:
    store = _store_of(sink.place)
    if isinstance(store, StagedUnitStore):
        Path(sink.place, WORK).mkdir()
    else:
        store.forget(store.units())  # of an export that was interrupted, and perhaps overwritten since
    store.check()

    def fold(unit: Unit) -> None:
        found = store.result(unit.id)
        sink.list(found["files"])
        results.writelines(f"{line}\n" for line in found["written"])
        objects.writelines(f"{mask} {packed}\n" for mask, packed in found["objects"].items())
        store.empty(unit.id)

    try:
        batch = run_batch(units, store, fold)
    finally:
        _remove_work(sink.place, store)
    if batch.set_aside:
        reasons = "; ".join(sorted({item.reason.rstrip(".") for item in batch.set_aside}))
        raise SegsmithError(
            f"{len(batch.set_aside)} of {len(units)} units of the export could not be done: {reasons}.",
            "Fix that, then run the same command again.",
        )


def _remove_work(place: str, store: UnitStore) -> None:
    if isinstance(store, StagedUnitStore):
        # Renamed first: nobody finds it then, so that it can be removed while a worker is late.
        gone = Path(place, f"{WORK}.gone")
        os.rename(Path(place, WORK), gone)
        shutil.rmtree(gone)
    else:
        store.forget(store.units())


def _lines(file: TextIO, stack: ExitStack) -> Iterator[Any]:
    with stack:
        file.seek(0)
        for line in file:
            yield json.loads(line)


def _units(
    run: RunFolder, place: str, data: RunDataset, form: str, *, keeps_objects: bool
) -> list[ExportUnit]:
    units = []
    for start in range(0, len(data.records), MEASURED_TOGETHER):
        items = tuple(
            _item(run, record, data.stored[record.id])
            for record in data.records[start : start + MEASURED_TOGETHER]
        )
        name = unit_id("export", form, images=[item.id for item in items])
        units.append(ExportUnit(name, items, form, place, keeps_objects))
    return units


def _item(run: RunFolder, record: Record, stored: StoredImage) -> ExportItem:
    assert record.origin is not None
    real = None
    if record.origin.source == "real":
        image, mask = (Path(path).relative_to(run.root) for path in (stored.image, stored.mask))
        real = str(image), str(mask)
    return ExportItem(
        record.id,
        record.split,
        record.labels or (),
        record.origin,
        stored.sha256,
        stored.mask_sha256,
        real,
    )


# -- for workers ------------------------------------------------------------------------------------------


def export_store(place: str) -> UnitStore:
    """Where the results of an export's units are. Raises `SegsmithError` for a folder that this machine lacks."""
    store = _store_of(place)
    if isinstance(store, StagedUnitStore) and not Path(place, WORK).is_dir():
        raise SegsmithError(
            f"The folder {place} is not on this machine.",
            "Name one with --out that all machines see under the same path, or an s3:// URL.",
        )
    return store


def write_unit(run: RunFolder, classes: tuple[str, ...], unit: ExportUnit, folder: Path) -> dict[str, Any]:
    """Write the files of a unit's images, into `folder` until each is whole.

    The result has `files` (path -> SHA-256), `written` (what `Writer.write_one` returned, as JSON) and `objects`
    (SHA-256 of a mask -> its packed objects in base64, of masks that the run's cache does not hold).
    """
    writer = FORMATS[unit.form].write
    assert writer is not None
    url = store_url(unit.place)
    sink = SharedSink(Path(unit.place), folder) if url is None else ObjectSink(ObjectStore(url), folder)
    run.fetch([item.id for item in unit.items if item.real is None], masks=True)
    pairs = [_record(run, item) for item in unit.items]
    with FoundObjects(run.objects) as cache:
        stored = {record.id: files for record, files in pairs}
        data = RunDataset(classes, tuple(record for record, _ in pairs), stored, cache=cache)
        write = partial(writer.write_one, sink, data)
        # A store answers many requests at once; files are written by as many workers as there are CPUs.
        results = (
            [write(record) for record in data.records] if url is None else in_parallel(write, data.records)
        )
    found = cache.packed if unit.keeps_objects else {}
    packed = {mask: base64.b64encode(entry).decode() for mask, entry in found.items()}
    return {"files": sink.files, "written": [json.dumps(result) for result in results], "objects": packed}


def _record(run: RunFolder, item: ExportItem) -> tuple[Record, StoredImage]:
    if item.real is None:
        image, mask = run.image_file(item.id), run.mask_file(item.id)
    else:
        image, mask = (str(run.root / path) for path in item.real)
    files = StoredImage(image, mask, item.sha256, item.mask_sha256)
    return Record(item.id, item.split, item.id, _not_loaded, item.labels, origin=item.origin), files


def _not_loaded() -> Any:
    raise NotImplementedError("an export reads stored files (`RunDataset.read`)")


def _store_of(place: str) -> UnitStore:
    url = store_url(place)
    return StagedUnitStore(Path(place, WORK)) if url is None else ObjectUnitStore(ObjectStore(url))
