"""Starting vLLM: a stand-in program that fails as the real one does."""

import json
import os
import signal
import stat
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from safetensors.numpy import save_file

from segsmith.config import LLMConfig
from segsmith.device_memory import DeviceUse
from segsmith.errors import SegsmithError
from segsmith.tools.llm.vllm import check_vllm, smaller_share, vllm_server, vllm_version

NO_CACHE = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`."
LITTLE_FREE = (
    "ValueError: Free memory on device cuda:0 (10.2/24.0 GiB) on startup is less than desired GPU memory utilization "
    "(0.5, 12.0 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)
CONSEQUENCE = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"

PROGRAM = """#!{python}
import http.server, json, os, pathlib, sys
folder = pathlib.Path(__file__).parent
if "--version" in sys.argv:
    print("INFO something"); print("0.19.0"); sys.exit(0)
share = sys.argv[sys.argv.index("--gpu-memory-utilization") + 1]
starts = folder / "starts"
with starts.open("a") as file:
    file.write(share + "\\n")
failures = {failures!r}
n = len(starts.read_text().split()) - 1
if n < len(failures) and failures[n]:
    print("(EngineCore pid=7) ERROR 11-24 [core.py:708]", failures[n])
    print("(APIServer pid=6)", {consequence!r})
    sys.exit(1)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({{"object": "list", "data": []}}).encode()
        self.send_response(200); self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def vllm(tmp_path):
    """Makes a config whose vLLM fails to start with these reasons, one after the other ("": it serves), and then serves."""

    def make(*failures, **settings):
        program = tmp_path / "bin" / "vllm"
        program.parent.mkdir()
        text = PROGRAM.format(python=sys.executable, failures=list(failures), consequence=CONSEQUENCE)
        program.write_text(text)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return LLMConfig(
            server="vllm", model="a/model", vllm_command=str(program), start_timeout_s=30,
            **{"gpu_memory_share": 0.5, **settings},
        )  # fmt: skip

    make.starts = lambda: (tmp_path / "bin" / "starts").read_text().split()
    return make


def test_a_start_that_lost_a_race_for_memory_is_repeated(vllm):
    with vllm_server(vllm(NO_CACHE)) as server:
        server.endpoint()
    assert vllm.starts() == ["0.5", "0.5"]


def test_a_share_that_is_not_free_is_lowered(vllm):
    with vllm_server(vllm(LITTLE_FREE)) as server:
        server.endpoint()
    first, second = map(float, vllm.starts())
    assert first == 0.5
    assert second < 10.2 / 24.0


def test_tries_are_bounded_and_the_logs_reason_is_quoted(vllm, tmp_path):
    with (
        vllm_server(vllm(*[NO_CACHE] * 9), tmp_path / "llm.log") as server,
        pytest.raises(SegsmithError, match="No available memory for the cache blocks") as caught,
    ):
        server.endpoint()
    assert len(vllm.starts()) == 3
    assert "Engine core" not in str(caught.value)


def test_a_failure_that_will_not_pass_is_not_repeated(vllm):
    with (
        vllm_server(vllm("ValueError: The model's architecture is unknown")) as server,
        pytest.raises(SegsmithError),
    ):
        server.endpoint()
    assert len(vllm.starts()) == 1


def test_a_released_server_starts_again_at_the_next_question(vllm):
    with vllm_server(vllm()) as server:
        server.endpoint()
        server.release()
        assert server.pid is None
        server.endpoint()
        assert server.pid is not None
        assert server.restarts == 0
    assert len(vllm.starts()) == 2


def test_the_version_is_asked_of_the_program_in_its_own_environment(vllm):
    assert vllm_version(vllm()) == "0.19.0"


def test_a_program_that_fails_or_is_missing_is_named(tmp_path):
    broken = tmp_path / "vllm"
    broken.write_text("#!/bin/sh\necho 'ImportError: no torch' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(SegsmithError, match="ImportError: no torch"):
        vllm_version(LLMConfig(server="vllm", vllm_command=str(broken)))
    with pytest.raises(SegsmithError, match="not installed"):
        vllm_version(LLMConfig(server="vllm", vllm_command=str(tmp_path / "nothing")))


def test_a_share_is_lowered_only_as_far_as_memory_is_free():
    assert smaller_share(0.5, LITTLE_FREE) == pytest.approx(10.2 / 24 - 0.02, abs=1e-3)
    assert smaller_share(0.5, NO_CACHE) == 0.5
    assert smaller_share(0.5, "ValueError: anything else") is None


@pytest.mark.parametrize("damage", ["none", "truncated", "missing", "unreadable index"])
def test_shards_of_a_model_folder_are_checked_before_a_server_starts(vllm, tmp_path, damage):
    folder = tmp_path / "llm"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for shard in shards:
        save_file({shard: np.zeros(1000, np.float32)}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {shard: shard for shard in shards}}))
    if damage == "truncated":
        (folder / shards[1]).write_bytes((folder / shards[1]).read_bytes()[:2000])
    elif damage == "missing":
        (folder / shards[1]).unlink()
    elif damage == "unreadable index":
        index.write_text("{")
    config = vllm().model_copy(update={"model": str(folder)})
    if damage == "none":
        check_vllm(config)
        return
    with pytest.raises(SegsmithError) as error:
        check_vllm(config)
    assert "\n" not in str(error.value)
    assert ("index" if damage == "unreadable index" else shards[1]) in str(error.value)
    assert "Download" in error.value.remedy


def test_a_server_that_dies_while_images_are_drawn_restarts_between_two_batches(vllm):
    """vLLM charges to itself what others allocate while it starts, so no batch may be drawn then."""
    use, events, started = DeviceUse(), [], threading.Event()
    stop = threading.Event()

    def draw():
        while not stop.is_set():
            with use.shared():
                events.append("batch begins")
                started.set()
                time.sleep(0.05)
                events.append("batch ends")

    @contextmanager
    def alone():
        with use.alone():
            events.append("restart begins")
            yield
            events.append("restart ends")

    with vllm_server(vllm(), restarting=alone) as server:
        endpoint = server.endpoint()
        drawing = threading.Thread(target=draw)
        drawing.start()
        assert started.wait(5)
        os.kill(server.pid, signal.SIGKILL)
        server._process.wait()
        assert server.revive(endpoint)
        after = len(events)
        while len(events) < after + 2:
            time.sleep(0.01)
        stop.set()
        drawing.join()
    begins, ends = events.index("restart begins"), events.index("restart ends")
    assert ends == begins + 1
    assert events[begins - 1] == "batch ends"
    assert "batch begins" in events[ends:]
