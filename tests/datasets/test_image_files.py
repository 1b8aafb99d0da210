"""How images and masks are opened: which files are accepted, and what is converted."""

import ast
import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from segsmith.files import (
    MAX_PIXELS,
    Conversion,
    NotAnIndexMap,
    UnreadableImage,
    conversion_notes,
    open_image,
    open_index_map,
    read_header,
    read_image,
    read_index_map,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
IMAGE = PILImage.fromarray(PIXELS)
PACKAGE = Path(__file__).parents[2] / "segsmith"


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def oriented(value):
    exif = PILImage.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "JPEG", "WEBP"])
def test_every_allowed_format_is_read_whatever_its_name(tmp_path, form):
    path = tmp_path / "image.xyz"
    path.write_bytes(encoded(IMAGE, form))
    decoded = open_image(path)
    assert (decoded.header.format, decoded.header.conversions) == (form, ())
    assert decoded.pixels.shape == (20, 30, 3)
    if form in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(decoded.pixels, PIXELS)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("value", "upright"),
    [
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
        (8, np.rot90),
    ],
)
def test_the_exif_orientation_is_applied_and_reported(tmp_path, form, value, upright):
    path = tmp_path / "image.png"
    path.write_bytes(encoded(IMAGE, form, exif=oriented(value)))
    decoded = open_image(path)
    assert decoded.header.conversions == (Conversion.ORIENTED,)
    plain = read_image(encoded(IMAGE, form))
    np.testing.assert_array_equal(decoded.pixels, upright(plain))
    assert read_header(path) == decoded.header
    assert decoded.header.size == decoded.pixels.shape[:2]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_upper_eight(form):
    grey = np.random.default_rng(1).integers(0, 1 << 16, (20, 30)).astype(np.uint16)
    decoded = open_image(encoded(PILImage.fromarray(grey), form))
    assert decoded.header.conversions == (Conversion.DEPTH,)
    np.testing.assert_array_equal(decoded.pixels[:, :, 1], grey >> 8)


@pytest.mark.parametrize(
    ("image", "form", "options", "conversion"),
    [
        (IMAGE.convert("CMYK"), "JPEG", {}, Conversion.COLOUR_SPACE),
        (IMAGE, "PNG", {"save_all": True, "append_images": [IMAGE.rotate(90)]}, Conversion.FRAME),
        (IMAGE, "TIFF", {"save_all": True, "append_images": [IMAGE.rotate(90)]}, Conversion.FRAME),
        (IMAGE, "WEBP", {"save_all": True, "append_images": [IMAGE.rotate(90)]}, Conversion.FRAME),
        (IMAGE, "MPO", {"save_all": True, "append_images": [IMAGE]}, Conversion.FRAME),
        (PILImage.new("RGBA", (30, 20), (9, 9, 9, 0)), "PNG", {}, Conversion.ALPHA),
    ],
)
def test_what_is_converted_is_reported(image, form, options, conversion):
    decoded = open_image(encoded(image, form, **options))
    assert decoded.header.conversions == (conversion,)
    assert decoded.pixels.shape == (20, 30, 3)


def test_conversions_are_worded_with_their_number():
    notes = conversion_notes({Conversion.DEPTH: 1, Conversion.ORIENTED: 3})
    assert notes == [
        "3 images were rotated by the EXIF orientation.",
        "1 image was reduced from 16 to 8 bits per channel.",
    ]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(w) file pop\nshowpage\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (POSTSCRIPT, "not a PNG"),
        (encoded(IMAGE, "GIF"), "not a PNG"),
        (b"", "not a PNG"),
        (encoded(IMAGE.convert("L"), "PNG")[:300], "cannot be decoded"),
        (encoded(IMAGE.convert("F"), "TIFF"), "32-bit"),
        (encoded(PILImage.new("L", (MAX_PIXELS // 5000 + 1, 5000)), "PNG"), "50,000,000 pixels"),
        (encoded(IMAGE.convert("L"), "JPEG", progressive=True) + b"\xff\xda" * 50, "scans"),
        (encoded(PILImage.new("1", (20_000, 20_000)), "PNG"), "50,000,000 pixels"),
    ],
)
def test_other_files_are_rejected(tmp_path, data, words):
    path = tmp_path / "image.png"
    path.write_bytes(data)
    for source in (data, path):
        for function in (open_image, open_index_map):
            with pytest.raises(UnreadableImage, match=words):
                function(source)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "JPEG"])
def test_large_files_are_rejected_without_a_warning_of_pillow(form):
    """Pillow itself warns from 89 million pixels, and raises an error of its own from twice as many."""
    height, width = 12_000, 10_000
    if form == "JPEG":
        data = bytearray(encoded(IMAGE, form))
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    else:
        data = encoded(PILImage.new("1", (width, height)), form)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in (open_image, read_header, open_index_map):
            with pytest.raises(UnreadableImage, match="50,000,000 pixels"):
                function(bytes(data))


def test_a_pipe_is_rejected_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "image.png")
    with pytest.raises(UnreadableImage, match="regular file"):
        open_image(tmp_path / "image.png")
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "other.png")


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_keep_their_indices(form, mode):
    indices = np.random.default_rng(2).choice(np.array([0, 1, 2, 255], np.uint8), (20, 30))
    mask = PILImage.fromarray(indices)
    if mode == "P":
        mask = mask.convert("P")
        mask.putpalette(list(range(255, -1, -1)) * 3)
    found = open_index_map(encoded(mask, form))
    assert found.has_palette == (mode == "P")
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(read_index_map(encoded(mask, form)), indices)


@pytest.mark.parametrize(
    "data",
    [
        encoded(PILImage.fromarray(np.ones((20, 30), np.uint16)), "PNG"),
        encoded(PILImage.fromarray(np.ones((20, 30), np.uint16)), "TIFF"),
        encoded(IMAGE, "PNG"),
        encoded(IMAGE.convert("LA"), "PNG"),
        encoded(IMAGE.convert("1"), "PNG"),
        encoded(IMAGE.convert("L"), "JPEG"),
        encoded(IMAGE.convert("L"), "PNG", exif=oriented(6)),
        encoded(IMAGE.convert("L"), "PNG", save_all=True, append_images=[IMAGE.rotate(90).convert("L")]),
    ],
)
def test_masks_of_any_other_kind_are_rejected(data):
    with pytest.raises(NotAnIndexMap):
        open_index_map(data)


def opens_with_pillow(tree):
    """Does a module use the `open` or the registry of `PIL.Image`, under whatever name it was imported?"""
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "PIL"
        for alias in node.names
        if alias.name == "Image"
    }
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in ("open", "OPEN")
        and isinstance(node.value, ast.Name)
        and node.value.id in names
        for node in ast.walk(tree)
    )


def test_no_other_module_opens_images():
    """Except for the sprites that are shipped with the package."""
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if opens_with_pillow(ast.parse(path.read_text("utf-8")))
    }
    assert found == {"files.py", "world/sprites.py"}
