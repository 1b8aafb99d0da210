"""Compare a run folder with its ledger: hashes, counts and references, and what a build can make again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

import numpy as np

from segsmith.config import Config
from segsmith.datasets.staging import MANIFEST
from segsmith.errors import SegsmithError
from segsmith.files import PART, Unchanged, read_index_map, sha256_of
from segsmith.memory.ledger import Ledger, MaskRow
from segsmith.memory.object_store import store_url
from segsmith.memory.remote_run import fresh_copy
from segsmith.memory.run_config import read_record
from segsmith.memory.run_folder import RunFolder
from segsmith.types import IGNORE

SOURCES = ("prompt", "clip", "real", "relabel")
"""Sources of labels in the ledger."""
ASIDE = "set-aside"
"""Folder in the run folder that takes damaged files."""

Remedy = Literal["", "mark", "build", "start"]
"""What makes it whole again: nothing, `verify --repair` and a build, a build alone, or the start of any session."""


class Defect(StrEnum):
    """What can be wrong with a run folder; `wording` explains it."""

    wording: str
    remedy: Remedy

    def __new__(cls, value: str, wording: str, remedy: Remedy) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.wording = wording
        member.remedy = remedy
        return member

    DATABASE = "damaged_database", "SQLite finds damage in a database", ""
    LOST_GRAPH = "lost_graph", "graph.db, which says where the run resumes, is missing", ""
    BEHIND = "ledger_behind", "the ledger has lost transactions that graph.db relies on", "build"
    REFERENCE = "dangling_reference", "a row names a prompt or an image that the ledger does not have", ""
    LOST_IMAGE = "lost_image", "the file of an accepted image is missing", "mark"
    OTHER_IMAGE = "other_image", "the file of an accepted image is not the one that was drawn", "mark"
    LOST_REJECT = (
        "lost_reject",
        "the file of an image that is not in the dataset is missing or another one",
        "",
    )
    STRAY_IMAGE = "stray_image", "an image file that the ledger does not know", "mark"
    LOST_MASK = "lost_mask", "the file of a mask is missing", "mark"
    OTHER_MASK = "other_mask", "the file of a mask is not the one that was made", "mark"
    STRAY_MASK = "stray_mask", "a mask file that the ledger does not know", "mark"
    NO_LABELS = "no_labels", "an accepted image of a finished run has no labels", "mark"
    NO_MASK = "no_mask", "an accepted image of a finished run has no mask", "mark"
    LOST_REAL = "lost_real_image", "the copy of a user's image or label map is missing or another one", ""
    DATASET = "dataset", "a file of dataset/voc is missing or not as it was written", "build"
    COUNT = "other_count", "dataset/voc does not hold the images that are accepted and masked", "mark"
    SEGMENTER = "lost_segmenter", "the trained segmenter is missing", "build"
    OTHER_SEGMENTER = "other_segmenter", "the segmenter is not the one that the run trained", "build"
    REPORT = "lost_report", "report.html is missing", "build"
    PART_FILE = "part_file", "a half-written file of a session that was killed", "start"


@dataclass(frozen=True)
class Finding:
    """One defect, and the file, id or database that has it."""

    defect: Defect
    where: str
    detail: str = ""


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    images: int
    """Images in the ledger."""
    masks: int
    finished: bool
    findings: tuple[Finding, ...]
    marked: tuple[Finding, ...] = ()
    """Those that were marked for the next build; damaged files were moved to ``set-aside/``."""

    @property
    def open(self) -> tuple[Finding, ...]:
        """Findings that were not marked."""
        return tuple(found for found in self.findings if found not in self.marked)


def verify(run: str | Path, *, repair: bool = False) -> Verification:
    """Check the files of a run against its ledger, and the ledger against itself; loads no model.

    With `repair`, what a build can make again is marked as not made: damaged and unknown files move to ``set-aside/``
    and their rows go, so that the next build draws, labels or segments them again. A run that has not finished
    drawing replaces lost images as it continues; one that is past drawing and not finished continues without them.
    A run in an object store is read from there, whatever this machine has of it, and cannot be repaired. Raises
    `SegsmithError` for a folder without a run, and with `repair` for one that another process holds.
    """
    with ExitStack() as stack:
        url = store_url(run)
        if url is None:
            return _verify(run, RunFolder(Path(run)), repair)
        if repair:
            raise SegsmithError(
                f"{url} cannot be repaired: only files in a folder can be set aside.",
                "Leave out --repair; build the run again at another URL if it is damaged.",
            )
        return _verify(run, RunFolder(stack.enter_context(fresh_copy(url))), repair)


def _verify(run: str | Path, folder: RunFolder, repair: bool) -> Verification:
    if not folder.config.exists():
        raise SegsmithError(f"{run} is not a run folder (no run.toml).", "Start one with `segsmith build`.")
    config = read_record(folder.config).config
    with ExitStack() as stack:
        if repair:
            stack.enter_context(folder.held())
        damaged = list(_databases(folder))
        if any(found.where == folder.ledger.name for found in damaged):
            return Verification(0, 0, False, tuple(damaged))
        ledger = Ledger(folder.ledger, read_only=not repair)
        stack.callback(ledger.close)
        findings = (
            *damaged,
            *_sequence(folder, ledger, damaged),
            *_references(ledger),
            *_images(folder, ledger),
            *_masks(folder, ledger, config),
            *_real_images(folder),
            *_results(folder, ledger),
            *_part_files(folder),
        )
        found = Verification(
            len(ledger.images()), len(ledger.masks()), ledger.finished_at is not None, findings
        )
        return replace(found, marked=_mark(folder, ledger, findings)) if repair else found


# -- checks -----------------------------------------------------------------------------------------


def _databases(folder: RunFolder) -> Iterator[Finding]:
    """SQLite's own check of the ledger and of the graph's checkpoints."""
    for path in (folder.ledger, folder.graph):
        if not path.exists():
            yield Finding(
                Defect.LOST_GRAPH if path == folder.graph else Defect.DATABASE, path.name, "no file"
            )
            continue
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
                (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as error:
            said = str(error)
        if said != "ok":
            yield Finding(Defect.DATABASE, path.name, str(said).splitlines()[-1])


def _sequence(folder: RunFolder, ledger: Ledger, damaged: Iterable[Finding]) -> Iterator[Finding]:
    """The ledger's number of transactions, compared with the one that the graph has seen."""
    from segsmith.graph.checkpoints import newest_sequence

    if any(found.where == folder.graph.name for found in damaged):
        return
    seen = newest_sequence(folder.graph)
    if seen > ledger.sequence:
        yield Finding(Defect.BEHIND, folder.ledger.name, f"{ledger.sequence} transactions of {seen}")


def _references(ledger: Ledger) -> Iterator[Finding]:
    prompts, images = {p.id for p in ledger.prompts()}, {i.id for i in ledger.images()}
    for prompt in ledger.prompts():
        if prompt.parent_id is not None and prompt.parent_id not in prompts:
            yield Finding(Defect.REFERENCE, prompt.id, f"refines {prompt.parent_id}")
    for image in ledger.images():
        if image.prompt_id not in prompts:
            yield Finding(Defect.REFERENCE, image.id, f"drawn from {image.prompt_id}")
    tables: dict[str, Collection[str]] = {"verdict": ledger.verdicts(), "mask": ledger.masks()}
    tables |= {f"{source} labels": ledger.labels(source) for source in SOURCES}
    for name, rows in tables.items():
        yield from (Finding(Defect.REFERENCE, i, f"has a {name} row alone") for i in rows if i not in images)


def _images(folder: RunFolder, ledger: Ledger) -> Iterator[Finding]:
    accepted = set(ledger.accepted_ids())
    known = {folder.image(id_) for id_ in ledger.pending_images()}
    for row in ledger.images():
        path = folder.image(row.id)
        known.add(path)
        detail = "" if not path.is_file() else "its SHA-256 differs"
        if path.is_file() and sha256_of(path) == row.sha256:
            continue
        lost = Defect.OTHER_IMAGE if detail else Defect.LOST_IMAGE
        yield Finding(lost if row.id in accepted else Defect.LOST_REJECT, row.id, detail)
    yield from _strangers(folder.image_files(), folder.images, known, Defect.STRAY_IMAGE)


def _masks(folder: RunFolder, ledger: Ledger, config: Config) -> Iterator[Finding]:
    masks = ledger.masks()
    for row in masks.values():
        path = folder.mask(row.image_id)
        if not path.is_file():
            yield Finding(Defect.LOST_MASK, row.image_id)
        elif why := _differs(path, row, config):
            yield Finding(Defect.OTHER_MASK, row.image_id, why)
    known = {folder.mask(id_) for id_ in masks}
    yield from _strangers(folder.mask_files(), folder.masks, known, Defect.STRAY_MASK)
    if ledger.finished_at is not None:
        labels = ledger.labels("relabel")
        for image in ledger.accepted():
            if image.id not in labels:
                yield Finding(Defect.NO_LABELS, image.id)
            elif image.id not in masks:
                yield Finding(Defect.NO_MASK, image.id)


def _differs(path: Path, row: MaskRow, config: Config) -> str:
    """How a mask differs from its row, by hash or in a ledger without hashes by pixel counts; "" if it does not."""
    if row.sha256:
        return "" if sha256_of(path) == row.sha256 else "its SHA-256 differs"
    try:
        mask = read_index_map(path)
    except OSError as error:
        return str(error)
    counts = {name: int((mask == n).sum()) for n, name in enumerate(config.classes, 1)}
    same = all(row.pixels.get(name, 0) == count for name, count in counts.items())
    same &= abs(float(np.mean(mask == IGNORE)) - row.ignore_share) < 1e-6
    return "" if same else "its pixels per class differ"


def _strangers(
    files: Iterable[Path], folder: Path, known: Collection[Path], defect: Defect
) -> Iterator[Finding]:
    """Files without a row, by their paths below `folder`."""
    for path in files:
        if path not in known:
            yield Finding(defect, path.relative_to(folder).as_posix())


def _real_images(folder: RunFolder) -> Iterator[Finding]:
    """The copies of the user's images, in a run that augments a dataset."""
    from segsmith.memory.real_images import RealSet

    real = RealSet.open(folder.real)
    if real is None:
        return
    for image in real.images:
        expected = {real.image(image): image.sha256}
        if image.mask_sha256:
            expected[real.mask(image)] = image.mask_sha256
        for path, sha256 in expected.items():
            if not path.is_file() or (sha256 and sha256_of(path) != sha256):
                yield Finding(Defect.LOST_REAL, path.relative_to(folder.root).as_posix())


def _results(folder: RunFolder, ledger: Ledger) -> Iterator[Finding]:
    """The dataset, the segmenter and the report of a finished run."""
    if ledger.finished_at is None or ledger.built_from is None:
        return
    # The dataset of a run in an object store is made where it is needed.
    kept = folder.remote is None or folder.voc.exists()
    damaged = list(damaged_files(folder.voc)) if kept else []
    yield from (Finding(Defect.DATASET, f"dataset/voc/{name}") for name in damaged)
    if kept and not damaged:
        exported = _exported(folder)
        wanted = set(ledger.accepted_ids()) & (ledger.masks().keys() - ledger.rejected("mask"))
        if exported is not None and exported != wanted:
            detail = f"{len(exported - wanted)} too many, {len(wanted - exported)} missing"
            yield Finding(Defect.COUNT, "dataset/provenance.jsonl", detail)
    if not folder.segmenter.is_file():
        yield Finding(Defect.SEGMENTER, "checkpoints/segmenter.safetensors")
    elif not is_trained_segmenter(folder, ledger):
        yield Finding(Defect.OTHER_SEGMENTER, "checkpoints/segmenter.safetensors", "its SHA-256 differs")
    if not folder.report.is_file():
        yield Finding(Defect.REPORT, folder.report.name)


def is_trained_segmenter(folder: RunFolder, ledger: Ledger) -> bool:
    """Whether the segmenter's file is the one that the run trained last, where its hash is known."""
    trained = [detail["sha256"] for _, _, detail in ledger.events("trained")]
    return not trained or sha256_of(folder.segmenter) == trained[-1]


def damaged_files(dataset: Path, since: int = 0) -> Iterator[str]:
    """Names of a dataset's files that are missing or differ from its manifest; the manifest itself, if unreadable.

    Files that have not changed `since` (see `Unchanged`) are not read.
    """
    try:
        files = json.loads((dataset / MANIFEST).read_text("utf-8"))["files"]
        hashes = {str(name): str(expected) for name, expected in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        yield MANIFEST
        return
    unchanged = Unchanged(since)
    for name, expected in hashes.items():
        if f"{dataset}/{name}" in unchanged:
            continue
        path = dataset / name
        if not path.is_file() or sha256_of(path) != expected:
            yield name


def _exported(folder: RunFolder) -> set[str] | None:
    """Ids of the generated images in the dataset; None if its provenance cannot be read."""
    try:
        lines = (folder.dataset / "provenance.jsonl").read_text("utf-8").splitlines()
        return {str(json.loads(line)["image_id"]) for line in lines if "prompt" in json.loads(line)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _part_files(folder: RunFolder) -> Iterator[Finding]:
    for path in sorted(folder.root.rglob(f"{PART}*")):
        yield Finding(Defect.PART_FILE, str(path.relative_to(folder.root)))


# -- repair -----------------------------------------------------------------------------------------


def _mark(folder: RunFolder, ledger: Ledger, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Mark what a build can make again as not made; returns the findings that were marked."""
    marked = tuple(found for found in findings if found.defect.remedy == "mark")
    at = {defect: [f.where for f in marked if f.defect is defect] for defect in Defect}
    images = [*at[Defect.LOST_IMAGE], *at[Defect.OTHER_IMAGE]]
    masks = [*at[Defect.LOST_MASK], *at[Defect.OTHER_MASK]]
    with ledger.transaction():
        ledger.forget_images(images)
        ledger.forget_masks([*masks, *images])
        built_from = ledger.built_from
        if built_from is not None and at[Defect.COUNT]:
            built_from = replace(built_from, masked="")
        if built_from is not None and (masks or at[Defect.NO_MASK]):
            built_from = replace(built_from, labels="")  # the run resumes behind the labels
        if built_from is not None and (images or at[Defect.NO_LABELS]):
            built_from = replace(built_from, accepted="")
        if built_from != ledger.built_from:
            ledger.built_from = built_from
    # The rows go first: a file without a row is not trusted by the next build, whatever happens here.
    for name in at[Defect.STRAY_IMAGE]:
        _set_aside(folder, folder.images / name)
    for name in at[Defect.STRAY_MASK]:
        _set_aside(folder, folder.masks / name)
    for id_ in images:
        _set_aside(folder, folder.image(id_))
    for id_ in {*masks, *images}:
        _set_aside(folder, folder.mask(id_))
    return marked


def _set_aside(folder: RunFolder, path: Path) -> None:
    """Move a file to ``set-aside/``, under a new name if there is one of that name."""
    if not path.exists():
        return
    place = folder.root / ASIDE / path.relative_to(folder.root)
    place.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    while place.exists():
        number += 1
        place = place.with_name(f"{path.stem}-{number}{path.suffix}")
    path.rename(place)
