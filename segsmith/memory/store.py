"""The run folder: where everything lies, and how a file gets there whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from segsmith.errors import SegsmithError

PART = ".part-"
"""How a file begins that is not whole yet."""


def make_id(kind: str, *parts: object) -> str:
    """A short name made of what makes the thing: the same parts give the same id, on any machine.

    `kind` is a letter such as "p" (prompt) or "i" (image); the result looks like ``p-1f9c0a2b7d3e``.
    """
    text = "\x1f".join(str(part) for part in parts)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def seed_of(*parts: object) -> int:
    """A seed in [0, 2**31) that depends on the parts alone."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


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


def _plain(name: str) -> str:
    """The id, if it can be nothing but a file name: a ledger may come from somebody else."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", name):
        raise SegsmithError(
            f"The ledger names a picture {name!r}, which is no id.", "Do not use this run folder."
        )
    return name


class RunFolder:
    """Paths of one run. Nothing here deletes anything."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "run.toml"
        self.ledger = root / "ledger.db"
        self.graph = root / "graph.db"
        self.images = root / "images"
        self.masks = root / "masks"
        self.memory = root / "memory"
        self.checkpoints = root / "checkpoints"
        self.dataset = root / "dataset"
        self.voc = self.dataset / "voc"
        self.evaluation = root / "evaluation"
        self.real = root / "real"
        self.report = root / "report.html"
        self.log = root / "segsmith.log"
        self.llm_log = root / "llm-server.log"

    def create(self) -> None:
        """Make the folder and its parts, or say why that cannot be."""
        try:
            for folder in (self.root, self.images, self.masks, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.root / ".writable", b"")
        except OSError as error:
            raise SegsmithError(
                f"Cannot write to {self.root}: {error.strerror or error}.",
                "Name a folder you may write to with --out.",
            ) from None

    def image(self, image_id: str) -> Path:
        """Where the PNG of an image lies."""
        return self.images / f"{_plain(image_id)}.png"

    def mask(self, image_id: str) -> Path:
        """Where the palette PNG of an image's mask lies."""
        return self.masks / f"{_plain(image_id)}.png"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process; a second process is told who has it and leaves."""
        path = self.root / ".lock"
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "by an unknown process"
                raise SegsmithError(
                    f"Run folder {self.root} is in use {holder}.",
                    "Wait for it, stop it, or name another folder with --out.",
                ) from None
            file.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"by process {os.getpid()} on {socket.gethostname()} since {since}")
            file.flush()
            self._sweep()
            yield

    def _sweep(self) -> None:
        """Remove what a killed process had begun to write; the caller holds the folder."""
        folders = (self.root, self.images, self.masks, self.checkpoints, self.checkpoints / "training",
                   self.dataset, self.evaluation, self.evaluation / "real" / "Predictions",
                   self.real / "masks")  # fmt: skip
        for folder in folders:
            for left in folder.glob(f"{PART}*"):
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()
