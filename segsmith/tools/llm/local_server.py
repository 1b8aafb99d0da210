"""A language-model server that segsmith starts, waits for, logs, restarts and stops.

What llama.cpp and vLLM have in common: a command that serves the OpenAI protocol at a free port of
127.0.0.1 and requires a key that is generated for each start.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from segsmith.errors import SegsmithError
from segsmith.terminal_text import printable
from segsmith.tools.http import MALFORMED_REPLY, ReplyRejected
from segsmith.tools.llm import process_supervisor
from segsmith.tools.llm.endpoint import Endpoint, connect

logger = logging.getLogger(__name__)

RESTARTS = 3
"""Of one server in one session; if it dies more often, a restart does not help."""
START_TRIES = 3
"""Of one start: a server that failed for a reason that may pass, or that another setting avoids, is started again."""
STOP_S = 2 * process_supervisor.GRACE_S + 2
CHECK_EVERY_S = 0.2
PING_S = 5.0
LOG_TAIL = 1 << 18
"""Bytes of the log that are searched for an error message; vLLM's tracebacks are long."""
REASON = re.compile(r"\b(?:\w+\.)*\w*(?:Error|Exception): .+")
CONSEQUENCES = ("Engine core initialization failed", "Engine process failed to start", "EngineDeadError")
"""Errors in vLLM's log that only say that another one has happened."""
LAST_LINE = 200
"""Characters of the log's last line that an error quotes."""
SECRET_VARIABLES = ("OPENAI_API_KEY",)
"""Not passed to a local server, which does not need them."""


@dataclass(frozen=True)
class ServerPlan:
    """How to start a kind of server: `command(port)` is the command line; the key is passed in `key_variable`."""

    title: str
    serves: str
    command: Callable[[int], Sequence[str]]
    key_variable: str
    remedy: str
    again: Callable[[str], ServerPlan | None] = lambda reason: None
    """What to try after a start that failed for `reason`, a line of the log; None if trying again does not help."""
    environment: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 120.0


class LocalServer:
    """A local server: started at the first request, restarted if it dies, stopped at the end.

    A context manager; safe to share between threads. Its output is appended to `log`, or to a temporary file.
    `process_supervisor.py` ends the server if this process is killed.
    """

    def __init__(
        self,
        plan: ServerPlan,
        log: Path | None = None,
        restarting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`restarting` is entered while a server that died starts again."""
        self._plan = plan
        self._restarting = restarting
        self._log = log
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._endpoint: Endpoint | None = None
        self._restarts = 0
        self._closed = False
        self._log_start = 0
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> LocalServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def restarts(self) -> int:
        """How often the server had to be restarted."""
        return self._restarts

    @property
    def pid(self) -> int | None:
        """Process id of the supervisor, None while nothing runs."""
        return self._process.pid if self._process else None

    def close(self) -> None:
        """Stop the server; it cannot be started again."""
        with self._lock:
            self._stop()
            self._closed = True
            if self._scratch:
                self._scratch.cleanup()

    def endpoint(self) -> Endpoint:
        """See `ChatServer.endpoint`. Raises `SegsmithError` if the server cannot start or was closed."""
        with self._lock:
            if self._closed:
                raise SegsmithError("The local language model was stopped.", "Rerun the command.")
            if self._endpoint is None:
                self._endpoint = self._start()
            return self._endpoint

    def release(self) -> None:
        """Stop the server, so that its memory is free; the next `endpoint` starts it again."""
        with self._lock:
            self._stop()

    def during(self, where: Endpoint) -> AbstractContextManager[None]:
        """See `ChatServer.during`; a single server needs no count."""
        return nullcontext()

    def revive(self, seen: Endpoint) -> bool:
        """See `ChatServer.revive`. A server that has died, or does not answer, is restarted.

        Raises `SegsmithError` if it has been restarted `RESTARTS` times already.
        """
        with self._lock:
            if self._closed:
                return False
            if self._endpoint is not seen:
                return True  # another thread has restarted it already
            if self._alive() and self._answers(seen):
                return False
            self._stop()
            if self._restarts >= RESTARTS:
                raise SegsmithError(
                    f"The {self._plan.title} server of {self._plan.serves} stopped {RESTARTS + 1} times "
                    f"({self._last_words()}).",
                    f"{self._where_to_read()}{self._plan.remedy} Then rerun the same command.",
                )
            self._restarts += 1
            logger.warning("the %s server stopped (%s); restarting it", self._plan.title, self._last_words())
            with self._restarting():
                self._endpoint = self._start()
            return True

    # -- the process ------------------------------------------------------------------------------

    def _start(self) -> Endpoint:
        """Start the server, at most `START_TRIES` times."""
        for left in reversed(range(START_TRIES)):
            try:
                return self._start_once()
            except SegsmithError:
                reason = self._last_words()
                other = self._plan.again(reason) if left else None
                if other is None:
                    raise
            logger.warning("the %s server did not start (%s); trying again", self._plan.title, reason)
            self._plan = other
        raise AssertionError("the last try raises")

    def _start_once(self) -> Endpoint:
        port = free_port()
        where = Endpoint(f"http://127.0.0.1:{port}/v1", secrets.token_urlsafe(32))
        inherited = {k: v for k, v in os.environ.items() if k not in SECRET_VARIABLES}
        with self._open_log() as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    process_supervisor.__file__,
                    str(os.getpid()),
                    *self._plan.command(port),
                ],
                stdin=subprocess.PIPE,  # closed when this process ends, however it ends
                stdout=log,
                stderr=log,
                # Ctrl-C is for segsmith, which stops the server when it no longer needs it.
                start_new_session=True,
                env={**inherited, **self._plan.environment, self._plan.key_variable: where.api_key or ""},
            )
        try:
            self._wait_until_ready(where)
        except BaseException:
            self._stop()
            raise
        logger.info("%s serves %s at %s", self._plan.title, self._plan.serves, where.base_url)
        return where

    def _wait_until_ready(self, where: Endpoint) -> None:
        deadline = time.monotonic() + self._plan.start_timeout_s
        while time.monotonic() < deadline:
            if not self._alive():
                raise self._did_not_start(f"cannot serve {self._plan.serves}: {self._last_words()}.")
            if self._answers(where):
                return
            time.sleep(CHECK_EVERY_S)
        raise self._did_not_start(f"was not ready after {self._plan.start_timeout_s:g} s.")

    def _did_not_start(self, what: str) -> SegsmithError:
        return SegsmithError(f"{self._plan.title} {what}", f"{self._where_to_read()}{self._plan.remedy}")

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _answers(self, where: Endpoint) -> bool:
        """Does it list its models? It does not while it loads, or when it hangs."""
        import openai

        try:
            with connect(where, timeout_s=PING_S, retries=0) as client:
                client.models.list()
        except (openai.OpenAIError, ReplyRejected, *MALFORMED_REPLY):
            return False
        return True

    def _stop(self) -> None:
        process, self._process, self._endpoint = self._process, None, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()

    # -- the log ----------------------------------------------------------------------------------

    def _log_path(self) -> Path:
        if self._log is not None:
            return self._log
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="segsmith-llm-")
        return Path(self._scratch.name) / "server.log"

    def _open_log(self) -> BinaryIO:
        log = self._log_path().open("ab")
        self._log_start = log.tell()
        log.write(f"\n-- {time.strftime('%F %T')} {self._plan.title}: {self._plan.serves}\n".encode())
        log.flush()
        return log

    def _last_words(self) -> str:
        """The error that this start has logged, or else its last line that mentions one; printable and short."""
        with self._log_path().open("rb") as file:
            file.seek(max(self._log_start, file.seek(0, os.SEEK_END) - LOG_TAIL))
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines()]
        lines = [printable(line) for line in lines if line]
        reasons = [found[0] for line in lines if (found := REASON.search(line))]
        reasons = [reason for reason in reasons if not any(words in reason for words in CONSEQUENCES)]
        if reasons:
            return reasons[-1][:LAST_LINE].rstrip(".")
        complaints = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
        return (complaints or lines or ["it printed nothing"])[-1][-LAST_LINE:].rstrip(".")

    def _where_to_read(self) -> str:
        return f"Read {self._log}. " if self._log else ""


def free_port() -> int:
    """An unused port of 127.0.0.1, chosen by the system."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
