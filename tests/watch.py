"""Watches what hostile input makes this process do."""

import os
import sys
from pathlib import Path

PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


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
            if not path.startswith((self._folder, os.devnull)):
                self.seen.append((event, path))
