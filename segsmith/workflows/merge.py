"""Join runs of the same classes into one, with the duplicates across them rejected."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from segsmith.agents.judge.measure import THUMBNAIL
from segsmith.config import Config, merged_config
from segsmith.errors import SegsmithError
from segsmith.files import PART, ImageFormat, local_folder, write_atomic
from segsmith.memory.ledger import ImageRow, Ledger
from segsmith.memory.merged_ledger import copy_rows, find_duplicates, merge_notes, reject_duplicates
from segsmith.memory.prompt_memory import copy_memory
from segsmith.memory.run_config import (
    RunRecord,
    check_fixed_settings,
    installed_versions,
    record_of,
    setting,
    write_record,
)
from segsmith.memory.run_folder import RunFolder, read_verified
from segsmith.workflows.rejudge import settled
from segsmith.workflows.run import Run

SAME = ("classes", "judge.clip", "images.size", "images.format")
"""Settings in which the runs must agree."""


def merge(runs: Sequence[str | Path], out: str | Path) -> Run:
    """Join runs into the new run folder `out`, which can be exported, reported, built again and grown.

    Prompts, images, verdicts, labels, masks, decisions, wishes and costs are kept. Of an image that two runs have,
    and of two accepted images that are too similar (``judge.duplicate_cosine``), the one of the run that is named
    first is kept; the other's verdict becomes ``duplicate``, unless a reviewer accepted it. The settings are those
    of the first run, and as many images are wanted as by all runs together. The runs themselves do not change.

    Raises `SegsmithError` for fewer than two runs, runs of different classes, encoders, or image sizes or formats,
    a run that a process is working on, runs of `segsmith augment`, and an `out` that is not empty.
    """
    target = local_folder(out)
    folders = [RunFolder(Path(run)) for run in runs]
    records = _checked(folders, target)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(folder.held_for_reading())
        scratch = Path(tempfile.mkdtemp(prefix=PART, dir=target.absolute().parent))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        staged = RunFolder(scratch / "run")
        _write(folders, records, staged)
        if target.exists():
            target.rmdir()
        staged.root.rename(target)
    return Run(target)


def _checked(folders: Sequence[RunFolder], target: Path) -> list[RunRecord]:
    """The records of the runs, if they can be merged."""
    if len({folder.root.resolve() for folder in folders}) < max(2, len(folders)):
        raise SegsmithError(
            "Merging takes at least two different runs.", "Type segsmith merge RUN RUN --out NEW."
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SegsmithError(f"{target} exists and is not empty.", "Name a new folder with --out.")
    records = [settled(folder, record_of(folder)) for folder in folders]
    for folder, record in zip(folders, records, strict=True):
        with closing(Ledger(folder.ledger, read_only=True)) as ledger:
            check_fixed_settings(ledger, record.config, folder.root)
        if record.config.augment.dataset is not None:
            raise SegsmithError(
                f"{folder.root} is a run of `segsmith augment`, which holds real images.",
                "Merge runs of `segsmith build` only.",
            )
        for key in SAME:
            first, other = setting(records[0].config, key), setting(record.config, key)
            if first != other:
                raise SegsmithError(
                    f"{folders[0].root} has {key} = {first!r}, and {folder.root} has {other!r}.",
                    "Merge runs that agree in it.",
                )
    return records


def _write(folders: Sequence[RunFolder], records: Sequence[RunRecord], staged: RunFolder) -> None:
    config = _merged_settings([record.asked for record in records])
    ledgers = [folder.ledger for folder in folders]
    staged.create()
    copy_rows(ledgers, staged.ledger)
    duplicates = find_duplicates(ledgers, THUMBNAIL**2, config.judge.duplicate_cosine)
    reject_duplicates(staged.ledger, duplicates)
    with closing(Ledger(staged.ledger)) as ledger:
        check_fixed_settings(ledger, config, staged.root)
        merge_notes(ledgers, ledger)
        ledger.log("merged", runs=[folder.root.name for folder in folders], duplicates=len(duplicates))
    for folder in folders:
        with closing(Ledger(folder.ledger, read_only=True)) as ledger:
            for row, mask_sha256 in ledger.each_image():
                if not staged.image(row.id).exists():  # an earlier run has it, too
                    _copy_files(folder, row, mask_sha256, staged, config.images.format)
    if config.memory is None:
        memories = [
            Path(r.asked.memory) if r.asked.memory else f.memory
            for f, r in zip(folders, records, strict=True)
        ]
        copy_memory(memories, staged.memory)
    write_record(staged.config, RunRecord(config, installed_versions(), records[0].rejudged))


def _copy_files(
    folder: RunFolder, row: ImageRow, mask_sha256: str | None, staged: RunFolder, form: ImageFormat
) -> None:
    """Copy an image, and its mask where that is whole."""
    data = read_verified(folder.image(row.id), row.sha256, f"image {row.id}")
    write_atomic(staged.new_image(row.id, form), data)
    if mask_sha256 is not None and not any(folder.damaged_masks([(row.id, mask_sha256)])):
        write_atomic(staged.new_mask(row.id), folder.mask(row.id).read_bytes())


def _merged_settings(asked: Sequence[Config]) -> Config:
    """The settings of the first run, with the quotas of all runs together."""
    first = asked[0]
    wanted = {name: sum(config.wanted[name] for config in asked) for name in first.classes}
    per_class = sum(config.per_class for config in asked)
    quotas = {name: n for name, n in wanted.items() if n != per_class}
    memory = first.memory if all(config.memory == first.memory for config in asked) else None
    return merged_config(
        first.model_copy(update={"quotas": {}, "memory": memory}),
        {"per_class": per_class, "quotas": quotas},
        "the merged runs",
    )
