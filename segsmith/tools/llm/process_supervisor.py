"""Runs one server and ends it when the process that asked for it is gone. A script, started by path.

    python keeper.py PARENT_PID COMMAND [ARGUMENT ...]

A server outlives a parent that is killed (SIGKILL runs no clean-up), and the kernel's parent-death signal is
bound to the *thread* that started the child, which in a thread pool ends early. So this small process with
one thread stands between: it looks whether its parent is still the same, which works on any Unix, and on
Linux the kernel tells the server when the keeper itself is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

LOOK_EVERY_S = 0.3
GRACE_S = 8.0
"""Between the polite signal and the hard one."""
PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>."""


def _die_with_keeper() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end(server: subprocess.Popen[bytes]) -> None:
    """Stop the server and all it started: they share a process group of their own."""
    for number, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        try:
            os.killpg(server.pid, number)
            os.killpg(server.pid, signal.SIGCONT)  # a server somebody stopped hears no polite signal
        except ProcessLookupError:
            break
        try:
            server.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def keep(parent: int, command: list[str]) -> int:
    """Run `command` until it ends, the parent is gone, or SIGTERM comes; its exit code."""
    server = subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with_keeper)

    def stop(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    try:
        while os.getppid() == parent:
            code = server.poll()
            if code is not None:
                return code if code >= 0 else 128 - code
            time.sleep(LOOK_EVERY_S)
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end(server)


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), sys.argv[2:]))
