"""HTTP to servers that may misbehave: replies with limits, and no way into the network of this machine.

httpx limits the time of each read, so a server that sends a byte now and then holds a request for ever, and it
reads a reply of any size. `LimitedTransport` bounds the whole reply in bytes, seconds and JSON items. It also
decides to which addresses a request may go: to the configured server, wherever that is, and to public addresses.
"""

from __future__ import annotations

import functools
import ipaddress
import queue
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpx

MAX_REDIRECTS = 5
MAX_CONNECTIONS = 100
"""httpx's own default."""
NO_KEY = "none"
"""Sent as the key to servers that need none: clients insist on the header."""
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses whose last four bytes are an IPv4 address (RFC 6052)."""
PORTS = {"http": 80, "https": 443}
MAX_LOOKUPS = 32
"""Lookups of host names that wait for an answer at a time."""
MAX_ERROR_BYTES = 1 << 20
"""Largest reply with an error status."""
MALFORMED_REPLY = (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError)
"""What the openai client raises on a reply without the structure it expects, such as a web page or half a reply."""


class ReplyRejected(Exception):
    """A reply beyond the limits, or an address that must not be asked; the message says which."""


@dataclass(frozen=True)
class ReplyLimits:
    """What one reply may take."""

    max_bytes: int
    max_seconds: float
    """From the start of the request to the last byte, including the connection."""
    max_items: int = 500_000
    """Opening brackets and commas: a parsed JSON item takes far more memory than its text."""
    max_objects: int = 10_000
    """Opening braces: clients make an instance of every object, which takes far more time than parsing it."""
    is_json: bool = True
    """False for files, in which nothing is counted. The content type is no help: clients parse whatever they get."""


def is_loopback(url: str | None) -> bool:
    """Does the URL name this machine, or do all of several, separated by commas?"""
    if url and "," in url:
        return all(map(is_loopback, url.split(",")))
    host = urlsplit(url or "").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_public(address: str) -> bool:
    """Is this IP address on the public internet?

    Loopback, private, link-local, shared, multicast and reserved addresses are not, and neither are IPv6
    addresses that stand for such an IPv4 address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def limited_client(
    server_url: str, limits: ReplyLimits, *, retries: int = 0, proxies: bool = True
) -> httpx.Client:
    """A client for the server at `server_url`; redirects are followed to public addresses and to that server.

    `retries` counts further tries to connect. Proxies named in the environment are used unless `proxies` is
    false or the server is on this machine: a proxy must neither see nor lose calls to this machine.
    """
    transport = LimitedTransport(server_url, limits, retries=retries, proxies=proxies)
    return httpx.Client(
        transport=transport,
        timeout=limits.max_seconds,
        follow_redirects=True,
        max_redirects=MAX_REDIRECTS,
        trust_env=False,
    )


def openai_options(server_url: str, limits: ReplyLimits) -> dict[str, Any]:
    """Arguments with which openai's clients, and LangChain's, use a `limited_client`."""
    return {
        "base_url": server_url,
        "timeout": limits.max_seconds,
        "http_client": limited_client(server_url, limits),
    }


class LimitedTransport(httpx.BaseTransport):
    """Reads every reply as a whole and within `limits`; see the module's docstring.

    Raises httpx's own errors, and `ReplyRejected` for a reply that is too large, compressed (a small reply
    could unpack to any size) or has too many items, and for an address that is not allowed.
    """

    def __init__(
        self, server_url: str, limits: ReplyLimits, *, retries: int = 0, proxies: bool = True
    ) -> None:
        self._limits = limits
        self._retries = retries
        self._proxies = proxies and not is_loopback(server_url)
        self._guard = _AddressGuard(server_url)
        self._pools: dict[str | None, httpcore.ConnectionPool] = {}
        self._opening = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.BaseTransport`."""
        request.headers["Accept-Encoding"] = "identity"
        plain = httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _httpx_errors(), _deadline(self._limits.max_seconds):
            response = self._pool(request.url).handle_request(plain)
            try:
                headers = httpx.Headers(response.headers)
                body = self._read(response, headers)
            finally:
                response.close()
        return httpx.Response(response.status, headers=headers, content=body)

    def close(self) -> None:
        """Close all connections."""
        with self._opening:
            for pool in self._pools.values():
                pool.close()
            self._pools.clear()

    def _read(self, response: httpcore.Response, headers: httpx.Headers) -> bytes:
        limits = self._limits
        if headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise ReplyRejected("the reply is compressed, which was not asked for")
        failed = response.status >= 400
        largest = min(limits.max_bytes, MAX_ERROR_BYTES) if failed else limits.max_bytes
        body = bytearray()
        for chunk in response.iter_stream():
            body += chunk
            if len(body) > largest:
                raise ReplyRejected(f"the reply is larger than {largest / 2**20:.3g} MiB")
        if failed or limits.is_json:
            objects = body.count(b"{")
            if objects > limits.max_objects:
                raise ReplyRejected(f"the reply has more than {limits.max_objects:,} JSON objects")
            if objects + body.count(b"[") + body.count(b",") > limits.max_items:
                raise ReplyRejected(f"the reply has more than {limits.max_items:,} JSON items")
        return bytes(body)

    def _pool(self, url: httpx.URL) -> httpcore.ConnectionPool:
        """The connections to `url`'s server: direct, or those of the proxy in the environment."""
        proxy = self._proxy(url)
        with self._opening:
            if proxy not in self._pools:
                options: dict[str, Any] = {
                    "ssl_context": _ssl_context(),
                    "max_connections": MAX_CONNECTIONS,
                    "retries": self._retries,
                }
                if proxy is None:
                    self._pools[None] = httpcore.ConnectionPool(
                        network_backend=_Backend(self._guard), **options
                    )
                else:
                    self._pools[proxy] = _proxy_pool(proxy, options)
            return self._pools[proxy]

    def _proxy(self, url: httpx.URL) -> str | None:
        if not self._proxies or urllib.request.proxy_bypass(url.host):
            return None
        found = urllib.request.getproxies()
        return found.get(url.scheme) or found.get("all")


def _proxy_pool(proxy: str, options: dict[str, Any]) -> httpcore.ConnectionPool:
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = f"{parts.scheme}://{parts.hostname}:{parts.port or PORTS.get(parts.scheme, 1080)}"
    login = (parts.username, parts.password or "") if parts.username else None
    kind = httpcore.SOCKSProxy if parts.scheme.startswith("socks") else httpcore.HTTPProxy
    return kind(proxy_url=address, proxy_auth=login, network_backend=_Backend(None), **options)


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context()


@contextmanager
def _httpx_errors() -> Iterator[None]:
    """httpcore's errors as httpx's, which have the same names."""
    try:
        yield
    except (
        httpcore.TimeoutException,
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.UnsupportedProtocol,
    ) as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error


# -- time -----------------------------------------------------------------------------------------


class _Deadline(threading.local):
    """When the request of this thread must be complete; a request is sent and read in one thread."""

    at: float | None = None


_DEADLINE = _Deadline()


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    _DEADLINE.at = time.monotonic() + seconds
    try:
        yield
    finally:
        _DEADLINE.at = None


def _time_left(timeout: float | None, expired: type[Exception]) -> float | None:
    """`timeout`, cut to what the deadline leaves; raises `expired` when nothing is left."""
    if _DEADLINE.at is None:
        return timeout
    left = _DEADLINE.at - time.monotonic()
    if left <= 0:
        raise expired("the reply took too long")
    return left if timeout is None else min(timeout, left)


class _Stream(httpcore.NetworkStream):
    """A connection whose reads and writes end at the deadline of the request."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _time_left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _time_left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _time_left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


# -- addresses ------------------------------------------------------------------------------------

_LOOKUPS = threading.BoundedSemaphore(MAX_LOOKUPS)


class _AddressGuard:
    """Allows the address of the configured server and public addresses."""

    def __init__(self, server_url: str) -> None:
        parts = urlsplit(server_url)
        self._host = parts.hostname or ""
        self._port = parts.port or PORTS.get(parts.scheme, 0)

    def check(self, host: str, port: int, addresses: Iterable[str], timeout: float | None) -> None:
        """Raises `ReplyRejected` if one of the addresses that `host` resolves to is not allowed.

        It may look up the configured server, for at most `timeout` seconds.
        """
        if (host.lower(), port) == (self._host, self._port):
            return
        inside = [address for address in addresses if not is_public(address)]
        if not inside:
            return
        if port != self._port or not set(inside) <= set(_resolve(self._host, self._port, timeout)):
            raise ReplyRejected(f"{host}:{port} is an address inside this network")


class _Backend(httpcore.NetworkBackend):
    """Opens connections; with a guard, only to the very addresses that it has allowed."""

    def __init__(self, guard: _AddressGuard | None) -> None:
        self._guard = guard
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        # Resolved once: a second lookup could give another answer than the one that was checked.
        addresses = _resolve(host, port, timeout)
        if self._guard is not None:
            self._guard.check(host, port, addresses, timeout)
        problem: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                left = _time_left(timeout, httpcore.ConnectTimeout)
                return _Stream(self._inner.connect_tcp(address, port, left, local_address, socket_options))
            except httpcore.ConnectError as error:
                problem = error
        raise problem


def _resolve(host: str, port: int, timeout: float | None) -> list[str]:
    """The IP addresses of a host. Raises `httpcore.ConnectError`, and `ConnectTimeout` at the deadline.

    The system's resolver has no time limit, and a hostile name server can keep it waiting. So it runs in a thread,
    which is left behind if it takes too long; at most `MAX_LOOKUPS` of them wait at a time.
    """
    with suppress(OSError, UnicodeError):  # an address needs no lookup
        return _addresses(host, port, socket.AI_NUMERICHOST)
    expired = httpcore.ConnectTimeout
    left = _time_left(timeout, expired)
    started = time.monotonic()
    lookups = _LOOKUPS
    if not lookups.acquire(timeout=left):
        raise expired(f"the lookup of {host} has to wait for too many others")
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(_addresses(host, port))
        except (OSError, UnicodeError) as error:
            answers.put(httpcore.ConnectError(str(error)))
        finally:
            lookups.release()

    threading.Thread(target=look_up, name=f"lookup of {host}", daemon=True).start()
    try:
        answer = answers.get(timeout=None if left is None else max(0.0, left - (time.monotonic() - started)))
    except queue.Empty:
        raise expired(f"the lookup of {host} took too long") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _addresses(host: str, port: int, flags: int = 0) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys(str(info[4][0]) for info in found))
