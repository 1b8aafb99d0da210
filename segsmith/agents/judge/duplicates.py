"""Likeness of an image to the most similar earlier one, found through an index instead of by comparing with all.

The index (faiss, HNSW) only proposes candidates; they are compared exactly by their signatures in the ledger. It is
a cache: a file that is missing, damaged or of other images is built again from the ledger. Vectors are inserted one
by one with a random generator seeded by their position, so the same images always give the same index, and a run that
was killed ends like one that was not.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsmith.files import write_atomic
from segsmith.memory.ledger import Ledger
from segsmith.types import Vectors

log = logging.getLogger(__name__)

DIMENSIONS = 128
"""Of the random projection in which candidates are searched (ours)."""
CANDIDATES = 32
"""Nearest earlier images that are compared exactly (ours)."""
LINKS, BREADTH = 16, 64
"""HNSW's M, and its efConstruction and efSearch."""
WORTH_KEEPING = 2_000
"""An index of fewer images is built again in a second, and not stored."""
READ = 1_000
_DIGEST = 32


class DuplicateIndex:
    """The signatures of all measured images, in the order of measuring; opened with the first comparison."""

    def __init__(self, ledger: Ledger, path: Path) -> None:
        """`path` is the file that the index is kept in."""
        self._ledger = ledger
        self._path = path
        self._index: Any = None
        self._rows: list[int] = []
        """Row number of evidence of each vector in the index."""
        self._digest = hashlib.sha256()
        """Of the ids of the images in the index, in order."""
        self._projection = np.zeros((0, DIMENSIONS), np.float32)
        self._length = 0
        self._stored = 0

    def compare_and_add(self, signatures: Sequence[Vectors], split: int) -> list[float]:
        """Each signature's likeness to the most similar earlier image, in [-1, 1], -1 without one.

        The smaller of CLIP cosine and pixel correlation: CLIP alone would take two cats on similar streets for the
        same image, pixels alone two empty skies. A signature is a CLIP vector of length `split`, then a thumbnail,
        both unit vectors. The caller adds these images to the ledger, in this order.
        """
        self._catch_up(len(signatures[0]))
        there, new, found = len(self._rows), list[Vectors](), list[float]()
        for signature in signatures:
            positions = self._near(signature)
            earlier = self._ledger.signatures([self._rows[i] for i in positions if i < there])
            rivals = [np.frombuffer(data, "<f4") for data in earlier.values()]
            rivals += [new[i - there] for i in positions if i >= there]
            found.append(max((likeness(signature, rival, split) for rival in rivals), default=-1.0))
            self._insert(signature)
            new.append(signature)
        return found

    def save(self) -> None:
        """Store the index, so that the next session need not build it."""
        if self._index is None or self._index.ntotal < WORTH_KEEPING:
            return
        self._catch_up(None)
        if self._index.ntotal == self._stored:
            return
        data = _faiss().serialize_index(self._index).tobytes()
        header = self._digest.digest() + hashlib.sha256(data).digest() + self._rows[-1].to_bytes(8)
        write_atomic(self._path, header + data)
        self._stored = self._index.ntotal

    def _catch_up(self, length: int | None) -> None:
        """Bring the index to the state of the ledger: other images than those added last, or none, were committed."""
        if self._index is None:
            assert length is not None
            self._open(length)
        after = self._rows[-1] if self._rows else 0
        added = self._ledger.measured_rows(after)
        if self._index.ntotal - len(self._rows) != len(added):
            # Vectors of this session whose images were not committed, or images that the index lacks.
            if self._index.ntotal > len(self._rows):
                self._open(self._length)
                added = self._ledger.measured_rows(self._rows[-1] if self._rows else 0)
            for start in range(0, len(added), READ):
                part = [row for row, _ in added[start : start + READ]]
                signatures = self._ledger.signatures(part)
                for row in part:
                    self._insert(np.frombuffer(signatures[row], "<f4"))
        for row, image_id in added:
            self._rows.append(row)
            self._digest.update(image_id.encode())

    def _open(self, length: int) -> None:
        """The stored index if it is one of the first images of this ledger; else an empty one."""
        self._length = length
        rng = np.random.default_rng(length)
        self._projection = rng.normal(size=(length, DIMENSIONS)).astype(np.float32)
        self._rows, self._digest, self._stored = [], hashlib.sha256(), 0
        self._index = _faiss().IndexHNSWFlat(DIMENSIONS, LINKS)
        if self._path.exists():
            try:
                self._read(self._path.read_bytes())
            except (OSError, RuntimeError, ValueError) as error:
                log.warning("%s cannot be used (%s); it is built again from the ledger", self._path, error)
                self._rows, self._digest = [], hashlib.sha256()
                self._index = _faiss().IndexHNSWFlat(DIMENSIONS, LINKS)
        self._index.hnsw.efConstruction = self._index.hnsw.efSearch = BREADTH

    def _read(self, data: bytes) -> None:
        """Take over a stored index. Raises `ValueError` where it is damaged, or was made of other images."""
        images, content, last = data[:_DIGEST], data[_DIGEST : 2 * _DIGEST], data[2 * _DIGEST :][:8]
        data = data[2 * _DIGEST + 8 :]
        if hashlib.sha256(data).digest() != content:
            raise ValueError("damaged")
        index = _faiss().deserialize_index(np.frombuffer(data, np.uint8))
        rows = [(row, i) for row, i in self._ledger.measured_rows() if row <= int.from_bytes(last)]
        digest = hashlib.sha256("".join(i for _, i in rows).encode())
        if digest.digest() != images or index.ntotal != len(rows) or index.d != DIMENSIONS:
            raise ValueError("it is of other images")
        self._index, self._rows, self._digest = index, [row for row, _ in rows], digest
        self._stored = index.ntotal

    def _near(self, signature: Vectors) -> list[int]:
        """Positions of the candidates."""
        if not self._index.ntotal:
            return []
        _, found = self._index.search(self._projected(signature), CANDIDATES)
        return [int(i) for i in found[0] if i >= 0]

    def _insert(self, signature: Vectors) -> None:
        self._index.hnsw.rng = _faiss().RandomGenerator(self._index.ntotal)
        self._index.add(self._projected(signature))

    def _projected(self, signature: Vectors) -> NDArray[np.float32]:
        projected = signature @ self._projection
        return np.asarray(projected / (np.linalg.norm(projected) + 1e-12), np.float32)[None]


def _faiss() -> Any:
    """Imported with the first comparison, because it takes a second."""
    import faiss

    return faiss


def likeness(one: Vectors, other: Vectors, split: int) -> float:
    """The smaller of the CLIP cosine and the pixel correlation of two signatures, in [-1, 1]."""
    return float(min(one[:split] @ other[:split], one[split:] @ other[split:]))
