"""The regular files of an untrusted tar archive, in order and with limited sizes.

The standard library's `tarfile` is not used, because several of the supported Python versions never return from
some archives: negative sizes (CVE-2025-8194) and long pax headers (CVE-2024-6232).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

BLOCK = 512
MAX_EXTENSION_BYTES = 1 << 20
"""Largest header extension: a long name, or pax records."""
REGULAR, LONG_NAME, PAX, PAX_GLOBAL, SPARSE = (b"0", b"\0", b"7"), b"L", b"x", b"g", b"S"


class TarError(ValueError):
    """The archive is damaged, cut short, or of a kind that is not read."""


@dataclass(frozen=True)
class _Header:
    name: str
    kind: bytes
    size: int


def members(path: Path, limit: int) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each regular file, in order; folders, links and devices are skipped.

    Raises `TarError` for what cannot be read to its end and for a file of more than `limit` bytes.
    """
    end = path.stat().st_size
    with path.open("rb") as file:
        long_name, records = "", dict[str, str]()
        while header := _header(file):
            size = header.size
            if "size" in records and header.kind in REGULAR:
                size = _number(records["size"])
            padded = -(-size // BLOCK) * BLOCK
            if file.tell() + padded > end:
                raise TarError("ends within a file")
            if header.kind in (LONG_NAME, PAX, PAX_GLOBAL):
                if size > MAX_EXTENSION_BYTES:
                    raise TarError(f"has a header extension of more than {MAX_EXTENSION_BYTES} bytes")
                extension = file.read(padded)[:size]
                if header.kind == LONG_NAME:
                    long_name = extension.rstrip(b"\0").decode("utf-8", "surrogateescape")
                elif header.kind == PAX:
                    records = _pax(extension)
                continue
            name = records.get("path") or long_name or header.name
            if header.kind == SPARSE or any(key.startswith("GNU.sparse") for key in records):
                raise TarError(f"holds the sparse file {name!r}")
            if header.kind in REGULAR:
                if size > limit:
                    raise TarError(f"holds {name!r} of more than {limit >> 20} MiB")
                yield name, file.read(padded)[:size]
            else:
                file.seek(padded, 1)
            long_name, records = "", {}


def _header(file: IO[bytes]) -> _Header | None:
    """The next header; None at the end of the archive."""
    block = file.read(BLOCK)
    if not block or block == bytes(BLOCK):
        return None
    if len(block) < BLOCK:
        raise TarError("ends within a header")
    stated = _octal(block[148:156])
    if sum(block[:148]) + 8 * ord(" ") + sum(block[156:]) != stated:
        raise TarError("has a damaged header")
    name, prefix = (_text(block[a:b]) for a, b in ((0, 100), (345, 500)))
    if block[257:263] == b"ustar\0" and prefix:
        name = f"{prefix}/{name}"
    return _Header(name, block[156:157], _octal(block[124:136]))


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _octal(field: bytes) -> int:
    """A number of a header: octal digits, or GNU's base 256 for sizes over 8 GiB."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if not digits:
        return 0
    if any(digit not in b"01234567" for digit in digits):
        raise TarError("has a damaged header")
    return int(digits, 8)


def _pax(extension: bytes) -> dict[str, str]:
    """The records "length key=value\\n" of a pax header."""
    records = {}
    position = 0
    while position < len(extension):
        blank = extension.find(b" ", position, position + 20)
        length = _number(extension[position:blank].decode("ascii", "replace")) if blank > 0 else 0
        record = extension[blank + 1 : position + length - 1]
        key, equals, value = record.partition(b"=")
        if not equals or length <= 0:
            raise TarError("has a damaged pax header")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        position += length
    return records


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise TarError("has a damaged pax header")
    return int(text)
