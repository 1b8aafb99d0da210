"""Pictures of different splits that look the same, so that a test would ask what training has shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy.fft import dctn

from segsmith.datasets.labelled_dataset import Problem

BITS = 4
"""Bits by which the hashes of a pair may differ."""
LEVELS = 8.0
"""Mean difference of two thumbnails, in grey levels, up to which they show the same picture (ours)."""
THUMBNAIL = 16
CANDIDATES = 64
"""Pictures of one band that are looked at; blank pictures would otherwise all be compared with each other."""


@dataclass(frozen=True)
class _Seen:
    split: str
    where: str
    hash: int
    thumbnail: NDArray[np.int16]


class NearDuplicates:
    """Compares each picture with those before it, by a perceptual hash and then by a thumbnail.

    The hash says which of the lowest 8 x 8 frequencies of the brightness are above their median (Zauner 2010),
    so it survives resizing and compression. Cut into one band more than the bits that may differ, two hashes
    of a pair share a band.
    """

    def __init__(self) -> None:
        self._bands: dict[tuple[int, int], list[_Seen]] = defaultdict(list)

    def add(self, split: str, where: str, image: NDArray[np.uint8]) -> Iterator[Problem]:
        """Remember an (H, W, 3) picture; name the first one of another split that looks like it."""
        seen = _describe(split, where, image)
        bands = [(band, bits) for band, bits in enumerate(_cut(seen.hash))]
        before = (other for band in bands for other in self._bands[band][-CANDIDATES:])
        partner = next((other for other in before if other.split != split and _alike(seen, other)), None)
        if partner is not None:
            yield Problem("near_duplicate", where, f"{split} looks like {partner.where} of {partner.split}")
        for band in bands:
            self._bands[band].append(seen)


def _describe(split: str, where: str, image: NDArray[np.uint8]) -> _Seen:
    picture = PILImage.fromarray(image)
    grey = np.asarray(picture.convert("L").resize((32, 32), PILImage.Resampling.BOX), np.float32)
    waves = dctn(grey, norm="ortho")[:8, :8].ravel()
    waves[0] = 0  # overall brightness says nothing
    bits = np.packbits(waves > np.median(waves))
    small = picture.resize((THUMBNAIL, THUMBNAIL), PILImage.Resampling.BOX)
    return _Seen(split, where, int.from_bytes(bits.tobytes(), "big"), np.asarray(small, np.int16))


def _cut(hash_: int) -> list[int]:
    width = 64 // (BITS + 1) + 1
    return [hash_ >> (band * width) & ((1 << width) - 1) for band in range(BITS + 1)]


def _alike(a: _Seen, b: _Seen) -> bool:
    return (a.hash ^ b.hash).bit_count() <= BITS and float(np.abs(a.thumbnail - b.thumbnail).mean()) <= LEVELS
