"""Files: how one is written whole or not at all, how images are read, and how a file is hashed."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

PART = ".part-"
"""How a file begins that is not whole yet."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write aside, sync, rename: a reader, or a run after a crash, sees the old file or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=PART)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a power cut, too: the row that names the file is synced, so the name must be."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def png_bytes(array: NDArray[np.uint8], palette: NDArray[np.uint8] | None = None) -> bytes:
    """PNG of an (H, W, 3) RGB image, or of an (H, W) index map with an optional (256, 3) palette."""
    picture = PILImage.fromarray(array)
    if palette is not None:
        picture = picture.convert("P")
        picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB."""
    with PILImage.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def read_index_map(path: Path) -> NDArray[np.uint8]:
    """(H, W) uint8 of a palette or grey PNG, indices untouched."""
    with PILImage.open(path) as picture:
        return np.asarray(picture)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
