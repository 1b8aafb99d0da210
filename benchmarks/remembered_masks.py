"""A SAM whose masks are kept in a file: ablations that change something else ask for most of them again."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.protocols import PointSegmenter
from segsmith.types import Image, MaskCandidates

Points = NDArray[np.float32]


class RememberedMasks:
    """A `PointSegmenter` that asks another one only for what `file` does not have.

    `settings` stands for all that decides its masks besides image and points.
    """

    def __init__(self, file: Path, settings: str, load: Callable[[], PointSegmenter]) -> None:
        self.name = settings
        self._file = file
        self._load = load
        with self._opened() as db:
            db.execute("CREATE TABLE IF NOT EXISTS masks (key BLOB PRIMARY KEY, scores BLOB, packed BLOB)")

    @cached_property
    def _sam(self) -> PointSegmenter:
        return self._load()

    def _opened(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(self._file, isolation_level=None))

    def segment(self, image: Image, point_sets: Sequence[Points]) -> list[MaskCandidates]:
        """See `PointSegmenter.segment`."""
        keys = [self._key(image, points) for points in point_sets]
        with self._opened() as db:
            found = {key: masks for key in keys if (masks := _read(db, key, image.shape[:2])) is not None}
            missing = [i for i, key in enumerate(keys) if key not in found]
            if missing:
                made = self._sam.segment(image, [point_sets[i] for i in missing])
                for i, masks in zip(missing, made, strict=True):
                    found[keys[i]] = masks
                    row = (keys[i], masks.scores.astype("<f4").tobytes(), np.packbits(masks.masks).tobytes())
                    db.execute("INSERT OR REPLACE INTO masks VALUES (?, ?, ?)", row)
        return [found[key] for key in keys]

    def segment_many(
        self, images: Sequence[Image], point_sets: Sequence[Sequence[Points]]
    ) -> list[list[MaskCandidates]]:
        """See `PointSegmenter.segment_many`."""
        return [self.segment(image, sets) for image, sets in zip(images, point_sets, strict=True)]

    def _key(self, image: Image, points: Points) -> bytes:
        parts = (self.name.encode(), repr(image.shape).encode(), image.tobytes(), points.tobytes())
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def _read(db: sqlite3.Connection, key: bytes, size: tuple[int, ...]) -> MaskCandidates | None:
    row = db.execute("SELECT scores, packed FROM masks WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    scores = np.frombuffer(row[0], "<f4").astype(np.float32)
    bits = np.unpackbits(np.frombuffer(row[1], np.uint8), count=len(scores) * size[0] * size[1])
    return MaskCandidates(bits.reshape(len(scores), *size).astype(bool), scores)
