"""Files: atomic writes, hashes, and the only functions through which images and masks are opened."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,  # noqa: F401  imported so that Pillow's registry has the formats of `IMAGE_FORMATS`
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)
from PIL import Image as PILImage

from segsmith.errors import SegsmithError

PART = ".part-"
"""Prefix of files and folders that are still being written."""

ImageFormat = Literal["png", "webp", "jpeg"]
"""Formats in which a run can store its images."""
SUFFIXES: Mapping[ImageFormat, str] = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
FORMS: Mapping[str, ImageFormat] = {suffix: form for form, suffix in SUFFIXES.items()}
PNG_LEVEL, INDEX_LEVEL = 1, 6
"""zlib's level for the PNGs of images and of index maps."""

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
"""Formats an image may have. The content decides, not the file name."""
MASK_FORMATS = ("PNG", "BMP", "TIFF")
"""Formats a mask may have: lossless ones."""
MAX_PIXELS = 50_000_000
"""Largest image or mask that is decoded (about 7,000 x 7,000)."""
MAX_IMAGE_BYTES = 512 << 20
"""Largest image file that is opened."""
MAX_SCANS = 50
"""Scans of a progressive JPEG; encoders write about ten."""

ORIENTATION = 0x0112
"""EXIF tag."""
TRANSPOSES = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_270,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the image upright."""
EIGHT_BIT_MODES = ("1", "L", "P", "RGB", "RGBX", "RGBA", "RGBa", "LA", "La", "PA", "CMYK", "YCbCr")

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")
"""A URL, also as `Path` writes it, with one slash; a drive such as ``C:`` has one letter."""


def local_folder(path: str | Path) -> Path:
    """`path`, unless it is a URL such as ``s3://bucket/run``, which would become a folder called ``s3:``.

    Raises `SegsmithError` for a URL of any scheme.
    """
    found = URL.fullmatch(str(path))
    if found is None:
        return Path(path)
    scheme, rest = found.groups()
    if scheme.lower() == "file":
        raise SegsmithError(f"{scheme}:///{rest} is a URL.", f"Type /{rest}")
    raise SegsmithError(
        f"{scheme}://{rest} is not a folder on a file system of this machine.",
        "Type a path such as runs/run, and copy the folder to or from the store with the store's own tool.",
    )


# -- writing and hashing ------------------------------------------------------------------------------------


def write_atomic(path: Path, data: bytes) -> None:
    """Write to a temporary file, sync, rename: readers see the old file or the new one, even after a crash."""
    with atomic_file(path) as file:
        file.write(data)


def write_new(path: str, data: bytes) -> None:
    """Write a file without syncing it, in the calls that this takes: `open` asks the file system twice as much."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _write_all(handle, data)
    finally:
        os.close(handle)


def _write_all(handle: int, data: bytes) -> None:
    written = os.write(handle, data)
    while written < len(data):
        written += os.write(handle, memoryview(data)[written:])


def copy_new(source: str, target: str) -> None:
    """Copy the content of a file, not its times or rights, without syncing it; in the kernel where that is possible.

    A file system that can share blocks between files (Btrfs, XFS) then shares them until one of the two is changed.
    """
    reading = os.open(source, os.O_RDONLY)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            if not _copied_by_kernel(reading, writing):
                while part := os.read(reading, 1 << 20):
                    _write_all(writing, part)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _copied_by_kernel(reading: int, writing: int) -> bool:
    """Copy an open file; False where the kernel or one of the file systems cannot, and nothing is copied."""
    copied = 0
    try:
        while count := os.copy_file_range(reading, writing, 1 << 30):
            copied += count
    except AttributeError:  # not Linux
        return False
    except OSError:
        if copied:
            raise
        return False
    return (
        copied > 0 or os.fstat(reading).st_size == 0
    )  # some special file systems report success and copy nothing


def read_whole(path: str) -> bytes:
    """The bytes of a file, as `Path.read_bytes` gives them, in fewer calls."""
    handle = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(handle).st_size
        data = os.read(handle, size + 1)
        while part := os.read(handle, 1 << 20) if len(data) != size else b"":
            data += part
        return data
    finally:
        os.close(handle)


def create_only(path: Path, data: bytes) -> bool:
    """Write a file that must not be there yet, whole or not at all; returns whether this call created it.

    Of several processes, on any machines that share the file system, one succeeds. Raises `OSError` on a file system
    without hard links where a killed process could leave the file half-written.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=PART)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # Not O_EXCL on `path` itself: a process that is killed after creating it would leave it without content.
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        Path(temporary).unlink(missing_ok=True)
    _sync_folder(path.parent)
    return True


def move_into_place(source: Path, target: Path) -> None:
    """Rename a whole and synced file, so that it has its new name even after a power failure."""
    os.replace(source, target)
    _sync_folder(target.parent)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that replaces `path` at the end, as `write_atomic` does; an error leaves `path` alone."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=PART)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove files and folders that a killed process left half-written directly in `folder`, if it exists.

    The caller must be the only process that writes there.
    """
    # Not Path.glob, which takes ten times as long in a folder of many files.
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        left = [entry for entry in entries if entry.name.startswith(PART)]
        for entry in left:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def make_folder(folder: Path) -> None:
    """Create a folder in an existing one, if it is not there, so that it survives a power failure."""
    with suppress(FileExistsError):
        folder.mkdir()
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure: the ledger row that names the file is synced, so the name must be."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Unchanged:
    """Whether files have not changed since an earlier check, by the change time that the file system keeps.

    The kernel sets this time whenever a file is written, replaced, renamed or restored, and programs cannot choose
    it. So a file that was whole at the check and has an earlier change time still is, without being read: the idea
    of git's index. Damage by the disk itself is not noticed. The listing of one folder at a time is kept, so files
    that are asked about folder by folder are found fast.
    """

    def __init__(self, since: int) -> None:
        """`since` is a time of `clock_of`; no file is unchanged since 0."""
        self._since = since
        self._folder: str | None = None
        self._names: set[str] = set()

    def __contains__(self, path: str) -> bool:
        """Whether this is a regular file, not a link, that has not changed."""
        if not self._since:
            return False
        folder, _, name = path.rpartition("/")
        if folder != self._folder:
            self._folder = folder
            self._names = set(self._unchanged_in(folder))
        return name in self._names

    def _unchanged_in(self, folder: str) -> Iterator[str]:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                about = entry.stat(follow_symlinks=False)
                # A file of the same tick as the check may have been written after it.
                if stat.S_ISREG(about.st_mode) and about.st_ctime_ns < self._since:
                    yield entry.name


def count_unchanged(folder: Path, since: int) -> int:
    """Number of regular files in a folder and all folders below it; -1 if any has changed since (see `Unchanged`).

    A file that comes, is replaced or is moved there has changed. So the same number at two times, neither of them -1,
    means that the same files are there, and unchanged.
    """
    number, folders = 0, [str(folder)]
    while folders:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                about = entry.stat(follow_symlinks=False)
                if about.st_ctime_ns >= since:
                    return -1
                number += stat.S_ISREG(about.st_mode)
    return number


def clock_of(folder: Path) -> int:
    """The time of the file system that `folder` is on, in nanoseconds; it may differ from this machine's."""
    with tempfile.TemporaryFile(dir=folder, prefix=PART) as file:
        return os.fstat(file.fileno()).st_ctime_ns


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def png_bytes(array: NDArray[np.uint8], palette: NDArray[np.uint8] | None = None) -> bytes:
    """PNG of an (H, W, 3) RGB image, or of an (H, W) index map with an optional (256, 3) palette."""
    image = PILImage.fromarray(array)
    if palette is not None:
        image = image.convert("P")
        image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    # Measured in docs/performance.md: level 6 takes four times as long and saves 1 to 13 %. Index maps compress well.
    image.save(buffer, "PNG", compress_level=PNG_LEVEL if array.ndim == 3 else INDEX_LEVEL)
    return buffer.getvalue()


def image_bytes(image: NDArray[np.uint8], form: ImageFormat, quality: int) -> bytes:
    """An (H, W, 3) RGB image as PNG, lossless WebP, or JPEG of this `quality` (1 to 100) with full chroma."""
    if form == "png":
        return png_bytes(image)
    buffer = io.BytesIO()
    if form == "webp":
        PILImage.fromarray(image).save(buffer, "WEBP", lossless=True, method=0, quality=20)
    else:
        PILImage.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


# -- opening images -----------------------------------------------------------------------------------------


class StoredImages(Sequence[NDArray[np.uint8]]):
    """Images that are read from their files whenever they are asked for, so that few are in memory at a time."""

    def __init__(self, reads: Sequence[Callable[[], NDArray[np.uint8]]]) -> None:
        self._reads = reads

    def __len__(self) -> int:
        return len(self._reads)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> StoredImages: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | StoredImages:
        return StoredImages(self._reads[index]) if isinstance(index, slice) else self._reads[index]()


class UnreadableImage(OSError):
    """A file that is not an image we read: damaged, in another format, or too large. The message names no path."""


class NotAnIndexMap(UnreadableImage):
    """An image whose pixels cannot be class indices."""


class Conversion(StrEnum):
    """What `open_image` changes to get 8-bit RGB; the value completes "3 images were ..."."""

    ORIENTED = "rotated by the EXIF orientation"
    COLOUR_SPACE = "converted from CMYK or YCbCr to RGB"
    DEPTH = "reduced from 16 to 8 bits per channel"
    FRAME = "reduced to the first of several frames"
    ALPHA = "read without the alpha channel"


def conversion_notes(counts: Mapping[Conversion, int]) -> list[str]:
    """One sentence for each conversion, with the number of images it was applied to."""
    return [
        f"{counts[kind]} image{'s' * (counts[kind] != 1)} {'were' if counts[kind] != 1 else 'was'} {kind}."
        for kind in Conversion
        if counts.get(kind)
    ]


@dataclass(frozen=True)
class ImageHeader:
    """What an image file says of itself, without being decoded: `size` is the upright (H, W)."""

    size: tuple[int, int]
    format: str
    """One of `IMAGE_FORMATS`."""
    conversions: tuple[Conversion, ...]
    """Empty if the pixels are those stored; grey and palette images become RGB without loss."""


@dataclass(frozen=True)
class DecodedImage:
    """`pixels` is (H, W, 3) uint8 RGB, upright."""

    pixels: NDArray[np.uint8]
    header: ImageHeader


@dataclass(frozen=True)
class IndexMap:
    """`indices` is (H, W) uint8; `has_palette` tells palette images from grey ones."""

    indices: NDArray[np.uint8]
    has_palette: bool


def open_image(source: Path | bytes) -> DecodedImage:
    """Decode an image file, or the bytes of one; every image in the project is opened here.

    Only `IMAGE_FORMATS`, at most `MAX_PIXELS` and one frame are decoded. Of animated and multi-page files
    the first frame counts, the EXIF orientation is applied, CMYK becomes RGB, the upper 8 of 16 bits are
    kept, and an alpha channel is ignored; `ImageHeader.conversions` lists what was done. Raises
    `UnreadableImage`, or `FileNotFoundError` where there is no file.
    """
    with _opened(source) as image:
        header, depth, orientation = _header(image), _depth(image), _orientation(image)
        image.load()
        # Pillow turns TIFF upright itself, and then removes the tag.
        turn = orientation and _orientation(image)
        return DecodedImage(_rgb(image.transpose(TRANSPOSES[orientation]) if turn else image, depth), header)


def read_header(source: Path | bytes) -> ImageHeader:
    """Read what `open_image` would give, from the header alone; same errors, except for damaged pixels."""
    with _opened(source) as image:
        return _header(image)


def read_image(source: Path | bytes) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB, as `open_image` decodes it."""
    return open_image(source).pixels


def open_index_map(source: Path | bytes) -> IndexMap:
    """Decode a mask: an 8-bit palette or grey PNG, BMP or TIFF of one frame, its indices untouched.

    Raises `NotAnIndexMap` for colours, 16 bits, transparency, several frames, an EXIF orientation and
    lossy formats; else as `open_image`.
    """
    with _opened(source) as image:
        if image.format not in MASK_FORMATS:
            raise NotAnIndexMap(f"{_format(image)} is lossy, so its values are not class indices")
        if getattr(image, "is_animated", False):
            raise NotAnIndexMap("it has several frames")
        if _orientation(image):
            raise NotAnIndexMap("it has an EXIF orientation")
        depth = _depth(image)
        if image.mode not in ("P", "L") or depth > 8 or (image.mode == "L" and depth < 8):
            raise NotAnIndexMap(f"it is {_described(image, depth)}, not an 8-bit palette or grey image")
        image.load()
        return IndexMap(np.asarray(image), image.mode == "P")


def read_index_map(source: Path | bytes) -> NDArray[np.uint8]:
    """(H, W) uint8 class indices, as `open_index_map` decodes them."""
    return open_index_map(source).indices


@contextmanager
def _opened(source: Path | bytes) -> Iterator[PILImage.Image]:
    """An image whose header is read and whose size is allowed, not yet decoded."""
    too_large = f"it has more than {MAX_PIXELS:,} pixels, the most that segsmith decodes"
    try:
        if isinstance(source, Path):
            about = source.stat()
            if not stat.S_ISREG(about.st_mode):
                raise UnreadableImage("it is not a regular file")
            if about.st_size > MAX_IMAGE_BYTES:
                raise UnreadableImage(f"it has more than {MAX_IMAGE_BYTES >> 20} MiB")
        with (
            io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file,
            _identified(file, "" if isinstance(source, bytes) else str(source)) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(too_large)
            if image.info.get("progressive") and _scans(source) > MAX_SCANS:
                raise UnreadableImage(f"it is a progressive JPEG of more than {MAX_SCANS} scans")
            yield image
    except (UnreadableImage, FileNotFoundError, PermissionError, MemoryError):
        raise
    except PILImage.DecompressionBombError as error:
        raise UnreadableImage(too_large) from error
    except Exception as error:  # Pillow's decoders raise errors of every class on damaged files
        raise UnreadableImage(f"it cannot be decoded ({str(error) or type(error).__name__})") from error


def _identified(file: BinaryIO, name: str) -> PILImage.Image:
    """The image in `file`, not yet decoded.

    `PIL.Image.open` would do, but it warns of sizes that `_opened` rejects, and only a filter for the whole process,
    which belongs to the application, can prevent that.
    """
    prefix = file.read(16)
    for form in IMAGE_FORMATS:
        factory, accept = PILImage.OPEN[form]
        if accept is None or accept(prefix) is True:  # a string says which library is missing
            file.seek(0)
            with suppress(
                SyntaxError, IndexError, TypeError, struct.error
            ):  # how the factories reject a file
                return factory(file, name)
    raise UnreadableImage(f"it is not a {', '.join(IMAGE_FORMATS[:-1])} or {IMAGE_FORMATS[-1]} image")


def _scans(source: Path | bytes) -> int:
    """Scans of a JPEG; each costs a pass over all pixels, however few bytes it has."""
    return (source if isinstance(source, bytes) else source.read_bytes()).count(b"\xff\xda")


def _header(image: PILImage.Image) -> ImageHeader:
    width, height = image.size
    orientation = _orientation(image)
    # Pillow states the upright size of TIFF.
    turned = orientation in (5, 6, 7, 8) and image.format != "TIFF"
    done = {
        Conversion.ORIENTED: orientation != 0,
        Conversion.COLOUR_SPACE: image.mode in ("CMYK", "YCbCr"),
        Conversion.DEPTH: _depth(image) == 16,
        Conversion.FRAME: getattr(image, "is_animated", False),
        Conversion.ALPHA: "A" in image.mode.upper() or "transparency" in image.info,
    }
    return ImageHeader(
        (width, height) if turned else (height, width),
        _format(image),
        tuple(kind for kind, was_done in done.items() if was_done),
    )


def _format(image: PILImage.Image) -> str:
    """Pillow's name of the format; photographs with an embedded preview (MPO) are JPEG."""
    return "JPEG" if image.format == "MPO" else str(image.format)


def _orientation(image: PILImage.Image) -> int:
    """2 to 8 where the image must be turned to be upright, else 0; decodes nothing."""
    # PngImageFile.getexif would decode the image first, whatever its size.
    value = PILImage.Image.getexif(image).get(ORIENTATION)
    return value if isinstance(value, int) and value in TRANSPOSES else 0


def _depth(image: PILImage.Image) -> int:
    """Bits per channel as stored: 8, 16, or fewer; 32 for float and 32-bit integer images."""
    raw = " ".join(_strings([tile[3] for tile in getattr(image, "tile", ())[:1]]))
    if ";16" in raw or image.mode.startswith("I;16"):
        return 16
    if image.mode in ("I", "F"):
        return 32
    if image.mode == "1":
        return 1
    return next((bits for bits in (2, 4) if f"L;{bits}" in raw), 8)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _strings(part)


def _described(image: PILImage.Image, depth: int) -> str:
    return f"{depth}-bit {image.mode}" if depth != 8 else image.mode


def _rgb(image: PILImage.Image, depth: int) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of a decoded image."""
    if depth == 16 and image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode not in EIGHT_BIT_MODES:
        raise UnreadableImage(f"its pixels are {_described(image, depth)}, which segsmith does not read")
    return np.asarray(image.convert("RGB"))
