"""Replies are bounded in bytes, time and items; requests reach the configured server and public addresses only."""

import contextlib
import gzip
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler

import httpcore
import httpx
import pytest

from segsmith.tools import http
from segsmith.tools.http import ReplyLimits, ReplyRejected, is_loopback, is_public, limited_client
from tests.loopback import loopback

LIMITS = ReplyLimits(max_bytes=100_000, max_seconds=1.0, max_items=1000, max_objects=100)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        with contextlib.suppress(OSError):
            self.server.answers[self.path](self)

    def log_message(self, *_):
        pass


def send(content, kind="application/json", status=200, **headers):
    def answer(handler):
        handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def redirect(url):
    return send(b"", status=302, Location=url)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 65536)


def drip(*, headers):
    """One byte every 0.1 s, without an end: within the headers or within the body."""

    def answer(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"X: " if headers else b"Content-Length: 9999\r\n\r\n"))
        while True:
            handler.wfile.write(b"y")
            handler.wfile.flush()
            time.sleep(0.1)

    return answer


def serving(**answers):
    return loopback(Handler, answers={f"/{name}": answer for name, answer in answers.items()}, seen=[])


@contextlib.contextmanager
def client(url, limits=LIMITS):
    with limited_client(url, limits) as it:
        yield it


def test_an_ordinary_reply_arrives_unchanged():
    with serving(a=send(b'{"a": [1, 2]}', X_Note="here")) as server, client(server.url) as it:
        reply = it.get(f"{server.url}/a")
    assert reply.json() == {"a": [1, 2]}
    assert reply.headers["X-Note"] == "here"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (endless, "larger than"),
        (send(b"x" * 100_001, kind="image/png"), "larger than"),
        (send(gzip.compress(b"x" * 50_000_000), Content_Encoding="gzip"), "compressed"),
        (send(json.dumps([0] * 2000).encode()), "JSON items"),
        (send(b"[" * 2000, kind="text/plain", status=500), "JSON items"),
        (send(json.dumps([{}] * 101).encode()), "JSON objects"),
    ],
)
def test_a_reply_beyond_the_limits_is_rejected(answer, says):
    with serving(a=answer) as server, client(server.url) as it, pytest.raises(ReplyRejected, match=says):
        it.get(f"{server.url}/a")


@pytest.mark.parametrize("headers", [True, False])
def test_the_time_limit_is_for_the_whole_reply_and_not_for_each_read(headers):
    with serving(a=drip(headers=headers)) as server, client(server.url) as it:
        started = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            it.get(f"{server.url}/a")
        assert time.monotonic() - started < 3 * LIMITS.max_seconds


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::7f00:1",
    ],
)  # fmt: skip
def test_addresses_inside_a_network_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_public_addresses(address):
    assert is_public(address)


def test_loopback_urls():
    assert all(map(is_loopback, ("http://127.0.0.1:8/v1", "http://localhost", "http://[::1]:8/")))
    assert not any(map(is_loopback, ("https://api.openai.com/v1", "http://10.0.0.1", None, "")))


def test_a_redirect_to_another_port_of_this_machine_is_rejected_and_the_target_not_asked():
    with serving(internal=send(b"secret")) as internal:
        with (
            serving(a=redirect(f"{internal.url}/internal")) as server,
            client(server.url) as it,
            pytest.raises(ReplyRejected, match="inside this network"),
        ):
            it.get(f"{server.url}/a")
        assert internal.seen == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"]
)
def test_a_public_server_cannot_name_this_machine_in_any_spelling(host):
    with serving(internal=send(b"secret")) as internal, client("http://203.0.113.9/v1") as it:
        with pytest.raises((ReplyRejected, httpx.ConnectError)):
            it.get(f"http://{host}:{internal.server_port}/internal")
        assert internal.seen == []


def test_the_configured_server_may_redirect_to_itself_under_another_name():
    with serving(b=send(b"{}")) as server:
        server.answers["/a"] = redirect(f"http://localhost:{server.server_port}/b")
        with client(server.url) as it:
            assert it.get(f"{server.url}/a").status_code == 200


def test_the_key_does_not_follow_a_redirect_to_another_host():
    with serving(b=send(b"{}")) as server:
        server.answers["/a"] = redirect(f"http://localhost:{server.server_port}/b")
        with client(server.url) as it:
            it.get(f"{server.url}/a", headers={"Authorization": "Bearer key"})
        assert server.seen == [("/a", "Bearer key"), ("/b", None)]


def test_a_name_is_resolved_once_so_a_second_answer_cannot_lead_inside(monkeypatch):
    """DNS rebinding: the first answer is public, every later one is this machine."""
    resolve, asked = socket.getaddrinfo, []

    def rebinding(host, *rest, **options):
        if host == "rebinding.example":
            asked.append(host)
            host = "203.0.113.7" if len(asked) == 1 else "127.0.0.1"
        return resolve(host, *rest, **options)

    connected = []

    def refuse(address, *_, **__):
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("segsmith.tools.http.is_public", lambda address: address == "203.0.113.7")
    with client("http://198.51.100.1/v1") as it, pytest.raises(httpx.ConnectError):
        it.get("http://rebinding.example/a")
    assert connected == ["203.0.113.7"]
    assert asked == ["rebinding.example"]


def test_a_proxy_in_the_environment_is_used_but_not_for_this_machine(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(a=send(b"{}")) as server:
        with client(server.url) as it:
            assert it.get(f"{server.url}/a").status_code == 200
        with client("http://public.example/v1") as it, pytest.raises((httpx.ConnectError, httpx.ProxyError)):
            it.get("http://public.example/v1")


@pytest.fixture
def slow_resolver(monkeypatch):
    """Names are looked up for ever, until the end of the test; returns those that were asked for."""
    resolve, end, asked = socket.getaddrinfo, threading.Event(), []

    def waiting(host, *arguments, **options):
        if options.get("flags") or host == "127.0.0.1":
            return resolve(host, *arguments, **options)
        asked.append(host)
        end.wait(60)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", waiting)
    yield asked
    end.set()


def test_a_name_server_that_does_not_answer_costs_no_more_than_the_time_limit(slow_resolver):
    limits = ReplyLimits(max_bytes=1000, max_seconds=0.3)
    started = time.monotonic()
    with limited_client("http://slow.example", limits) as client:
        with pytest.raises(httpx.ConnectTimeout, match=r"slow\.example"):
            client.get("http://slow.example/x")
        assert slow_resolver == ["slow.example"]
    with (
        serving(start=redirect("http://slower.example/x")) as server,
        limited_client(server.url, limits) as client,
        pytest.raises(httpx.ConnectTimeout, match=r"slower\.example"),
    ):
        client.get(f"{server.url}/start")
    assert time.monotonic() - started < 20


def test_lookups_that_never_end_do_not_fill_the_memory_with_threads(slow_resolver, monkeypatch):
    monkeypatch.setattr(http, "_LOOKUPS", threading.BoundedSemaphore(3))
    limits = ReplyLimits(max_bytes=1000, max_seconds=0.05)
    for number in range(6):
        with limited_client("http://a.example", limits) as client, pytest.raises(httpx.ConnectTimeout):
            client.get(f"http://host{number}.example/x")
    assert slow_resolver == ["host0.example", "host1.example", "host2.example"]


def test_a_lookup_that_ends_late_frees_the_place_that_it_took(monkeypatch):
    end, taken = threading.Event(), threading.BoundedSemaphore(1)

    def waiting(host, port, flags=0):
        if flags:
            raise OSError("not an address")
        end.wait(60)
        return []

    monkeypatch.setattr(http, "_addresses", waiting)
    monkeypatch.setattr(http, "_LOOKUPS", taken)
    with pytest.raises(httpcore.ConnectTimeout):
        http._resolve("slow.example", 80, 0.05)
    monkeypatch.setattr(http, "_LOOKUPS", threading.BoundedSemaphore(1))
    end.set()
    assert taken.acquire(timeout=30)
