"""Hundreds of hostile replies to the chat client and to the hosted images: typed errors, in time, in little memory,
without a process started or a file written."""

import base64
import contextlib
import json
import random
import socket
import time
import zlib
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Literal

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict

from segsmith.config import ImagesConfig, LLMConfig
from segsmith.errors import BadReply, SegsmithError
from segsmith.files import png_bytes
from segsmith.tools.images import hosted
from segsmith.tools.images.hosted import HostedImages
from segsmith.tools.llm import chat as chat_module
from segsmith.tools.llm.chat import OpenAIChat
from segsmith.tools.llm.endpoint import Endpoint, RemoteServer
from segsmith.types import Drawn, ImageRequest
from tests.loopback import loopback
from tests.watch import Watch, memory_below

REPLIES = 240
TIMEOUT_S = 0.4
SLOWEST_S = 3.0
MAX_BYTES = 300_000
MAX_GROWTH = 256 << 20
KEY = "sk-key-that-must-not-be-shown"


class Cell(BaseModel):
    model_config = ConfigDict(extra="forbid")
    place: Literal["street", "park"]
    note: str


def nested(depth, opening="[", closing="]"):
    return opening * depth + closing * depth


def hostile_value(rng):
    """A value that JSON can hold and that no client should expect."""
    return rng.choice(
        [
            None, True, 0, -1, 10**30, -(10**30), 1e308, float("nan"), float("inf"), "", " ", "\ud800", "\x00\x1b[2J\u202e",
            "9" * 5000, "x" * 50_000, '{"place": ' * 3000, '"\\' * 20_000, KEY, [], [[]], {}, {"": {}}, [None] * 500,
            json.loads(nested(200)), json.loads('{"a":' * 200 + "1" + "}" * 200), ["a", {"b": [1e-300]}],
        ]
    )  # fmt: skip


def mutated(tree, rng):
    """`tree` with one to three of its values replaced, removed or added."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.randint(1, 3)):
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and rng.random() < 0.7:
                node = node[key]
                continue
            change = rng.random()
            if change < 0.7:
                node[key] = hostile_value(rng)
            elif change < 0.85:
                del node[key]
            elif isinstance(node, dict):
                node[rng.choice(["error", "tool_calls", "\x1b", "x" * 3000])] = hostile_value(rng)
            break
    return tree


def completion(rng):
    text = json.dumps({"place": "park", "note": "fine"})
    if rng.random() < 0.4:
        text = rng.choice(
            [
                "",
                text[:-4],
                text * 300,
                '{"place":' * 5000,
                '{"' + '\\"' * 9000,
                "x" * 200_000,
                "\x1b[2J",
                text + ",}",
            ]
        )
    message = {"role": "assistant", "content": text}
    finish = rng.choice(["stop", "length", "content_filter", "tool_calls", "?"])
    return {
        "id": "1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }  # fmt: skip


def generation(rng, internal):
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    png = png_bytes(np.zeros((9, 9, 3), np.uint8))
    content = rng.choice([png, png[:-20], postscript, b"GIF89a" + bytes(40), b"", bytes(5000), bomb()])
    encoded = rng.choice([base64.b64encode(content).decode(), "%%%", "é", "A"])
    url = rng.choice([
        internal, "http://169.254.169.254/latest", "file:///etc/passwd", "http://[", "http://", "\x1b[2J", "ftp://h/x",
        "http://localhost:1/", "//x", "data:image/png;base64,AA", "http://0x7f.1:1/", "http://\u202e.example/",
    ])  # fmt: skip
    return {
        "created": 1,
        "data": [rng.choice([{"b64_json": encoded}, {"url": url}, {"b64_json": encoded, "url": url}])],
    }


def bomb():
    """The header of a PNG of 60,000 x 60,000 pixels."""
    png = bytearray(png_bytes(np.zeros((1, 1, 3), np.uint8)))
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(bytes(png[12:29])).to_bytes(4, "big")
    return bytes(png)


def body(rng, tree):
    """Bytes of a reply around a well-meant JSON tree."""
    kind = rng.random()
    if kind < 0.55:
        return json.dumps(mutated(tree, rng)).encode()
    if kind < 0.65:
        return json.dumps(tree).encode()
    text = json.dumps(tree)
    return rng.choice(
        [
            b"", b"null", b"[]", b"0", b'"text"', b"<html>hello</html>", b"\xff\xfe\x00", bytes(rng.randbytes(500)),
            text[: rng.randrange(len(text))].encode(), nested(100_000).encode(), nested(900).encode(),
            b'{"a":' * 30_000, b'{"choices":' + b"9" * 6000 + b"}", text.encode("utf-16"), b"[" + b"1," * 140_000 + b"1]",
            b"[" + b"{}," * 90_000 + b"1]", text.encode() * 2, b"x" * (2 * MAX_BYTES), b'{"usage": 1e999}',
        ]
    )  # fmt: skip


def reply(rng, tree):
    """(bytes on the wire, seconds between single bytes or None) of a whole HTTP reply."""
    content = body(rng, tree)
    status = rng.choice([200] * 12 + [201, 204, 302, 400, 401, 403, 404, 413, 422, 429, 500, 503, 599, 999])
    kind = rng.choice(
        ["application/json"] * 5 + ["text/html", "application/x-json", "", "application/json; x=\xff"]
    )
    length = rng.choice([len(content)] * 8 + [len(content) + 50, max(0, len(content) - 3), -1, "x", 10**30])
    extra = rng.choice(
        [""] * 8 + ["Content-Encoding: gzip\r\n", "Transfer-Encoding: chunked\r\n", "Retry-After: -5\r\n"]
    )
    if status == 302:
        extra = (
            f"Location: {rng.choice(['http://127.0.0.1:1/', 'file:///etc/passwd', 'http://[', '/v1/x'])}\r\n"
        )
    head = f"HTTP/1.1 {status} Hm\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n{extra}\r\n"
    if rng.random() < 0.05:
        head = rng.choice(
            ["garbage\r\n\r\n", "HTTP/9.9 200 OK\r\n\r\n", "", "HTTP/1.1 200 OK\r\nX: " + "y" * 200_000]
        )
    slow = 0.05 if rng.random() < 0.03 else None
    return head.encode("latin-1") + content, slow


@contextlib.contextmanager
def server():
    """Answers every POST with the bytes of `next`; `inside` lists the paths of GET requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with contextlib.suppress(OSError):
                data, slow = http.next
                if slow is None:
                    self.wfile.write(data)
                else:
                    for at in range(len(data)):
                        self.wfile.write(data[at : at + 1])
                        time.sleep(slow)
                self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

        def do_GET(self):
            http.inside.append(self.path)

        def log_message(self, *_):
            pass

    with loopback(Handler, inside=[]) as http:
        http.url += "/v1"
        yield http


def attempt(number, act, allowed):
    """Run `act`; the name of what came of it. Fails on any other error, a hang, or a message that is not fit to print."""
    started = time.monotonic()
    problem = None
    try:
        act()
    except allowed as error:
        problem = error
    assert time.monotonic() - started < SLOWEST_S, number
    assert str(problem).isprintable(), (number, str(problem))
    assert len(str(problem)) < 2000, number
    assert KEY not in str(problem), number
    return "accepted" if problem is None else type(problem).__name__


def test_the_chat_client_survives_hostile_replies(monkeypatch, tmp_path):
    monkeypatch.setattr(chat_module, "MAX_REPLY_BYTES", MAX_BYTES)
    config = LLMConfig(server="openai", model="m", timeout_s=TIMEOUT_S, retries=0)
    outcomes, watch = [], Watch()
    with server() as http:
        chat = OpenAIChat(config, RemoteServer(Endpoint(http.url, KEY)), transport_retries=0)
        http.next = b"", None  # the client's first request asks the system for its name
        attempt(-1, partial(chat.ask, "be brief", "where?", Cell, seed=0), (BadReply, SegsmithError))
        watch.start(tmp_path)
        for number in range(REPLIES):
            rng = random.Random(f"chat {number}")
            http.next = reply(rng, completion(rng))
            ask = partial(chat.ask, "be brief", "where?", Cell, seed=number)
            with memory_below(MAX_GROWTH):
                outcomes.append(attempt(number, ask, (BadReply, SegsmithError)))
        assert set(http.inside) <= {"/v1/x"}  # a server may redirect to itself
    watch.stop()
    assert watch.seen == []
    assert set(outcomes) == {"accepted", "BadReply", "SegsmithError"}
    assert 0 < chat.usage.snapshot()["prompt_tokens"] < REPLIES * 10_000
    assert chat.usage.snapshot()["completion_tokens"] >= 0


def test_hosted_images_survive_hostile_replies(monkeypatch, tmp_path):
    monkeypatch.setattr(hosted, "MAX_REPLY_BYTES", MAX_BYTES)
    outcomes, watch = [], Watch()
    with server() as http, server() as other:
        settings = {"base_url": http.url, "timeout_s": TIMEOUT_S, "retries": 0, "usd_per_image": 0.1}
        settings["rate_limit_wait_s"] = 0.1  # a server that only ever answers 429 is waited for for an hour
        config = ImagesConfig(backend="hosted", model="m", size=64, hosted=settings)
        backend = HostedImages(config, api_key=KEY)
        watch.start(tmp_path)
        for number in range(REPLIES):
            rng = random.Random(f"images {number}")
            http.next = reply(rng, generation(rng, f"{other.url}/internal"))

            def draw(number=number):
                (drawn,) = backend.draw([ImageRequest("a cat", number)])
                assert isinstance(drawn, Drawn)
                assert drawn.image is None or drawn.image.shape == (64, 64, 3)

            with memory_below(MAX_GROWTH):
                outcomes.append(attempt(number, draw, SegsmithError))
        assert other.inside == []
    watch.stop()
    assert watch.seen == []
    assert set(outcomes) == {"accepted", "SegsmithError"}


@pytest.mark.parametrize("seed", range(3))
def test_the_corpus_is_the_same_each_time(seed):
    first, second = (reply(rng, completion(rng)) for rng in (random.Random(seed), random.Random(seed)))
    assert first == second
