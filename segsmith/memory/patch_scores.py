"""``patch_scores.npz``: the labeler's score maps, written and read one image at a time."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.files import atomic_file, sha256_of

Maps = NDArray[np.float32]
"""(C, h, w) patch scores of one image, in [0, 1]."""


@contextmanager
def patch_score_writer(path: Path) -> Iterator[Callable[[str, Maps], None]]:
    """A function that adds the maps of an image to a new file; the file appears at `path` at the end, as a whole."""
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, maps: Maps) -> None:
            buffer = io.BytesIO()
            np.save(buffer, maps.astype(np.float16))
            # A ZipInfo has a fixed date, so the same maps give the same bytes.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED, 1)

        yield add


class PatchScoreFile:
    """Reads the maps of one image after the other. `close` it at the end."""

    def __init__(self, path: Path, sha256: str) -> None:
        """Open a file. One that is missing, damaged, or of another hash than `sha256` ("": unknown) holds nothing."""
        self._archive: zipfile.ZipFile | None = None
        self._together: dict[str, Maps] = {}
        self._names: frozenset[str] = frozenset()
        try:
            if sha256 not in ("", sha256_of(path)):
                return
            archive = zipfile.ZipFile(path)
            names = archive.namelist()
            if {"ids.npy", "maps.npy"} <= set(names):  # earlier versions stored all maps as one array
                with archive, np.load(path) as file:
                    maps = file["maps"].astype(np.float32)
                    self._together = dict(zip(file["ids"].tolist(), maps, strict=True))
                self._names = frozenset(self._together)
            else:
                self._archive = archive
                self._names = frozenset(name.removesuffix(".npy") for name in names)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return

    def holds(self, names: Sequence[str]) -> bool:
        """Whether there are maps of all these images."""
        return self._names >= set(names)

    def __getitem__(self, name: str) -> Maps:
        if self._archive is None:
            return self._together[name]
        data = io.BytesIO(self._archive.read(f"{name}.npy"))
        maps: Maps = np.load(data, allow_pickle=False).astype(np.float32)
        return maps

    def close(self) -> None:
        if self._archive is not None:
            self._archive.close()
