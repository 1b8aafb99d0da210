"""The run-length code of Label Studio's brush (`label_studio_sdk.converter.brush`): bits over RGBA values.

A head states the number of values (32 bits), the bits of a value less 1 (5) and four sizes less 1 (4 each). Then
blocks follow: one bit (1: a value and its repetitions; 0: values one by one), two bits that choose a size, the length
less 1 in that many bits, and the value, or values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

VALUE_BITS = 8
SIZES = (3, 4, 8, 16)
"""Bits of a block's length, as Label Studio's own encoder chooses them."""
CHANNELS = 4
"""A pixel is four equal values: red, green, blue and alpha."""


def encode(mask: NDArray[np.bool_]) -> bytes:
    """The code of a mask (H, W), painted 255 where it is True and 0 elsewhere."""
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=flat.size) * CHANNELS
    bits = [f"{flat.size * CHANNELS:032b}{VALUE_BITS - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = "1" * VALUE_BITS if flat[start] else "0" * VALUE_BITS
        while length:
            part = min(length, 1 << SIZES[-1])
            choice = next(i for i, size in enumerate(SIZES) if part <= 1 << size)
            bits.append(f"1{choice:02b}{part - 1:0{SIZES[choice]}b}{value}")
            length -= part
    text = "".join(bits)
    size = -(-len(text) // 8)
    return int(text.ljust(8 * size, "0"), 2).to_bytes(size, "big")


def decode(code: bytes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask (H, W) of a code: where its values are not 0. `ValueError` unless it has exactly `size` pixels."""
    bits = f"{int.from_bytes(code, 'big'):0{8 * len(code)}b}" if code else ""
    position = 0

    def read(count: int) -> int:
        nonlocal position
        if position + count > len(bits):
            raise ValueError("ends too early")
        position += count
        return int(bits[position - count : position], 2)

    total = size[0] * size[1] * CHANNELS
    if (stated := read(32)) != total:
        raise ValueError(f"has {stated} values, an image of {size} pixels (H, W) {total}")
    value_bits, sizes = read(5) + 1, [read(4) + 1 for _ in SIZES]
    values = np.zeros(total, bool)
    done = 0
    while done < total:
        is_run = read(1)
        length = read(sizes[read(2)]) + 1
        if done + length > total:
            raise ValueError("has more values than it states")
        if is_run:
            values[done : done + length] = read(value_bits) != 0
        else:
            values[done : done + length] = [read(value_bits) != 0 for _ in range(length)]
        done += length
    return np.ascontiguousarray(values[::CHANNELS].reshape(size))
