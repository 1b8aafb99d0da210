"""Promises of the workflows: clocks, interrupted commands, locks, and events that LangGraph's server can send."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from langgraph.checkpoint.base.id import uuid6
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from segsmith import events
from segsmith.config import merged_config
from segsmith.errors import SegsmithError
from segsmith.graph.checkpoints import open_checkpoints
from segsmith.locks import exclusive_file, locking
from segsmith.memory.run_config import read_record
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import made_up_run, small_config
from segsmith.types import ClassTally
from segsmith.workflows.preflight import check_tracing
from segsmith.workflows.rejudge import settled
from segsmith.workflows.train import locked


class Count(TypedDict, total=False):
    n: int


def test_the_newest_checkpoint_is_the_one_written_last_even_when_the_clock_was_set_back(
    tmp_path, monkeypatch
):
    def add(state):
        return {"n": state.get("n", 0) + 1}

    options = {"configurable": {"thread_id": "t"}}
    with open_checkpoints(tmp_path / "graph.db", lambda: 0) as saver:
        builder = StateGraph(Count)
        builder.add_node("add", add)
        builder.add_edge(START, "add")
        builder.add_edge("add", END)
        graph = builder.compile(checkpointer=saver)
        graph.invoke({"n": 0}, options)
        module = sys.modules[uuid6.__module__]
        monkeypatch.setattr(module, "_last_v6_timestamp", None)
        now = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: now() - 3600 * 10**9)
        graph.invoke({"n": 10}, options)
        assert graph.get_state(options).values == {"n": 11}


def test_events_are_what_json_can_hold():
    orjson = pytest.importorskip("orjson")
    event = events.RoundJudged({"cat": ClassTally(1, 2, 2, 1)})
    assert json.loads(orjson.dumps(event)) == {
        "kind": "judge",
        "tallies": {"cat": {"admitted": 1, "drawn": 2, "judged": 2, "accepted": 1}},
    }
    assert json.loads(orjson.dumps(events.StageStarted(events.Stage.TRAINING)))["stage"] == "training"


def test_a_rejudge_that_was_killed_before_run_toml_is_taken_from_the_ledger(tmp_path):
    run, ledger, _ = made_up_run(tmp_path / "run", 2)
    with ledger.transaction():
        ledger.log("rejudged", settings={"top_k": 1}, gained=0, lost=1)
    ledger.close()
    assert read_record(run.config).rejudged == {}
    assert settled(run, read_record(run.config)).config.judge.top_k == 1


def test_an_output_folder_is_locked_and_cleaned_up(tmp_path):
    (tmp_path / "out" / "training").mkdir(parents=True)
    (tmp_path / "out" / "training" / ".part-x").write_text("")
    with locked(tmp_path / "out"):
        assert not list((tmp_path / "out" / "training").iterdir())
        with pytest.raises(SegsmithError, match=f"process {os.getpid()}"), RunFolder(tmp_path / "out").held():
            pass


def test_where_the_file_system_has_no_locks_an_exclusive_file_is_the_lock(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    run = RunFolder(tmp_path)
    with run.held(), pytest.raises(SegsmithError, match=f"process {os.getpid()} .*lock-holder"), run.held():
        pass
    assert not (tmp_path / ".lock-holder").exists()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / ".lock-holder").write_text(f"by process {ended.pid} on {socket.gethostname()} since now")
    with run.held():
        assert f"process {os.getpid()}" in (tmp_path / ".lock-holder").read_text()
    (tmp_path / ".lock-holder").write_text(f"by process {ended.pid} on elsewhere since now")
    with pytest.raises(SegsmithError, match="on elsewhere"), run.held():
        pass


def test_a_process_with_another_kind_of_lock_is_noticed(tmp_path):
    run = RunFolder(tmp_path)
    with locking("file"), run.held():
        assert not (tmp_path / ".lock").exists()
        with pytest.raises(SegsmithError, match="lock-holder"), run.held():
            pass
        with locking("auto"), pytest.raises(SegsmithError, match=f"process {os.getpid()}"), run.held():
            pass
    with run.held():
        assert not (tmp_path / ".lock-holder").exists()


def test_of_processes_that_take_over_a_lock_one_gets_it(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stale = f"by process {ended.pid} on {socket.gethostname()} since now"
    for _ in range(20):
        (tmp_path / ".lock-holder").write_text(stale)
        inside, most, got, start = [], [], [], threading.Barrier(4)

        def take(inside=inside, most=most, got=got, start=start):
            start.wait()
            with suppress(SegsmithError), exclusive_file(tmp_path / ".lock-holder", "It"):
                got.append(1)
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.002)
                inside.pop()

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got
        assert max(most) == 1


def test_without_a_lock_nothing_that_may_be_in_use_is_removed(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / ".part-x").write_text("")
    with run.held(), locking("none"), run.held():
        assert not (tmp_path / ".part-x").exists()
        (tmp_path / ".part-x").write_text("")
        with run.held():
            assert (tmp_path / ".part-x").exists()
    with pytest.raises(SegsmithError, match="auto, file, none"), locking("yes"):
        pass


def test_the_command_line_sets_the_lock(tmp_path, segsmith):
    run = RunFolder(made_up_run(tmp_path / "run", 3, size=64)[0].root)
    with locking("file"), run.held():
        code, _, problem = segsmith("export", run.root, "--lock", "file")
        assert (code, f"process {os.getpid()}" in problem) == (2, True)
        assert segsmith("export", run.root, "--lock", "none")[0] == 0
        assert segsmith("export", run.root)[0] == 2
        assert "auto, file, none" in segsmith("export", run.root, "--lock", "no")[2]
        out = tmp_path / "elsewhere"
        with locking("file"), exclusive_file(tmp_path / ".elsewhere.lock", "The export"):
            assert segsmith("export", run.root, "--lock", "file", "--out", out)[0] == 2
        assert segsmith("export", run.root, "--lock", "none", "--out", out)[0] == 0
    assert not list(tmp_path.glob(".*"))


def test_tracing_to_langsmith_is_announced_and_refused_offline(monkeypatch):
    config = small_config()
    assert check_tracing(config) == []
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    assert "LangSmith" in check_tracing(config)[0]
    with pytest.raises(SegsmithError, match="unset LANGSMITH_TRACING"):
        check_tracing(merged_config(config, {"offline": True}, "test"))


def test_merging_keeps_offline():
    assert merged_config(
        merged_config(small_config(), {"offline": True}, "test"), {"seed": 1}, "test"
    ).offline


def test_a_second_ctrl_c_ends_the_process_whatever_a_thread_does():
    code = (
        "import threading, time, segsmith.cli as cli, signal\n"
        "from segsmith.commands.console import app\n"
        "@app.command()\n"
        "def hang():\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "import sys; sys.argv = ['segsmith', 'hang']\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "cli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None  # it waits for its thread
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
    finally:
        process.kill()
