"""Changes of an index PNG that leave its compressed pixels as they are."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from segsmith.files import png_bytes, read_index_map

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PALETTE, GREY = 3, 0
"""Colour types of the header."""


def grey_png(data: bytes) -> bytes:
    """The same indices as a grey PNG, whose values no reader mistakes for colours.

    An 8-bit palette PNG and a grey one differ in the header and in the palette only, so nothing is encoded again.
    """
    chunks = list(_chunks(data))
    header = chunks[0][1] if chunks else b""
    if len(header) != 13 or header[8] != 8 or header[9] not in (PALETTE, GREY):
        return png_bytes(read_index_map(data))
    changed = header[:9] + bytes([GREY]) + header[10:]
    kept = [(kind, content) for kind, content in chunks[1:] if kind in (b"IDAT", b"IEND")]
    return SIGNATURE + b"".join(_chunk(kind, content) for kind, content in [(b"IHDR", changed), *kept])


def has_palette(data: bytes, palette: bytes) -> bool:
    """Is this an 8-bit PNG with exactly this palette and no other colour information?"""
    chunks = dict(_chunks(data))
    header = chunks.get(b"IHDR", b"")
    return header[8:10] == bytes([8, PALETTE]) and chunks.get(b"PLTE") == palette and b"tRNS" not in chunks


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk; ends where the file is not a PNG."""
    if not data.startswith(SIGNATURE):
        return
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        yield data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        position += 12 + length


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
