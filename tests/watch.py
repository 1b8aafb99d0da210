"""Watches what hostile input makes this process do."""

import contextlib
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
FORGET_PEAK = "/proc/self/clear_refs"
"""Where `memory_below` writes."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@contextlib.contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """Fails if the resident size of this process grows by `limit` bytes or more inside the block, at its peak.

    Linux can forget the peak so far, so what came before does not count; elsewhere only a new peak is noticed.
    """
    try:
        Path(FORGET_PEAK).write_text("5")
        peak, start = _linux_peak, _linux("VmRSS")
    except OSError:
        peak, start = _peak, _peak()
    yield
    assert peak() - start < limit, f"{(peak() - start) / 2**20:.0f} MiB more than before"


def _linux(name: str) -> int:
    """A value of /proc/self/status in bytes."""
    return int(re.search(rf"^{name}:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) * 1024


def _linux_peak() -> int:
    return _linux("VmHWM")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Watch:
    """What Python's audit events say of processes started and files written outside a folder.

    With `connections`, network connections count too.
    """

    def __init__(self, connections: bool = False):
        self.seen: list[tuple[str, str]] = []
        self._folder: str | None = None
        self._events = (*PROCESSES, *(["socket.connect"] if connections else []))
        sys.addaudithook(self._hook)

    def start(self, folder: Path) -> None:
        """Watch from now on; files below `folder` may be written."""
        self._folder = os.path.realpath(folder) + os.sep

    def stop(self) -> None:
        """Stop watching. The hook cannot be removed, but does nothing from then on."""
        self._folder = None

    def _hook(self, event, arguments) -> None:
        if self._folder is None:
            return
        if event in self._events:
            self.seen.append((event, str(arguments)[:200]))
        elif event == "open" and isinstance(arguments[0], str) and arguments[2] & WRITING:
            path = os.path.realpath(arguments[0])
            if path != os.path.realpath(FORGET_PEAK) and not path.startswith((self._folder, os.devnull)):
                self.seen.append((event, path))
