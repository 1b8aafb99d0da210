"""A local server that offers OpenAI's images.generate, draws with the simulator, and misbehaves on demand.

It replaces a hosted image model in tests and benchmarks. Its faults are a function of the request's key and of
how often that request arrived, so a run meets the same faults whatever its timing.

To run it alone: ``python -m tests.tools.images.image_server --port 8090``; it prints its address.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from segsmith.config import FaultRates
from segsmith.files import png_bytes
from segsmith.tools.images.simulator import Simulator
from segsmith.types import ImageRequest


@dataclass
class Behaviour:
    """What the server does; rates are shares of the images requested."""

    busy: float = 0.0
    """429 with Retry-After, at the first try of an image."""
    broken: float = 0.0
    """500, at the first try."""
    slow: float = 0.0
    """Answers `delay_s` late, at the first try."""
    refusals: float = 0.0
    """400 with code content_policy_violation, at every try."""
    delay_s: float = 0.5
    retry_after: str = "0.05"
    key: str | None = None
    """The only key that is accepted; None accepts every request."""
    reply: str = "b64_json"
    always: int | None = None
    """Answer every request with this status."""
    garbage: bool = False
    """Answer 200 with something that is not an image."""
    usage: dict = field(default_factory=dict)
    """Sent with every image."""
    limited: int = 0
    """The first so many requests are answered with 429."""
    code: str = "rate_limit_exceeded"
    content: bytes = b""
    """Answer with this file."""
    names: str = ""
    """With reply "url": answer with this URL."""
    redirects: str = ""
    """Redirect requests for files to this URL."""
    size: int = 128
    classes: tuple[str, ...] = ("cat", "dog")


@dataclass
class Account:
    """What the server saw. `drawn` counts images made and charged, by idempotency key."""

    requests: int = 0
    drawn: Counter[str] = field(default_factory=Counter)
    refused: set[str] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    most_at_once: int = 0
    in_flight: int = 0
    bodies: list[dict] = field(default_factory=list)
    fetched: list[str | None] = field(default_factory=list)
    """The Authorization header of each request for a file."""


class ImageServer:
    """`url` is the base URL for a client; `account` says what happened."""

    def __init__(self, behaviour: Behaviour, port: int = 0) -> None:
        self.behaviour, self.account = behaviour, Account()
        self._lock = threading.Lock()
        self._tries: Counter[str] = Counter()
        self._files: dict[str, bytes] = {}
        self._simulator = Simulator(FaultRates(), behaviour.classes, behaviour.size)
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def serve(self) -> None:
        self._http.serve_forever(poll_interval=0.02)

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, body: dict, headers) -> tuple[int, dict, dict]:
        """(status, headers, JSON) of one images/generations request."""
        behaviour, account = self.behaviour, self.account
        key = headers.get("Idempotency-Key") or f"{body['prompt']}/{body.get('seed')}"
        with self._lock:
            account.requests += 1
            account.bodies.append(body)
            self._tries[key] += 1
            first = self._tries[key] == 1
        if account.requests <= behaviour.limited:
            return 429, {"Retry-After": behaviour.retry_after}, _error("Rate limit reached", behaviour.code)
        if behaviour.always:
            return behaviour.always, {"Retry-After": behaviour.retry_after}, _error("told to", "server_error")
        if behaviour.key and headers.get("Authorization") != f"Bearer {behaviour.key}":
            return (
                401,
                {},
                _error(f"Incorrect API key provided: {headers.get('Authorization')}", "invalid_api_key"),
            )
        if behaviour.content:
            return (
                200,
                {},
                {"created": 0, "data": [{"b64_json": base64.b64encode(behaviour.content).decode()}]},
            )
        if behaviour.names:
            return 200, {}, {"created": 0, "data": [{"url": behaviour.names}]}
        if behaviour.garbage:
            return 200, {}, {"created": 0, "data": [{"b64_json": base64.b64encode(b"not an image").decode()}]}
        lot = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
        fault = _fault(behaviour, lot)
        if fault == "refusals":
            account.refused.add(key)
            return (
                400,
                {},
                _error("Your request was rejected by our safety system", "content_policy_violation"),
            )
        if first and fault == "busy":
            return (
                429,
                {"Retry-After": behaviour.retry_after},
                _error("Rate limit reached", "rate_limit_exceeded"),
            )
        if first and fault == "broken":
            return 500, {}, _error("The server had an error", "server_error")
        data = self._image(key, body)  # a slow image is made, and charged, whether or not the client waits
        if first and fault == "slow":
            time.sleep(behaviour.delay_s)
        if behaviour.reply == "url":
            return 200, {}, {"created": 0, "data": [{"url": self.url.removesuffix("/v1") + f"/files/{key}"}]}
        usage = {"usage": behaviour.usage} if behaviour.usage else {}
        return 200, {}, {"created": 0, "data": [{"b64_json": base64.b64encode(data).decode()}], **usage}

    def file(self, key: str) -> bytes | None:
        return self._files.get(key)

    def _image(self, key: str, body: dict) -> bytes:
        """Drawn once per idempotency key, as a careful provider does."""
        with self._lock:
            if key not in self._files:
                seed = body.get("seed")
                seed = (
                    int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") if seed is None else seed
                )
                (drawn,) = self._simulator.draw([ImageRequest(body["prompt"], seed)])
                self._files[key] = png_bytes(drawn.image)
                self.account.drawn[key] += 1
            return self._files[key]


class _Handler(BaseHTTPRequestHandler):
    owner: ImageServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        account, lock = self.owner.account, self.owner._lock
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        with lock:
            account.in_flight += 1
            account.most_at_once = max(account.most_at_once, account.in_flight)
        try:
            if self.path != "/v1/images/generations":
                status, headers, reply = 404, {}, _error("no such path", "not_found")
            else:
                status, headers, reply = self.owner.answer(body, self.headers)
        finally:
            with lock:
                account.in_flight -= 1
        with lock:
            account.statuses[status] += 1
        self._send(status, json.dumps(reply).encode(), "application/json", headers)

    def do_GET(self) -> None:
        self.owner.account.fetched.append(self.headers.get("Authorization"))
        if self.owner.behaviour.redirects:
            return self._send(302, b"", "text/plain", {"Location": self.owner.behaviour.redirects})
        data = self.owner.file(self.path.removeprefix("/files/"))
        return self._send(200 if data else 404, data or b"", "image/png", {})

    def _send(self, status: int, data: bytes, kind: str, headers: dict) -> None:
        try:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client stopped waiting

    def log_message(self, *_) -> None:
        pass


def _fault(behaviour: Behaviour, lot: float) -> str:
    """The fault, if any, of an image for which the number `lot` in [0, 1) was drawn."""
    for name in ("refusals", "busy", "broken", "slow"):
        lot -= getattr(behaviour, name)
        if lot < 0:
            return name
    return ""


def _error(message: str, code: str) -> dict:
    return {"error": {"message": message, "code": code, "type": "error", "param": None}}


@contextmanager
def image_server(**behaviour) -> Iterator[ImageServer]:
    """A running server on a free port, stopped at the end."""
    server = ImageServer(Behaviour(**behaviour))
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=8090)
    for rate in ("busy", "broken", "slow", "refusals"):
        options.add_argument(f"--{rate}", type=float, default=0.0)
    options.add_argument("--classes", default="cat,dog")
    given = vars(options.parse_args())
    port, classes = given.pop("port"), tuple(given.pop("classes").split(","))
    running = ImageServer(Behaviour(**given, classes=classes), port)
    print(running.url, flush=True)
    running.serve()
