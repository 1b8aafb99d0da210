"""What runs in the process of a worker. Its first answer says whether its machine fits the driver's."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import segsmith


@dataclass(frozen=True)
class About:
    """A process's machine and software."""

    host: str
    python: str
    segsmith: str
    """Version, and a hash of the package's files: two working copies may have one version."""


@cache
def about_this_process() -> About:
    """The software that this process runs."""
    digest = hashlib.sha256()
    package = Path(segsmith.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    version = f"{segsmith.__version__} (files {digest.hexdigest()[:8]})"
    return About(socket.gethostname(), platform.python_version(), version)


class Worker:
    """Does units, one after the other. Its arguments and results are plain values, so any engine can call it."""

    def __init__(self) -> None:
        self._shop: object = None

    def about(self) -> tuple[str, str, str, str]:
        """(Host, Python, segsmith, process id): plain texts, which every version can read."""
        mine = about_this_process()
        return mine.host, mine.python, mine.segsmith, str(os.getpid())

    def set_up(self, setup: object) -> int:
        """Take the settings of a run, a `work.Setup`; returns the memory of this worker's GPU in bytes, 0 for none.

        Raises `SegsmithError` where the run's folder is not to be seen.
        """
        from segsmith.engine.work import Setup, Workshop
        from segsmith.errors import SegsmithError
        from segsmith.tools.machine import this_gpu

        assert isinstance(setup, Setup)
        if not setup.url and not (setup.root / "ledger.db").exists():
            raise SegsmithError(
                f"The run folder {setup.root} is not on this machine.",
                "Put it on a file system that all machines see under the same path.",
            )
        self._shop = Workshop(setup)
        gpu = this_gpu()
        return 0 if gpu is None else gpu.total

    def prepare(self, kind: str) -> None:
        """Load the models of a kind of unit."""
        from segsmith.engine.work import Workshop

        assert isinstance(self._shop, Workshop)
        self._shop.prepare(kind)  # type: ignore[arg-type]

    def do(self, unit: object, attempt: str) -> int:
        """Do a unit (`Workshop.do`)."""
        from segsmith.engine.work import Workshop

        assert isinstance(self._shop, Workshop)
        return self._shop.do(unit, attempt)  # type: ignore[arg-type]
