"""A local server never outlives the process that started it, whatever is stopped or killed in between."""

import signal
import subprocess
import sys
import time

import pytest

from segsmith.tools.llm import process_supervisor

SERVER = (
    "import signal, subprocess, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"  # such as one that is busy in native code
    "worker = subprocess.Popen(['sleep', '300'], preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))\n"
    "print(worker.pid, flush=True)\n"
    "time.sleep(300)\n"
)
PARENT = (
    "import os, subprocess, sys, time\n"
    "command = [sys.executable, '-P', sys.argv[1], str(os.getpid()), sys.executable, '-c', sys.argv[2]]\n"
    "supervisor = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)\n"
    "print(supervisor.pid, flush=True)\n"
    "time.sleep(300)\n"
)
LONGEST_S = 3 * process_supervisor.GRACE_S + 6


def state(pid):
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()


def alive(pid):
    return bool(state(pid)) and not state(pid).startswith("Z")


def children(pid):
    shown = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(child) for child in shown.stdout.split()]


@pytest.fixture
def family():
    """(parent process, supervisor, all its descendants); what a failed test leaves is killed."""
    command = [sys.executable, "-c", PARENT, process_supervisor.__file__, SERVER]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    supervisor, worker = int(parent.stdout.readline()), int(parent.stdout.readline())
    rest = [*children(supervisor), worker]
    assert len(rest) == 3  # the server, its worker and the guard
    yield parent, supervisor, rest
    parent.kill()
    parent.communicate()
    for pid in [supervisor, *rest]:
        if alive(pid):
            subprocess.run(["kill", "-9", str(pid)], check=False)


def send(pid, number):
    subprocess.run(["kill", f"-{int(number)}", str(pid)], check=True)


def survivors(pids):
    deadline = time.monotonic() + LONGEST_S
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [pid for pid in pids if alive(pid)]


def test_the_parent_is_killed(family):
    parent, supervisor, rest = family
    parent.kill()
    assert survivors([supervisor, *rest]) == []


def test_the_supervisor_is_killed(family):
    _, supervisor, rest = family
    send(supervisor, signal.SIGKILL)
    assert survivors([supervisor, *rest]) == []


def test_the_supervisor_is_stopped_and_both_it_and_the_parent_are_killed(family):
    parent, supervisor, rest = family
    send(supervisor, signal.SIGSTOP)
    parent.kill()
    send(supervisor, signal.SIGKILL)
    assert survivors([supervisor, *rest]) == []


def test_the_supervisor_stays_stopped_and_the_parent_is_killed(family):
    parent, supervisor, rest = family
    send(supervisor, signal.SIGSTOP)
    parent.kill()
    assert survivors([supervisor, *rest]) == []


def test_the_exit_code_of_the_server_is_passed_on_and_the_guard_leaves():
    command = [sys.executable, process_supervisor.__file__]
    code = f"import os,subprocess,sys; p=subprocess.Popen({command!r}+[str(os.getpid()),sys.executable,'-c','exit(3)'],stdin=subprocess.PIPE); print(p.pid,flush=True); sys.exit(p.wait())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 3
    assert survivors([int(done.stdout)]) == []
