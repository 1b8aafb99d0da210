"""Check that a GGUF file is complete: its header lists every tensor, so the size shows whether it is truncated.

The layout is that of ggml's ``docs/gguf.md``: magic, version, counts, key-value pairs, one entry per tensor
(name, shape, type, offset), padding, data. Nothing is loaded; a header of 150,000 tokens takes a fraction of a
second (the `gguf` package makes an array of every string and takes many seconds).
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from segsmith.errors import SegsmithError

VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
MOST_DIMENSIONS = 4
STRING, ARRAY = 8, 9
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Value types of fixed size -> bytes."""
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip
"""ggml's tensor types -> values in a block, bytes of a block."""
REMEDY = "Set llm.gguf to a complete .gguf file, or leave it at its default."
DOWNLOAD_AGAIN = f"Download it again. {REMEDY}"


def check_gguf(path: Path) -> None:
    """Raise `SegsmithError` if `path` cannot be read, is not a GGUF file, or is shorter than its header says."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise SegsmithError(f"{path} is not a GGUF file.", REMEDY)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                expected, present = _Header(data).file_bytes(), len(data)
    except OSError as error:
        raise SegsmithError(f"Cannot read the model file {path}: {error.strerror}.", REMEDY) from None
    except _CutShort:
        raise SegsmithError(f"{path} ends within its header.", DOWNLOAD_AGAIN) from None
    except ValueError as error:
        raise SegsmithError(f"{path} is not a supported GGUF file: {error}.", REMEDY) from None
    if present < expected:
        raise SegsmithError(f"{path} is truncated: it has {present:,} of {expected:,} bytes.", DOWNLOAD_AGAIN)


class _CutShort(Exception):
    """The file ends before its header does."""


class _Header:
    """Reads a header once. Lengths come from the file, so each is compared with the size of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 4
        self._alignment = DEFAULT_ALIGNMENT

    def file_bytes(self) -> int:
        """The minimum length of the file. Raises `ValueError` for values that no version of the format has."""
        version = self._number("<I")
        if version not in VERSIONS:
            raise ValueError(f"version {version}")
        tensors, pairs = self._number("<Q"), self._number("<Q")
        for _ in range(pairs):
            self._pair()
        ends = [self._tensor_end() for _ in range(tensors)]
        start = -(-self._at // self._alignment) * self._alignment
        return start + max(ends) if ends else self._at

    def _pair(self) -> None:
        key, kind = self._text(), self._number("<I")
        if key == ALIGNMENT.encode() and kind == 4:
            self._alignment = max(1, self._number("<I"))
        elif kind == ARRAY:
            self._array()
        else:
            self._value(kind)

    def _array(self) -> None:
        kind, length = self._number("<I"), self._number("<Q")
        if kind == STRING:
            for _ in range(length):
                self._skip(self._number("<Q"))
        else:
            self._skip(length * _scalar_bytes(kind))

    def _value(self, kind: int) -> None:
        self._skip(self._number("<Q") if kind == STRING else _scalar_bytes(kind))

    def _tensor_end(self) -> int:
        """Bytes from the start of the data to this tensor's end, or to its start if its type is unknown."""
        self._text()
        dimensions = self._number("<I")
        if dimensions > MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        shape = [self._number("<Q") for _ in range(dimensions)]
        kind, offset = self._number("<I"), self._number("<Q")
        values, size = BLOCKS.get(kind, (1, 0))
        return offset + math.prod(shape) // values * size

    def _text(self) -> bytes:
        length = self._number("<Q")
        begin = self._at
        self._skip(length)
        return self._data[begin : self._at]

    def _number(self, form: str) -> int:
        begin = self._at
        self._skip(struct.calcsize(form))
        number: int = struct.unpack_from(form, self._data, begin)[0]
        return number

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise _CutShort


def _scalar_bytes(kind: int) -> int:
    if kind not in SCALAR_BYTES:
        raise ValueError(f"a value of the unknown type {kind}")
    return SCALAR_BYTES[kind]
