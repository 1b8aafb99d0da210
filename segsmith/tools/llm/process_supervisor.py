"""Runs a server and ends it when the process that started it is gone. A script, started by path.

    python process_supervisor.py PARENT_PID COMMAND [ARGUMENT ...]

A server outlives a parent that is killed (SIGKILL runs no clean-up), and the kernel's parent-death signal is
bound to the *thread* that started the child, which in a thread pool ends early. So three mechanisms work together:

- The supervisor, a process with one thread, ends the server when its standard input, a pipe that its parent
  holds, is closed, or its parent is another process.
- On Linux the kernel kills the server when the supervisor dies.
- A guard, a second small process, waits at two pipes, for the parent and for the supervisor. It ends the
  server and all that it started if the supervisor was killed, or was stopped while the parent died.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

CHECK_EVERY_S = 0.3
GRACE_S = 8.0
"""Between SIGTERM and SIGKILL."""
FINISH_S = 2.0
"""For a supervisor to finish after its server is gone."""
PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>."""
STDIN = 0


def _die_with_supervisor() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def supervise(parent: int, command: list[str]) -> int:
    """Run `command` until it ends, the parent is gone, or SIGTERM arrives; returns its exit code."""
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_supervisor
    )
    guard = _start_guard(server.pid)

    def stop(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    try:
        while os.getppid() == parent:
            code = server.poll()
            if code is not None:
                return code if code >= 0 else 128 - code
            if select.select([STDIN], [], [], CHECK_EVERY_S)[0]:
                break  # nothing is ever written: the parent has closed the pipe, or is gone
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end(server)
        with contextlib.suppress(OSError):
            os.write(guard, b"done")


def _end(server: subprocess.Popen[bytes]) -> None:
    """Stop the server and all that it started, which share its process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not _signal_group(server.pid, number):
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_S)


def _signal_group(group: int, number: int) -> bool:
    """Signal a process group, and wake it if it was stopped; False if it has no processes."""
    try:
        os.killpg(group, number)
        os.killpg(group, signal.SIGCONT)
    except (ProcessLookupError, PermissionError):  # macOS reports zombies as not permitted
        return False
    return True


# -- the guard ------------------------------------------------------------------------------------


def _start_guard(group: int) -> int:
    """Fork the guard of a process group; returns the pipe that tells it that the supervisor has finished."""
    supervisor = os.getpid()
    reading, writing = os.pipe()
    if os.fork():
        os.close(reading)
        return writing
    code = 1
    try:
        os.close(writing)
        os.setsid()
        _guard(group, supervisor, reading)
        code = 0
    finally:
        os._exit(code)  # in the fork, nothing of the supervisor's own clean-up may run


def _guard(group: int, supervisor: int, reading: int) -> None:
    ready, _, _ = select.select([STDIN, reading], [], [])
    if reading in ready and os.read(reading, 1):
        return
    # The parent or the supervisor is gone. A supervisor that still runs does the same at the same time.
    deadline = time.monotonic() + GRACE_S
    alive = _signal_group(group, signal.SIGTERM)
    while alive and time.monotonic() < deadline:
        time.sleep(CHECK_EVERY_S)
        alive = _signal_group(group, 0)
    _signal_group(group, signal.SIGKILL)
    if not select.select([reading], [], [], FINISH_S)[0]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGKILL)  # stopped, or it would have finished by now


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), sys.argv[2:]))
