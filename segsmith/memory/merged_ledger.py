"""The ledger of a merged run: the rows of several ledgers, and the duplicates among their images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segsmith.memory.ledger import Ledger, RunSummary
from segsmith.memory.schema import open_ledger, open_ledger_read_only

TABLES = (
    "prompts",
    "images",
    "undrawn",
    "evidence",
    "testimonies",
    "verdicts",
    "labels",
    "masks",
    "models",
    "seen",
)
"""Tables whose rows have an id of their own; of two rows with the same id the first run's is kept."""
LISTS = ("events", "usage", "decisions", "guidance")
"""Tables whose rows are numbered."""
BATCH = 1_000
BLOCK = 2_048
"""Images compared with each other at once."""


@dataclass(frozen=True)
class Duplicate:
    """An accepted image of one run that another run has, too."""

    image_id: str
    kept: str
    """The most similar accepted image of an earlier run."""
    likeness: float
    """In [-1, 1]."""


def copy_rows(sources: Sequence[Path], target: Path) -> None:
    """Write the rows of the ledgers `sources` into the new ledger `target`, in their order."""
    with closing(open_ledger(target)) as into:
        for source in sources:
            with closing(open_ledger_read_only(source)) as db:
                for table in (*TABLES, *LISTS):
                    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
                    if table in LISTS:
                        columns.remove("id")
                    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
                    rows = db.execute(f"SELECT {names} FROM {table} ORDER BY rowid")
                    while part := rows.fetchmany(BATCH):
                        into.executemany(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", part)
        into.commit()


def merge_notes(sources: Sequence[Path], ledger: Ledger) -> None:
    """Add up time and memory of the runs, and keep what their reviewers leave to the agents."""
    summary, auto = RunSummary(), set(ledger.auto)
    for source in sources:
        with closing(Ledger(source, read_only=True)) as other:
            one = other.summary
            auto |= {*other.auto}
            ledger.logit_scale = other.logit_scale
            ledger.versions = other.versions
        summary = replace(
            one,
            wall_seconds=summary.wall_seconds + one.wall_seconds,
            peak_memory_mb=max(summary.peak_memory_mb, one.peak_memory_mb),
        )
    ledger.summary = summary
    ledger.auto = tuple(sorted(auto))


def find_duplicates(sources: Sequence[Path], dimensions: int, threshold: float) -> list[Duplicate]:
    """Accepted images that are too similar to an accepted image of an earlier run.

    Likeness is the judge's: the smaller of CLIP cosine and pixel correlation. The last `dimensions` of a signature
    are the pixels. Images that a reviewer accepted are kept.
    """
    ids: list[str] = []
    earlier = np.zeros((0, 0), np.float32)
    found = []
    for source in sources:
        mine, vectors, kept = _signatures(source)
        if not len(vectors):
            continue
        best, where = np.full(len(mine), -1.0), np.zeros(len(mine), int)
        for start in range(0, len(earlier), BLOCK):
            block = earlier[start : start + BLOCK]
            for first in range(0, len(vectors), BLOCK):
                part = vectors[first : first + BLOCK]
                likeness = np.minimum(
                    part[:, :-dimensions] @ block[:, :-dimensions].T,
                    part[:, -dimensions:] @ block[:, -dimensions:].T,
                )
                nearest, rows = likeness.argmax(axis=1), slice(first, first + len(part))
                highest = likeness[np.arange(len(part)), nearest]
                better = highest > best[rows]
                best[rows] = np.where(better, highest, best[rows])
                where[rows] = np.where(better, start + nearest, where[rows])
        known, lost = set(ids), set()
        for image_id, likeness_of, index in zip(mine, best, where, strict=True):
            if likeness_of >= threshold and image_id not in kept and image_id not in known:
                found.append(Duplicate(image_id, ids[index], float(likeness_of)))
                lost.add(image_id)
        left = [n for n, image_id in enumerate(mine) if image_id not in lost and image_id not in known]
        ids += [mine[n] for n in left]
        earlier = vectors[left] if not len(earlier) else np.concatenate([earlier, vectors[left]])
    return found


def reject_duplicates(path: Path, duplicates: Sequence[Duplicate]) -> None:
    """Give duplicates that verdict; a later judgement finds it in their evidence."""
    with closing(open_ledger(path)) as db:
        for row in duplicates:
            (scores,) = db.execute("SELECT scores FROM verdicts WHERE image_id=?", (row.image_id,)).fetchone()
            scores = json.dumps({**json.loads(scores), "duplicate_cosine": row.likeness})
            db.execute(
                "UPDATE verdicts SET accepted=0, reason='duplicate', scores=? WHERE image_id=?",
                (scores, row.image_id),
            )
            db.execute(
                "UPDATE evidence SET duplicate_cosine=? WHERE image_id=?", (row.likeness, row.image_id)
            )
        db.commit()


def _signatures(path: Path) -> tuple[list[str], np.ndarray, set[str]]:
    """Ids and signatures of the accepted and measured images of a ledger, and the ids that a reviewer accepted."""
    with closing(open_ledger_read_only(path)) as db:
        rows: Iterator[tuple[str, bytes]] = db.execute(
            """SELECT e.image_id, e.signature FROM evidence e JOIN verdicts v ON v.image_id=e.image_id
               WHERE v.accepted AND LENGTH(e.signature) > 0 ORDER BY e.rowid"""
        )
        pairs = [(image_id, np.frombuffer(data, "<f4")) for image_id, data in rows]
    with closing(Ledger(path, read_only=True)) as ledger:
        kept = {i for i, row in ledger.decisions("verdict").items() if row.action == "accept"}
    vectors = np.stack([vector for _, vector in pairs]) if pairs else np.zeros((0, 0), np.float32)
    return [image_id for image_id, _ in pairs], vectors, kept
