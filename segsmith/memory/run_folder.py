"""The run folder: where everything lies, and how a file gets there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segsmith.errors import SegsmithError
from segsmith.files import PART, write_atomic


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

    def clean_up(self) -> None:
        """Remove what killed processes left half-written, unless a session is working on the run."""
        with suppress(SegsmithError, OSError), self.held():
            pass

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
