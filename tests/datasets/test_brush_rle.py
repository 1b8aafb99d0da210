import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segsmith.datasets.formats.brush_rle import decode, encode


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_mask_comes_back(height, width, data):
    row = st.lists(st.booleans(), min_size=width, max_size=width)
    mask = np.array(data.draw(st.lists(row, min_size=height, max_size=height)))
    assert np.array_equal(decode(encode(mask), mask.shape), mask)


def test_runs_longer_than_the_longest_block_are_split():
    mask = np.ones((200, 300), bool)
    mask[150:] = False
    assert np.array_equal(decode(encode(mask), mask.shape), mask)


def test_blocks_of_single_values_are_read():
    """Label Studio's own encoder writes them; ours does not need them."""
    head = f"{8:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits = f"{head}000{7:03b}" + "1" * 8 * 4 + "0" * 8 * 4
    code = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    assert decode(code, (1, 2)).tolist() == [[True, False]]


@pytest.mark.parametrize("spoil", [lambda c: b"", lambda c: c[:-3], lambda c: b"\xff" * 40])
def test_damaged_codes_are_rejected(spoil):
    with pytest.raises(ValueError, match=r"too early|values"):
        decode(spoil(encode(np.eye(16, dtype=bool))), (16, 16))
