"""Where a language model is reached, and the plain client for it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import openai


@dataclass(frozen=True)
class Endpoint:
    """Where requests go. `api_key` is kept out of the repr, so out of logs and tracebacks."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)


class ChatServer(Protocol):
    """What stands behind a chat client: a URL of somebody else's, or a server of our own."""

    def endpoint(self) -> Endpoint:
        """Where to send the next request; a server of our own is started when first asked."""
        ...

    def revive(self, seen: Endpoint) -> bool:
        """After a request to `seen` failed: is there now another server, so that asking again helps?"""
        ...


@dataclass(frozen=True)
class RemoteServer:
    """A URL that somebody else looks after."""

    where: Endpoint

    def endpoint(self) -> Endpoint:
        return self.where

    def revive(self, seen: Endpoint) -> bool:
        return False


def client_options(where: Endpoint) -> dict[str, Any]:
    """What every client of `where` is made with."""
    options: dict[str, Any] = {"base_url": where.base_url}
    if is_loopback(where.base_url):
        # A proxy named in the environment must not see, or lose, calls to this machine.
        options["http_client"] = openai.DefaultHttpxClient(trust_env=False)
    return options


def connect(where: Endpoint, timeout_s: float, retries: int) -> openai.OpenAI:
    """A plain client, for questions about the server rather than to the model."""
    key = where.api_key or NO_KEY
    return openai.OpenAI(api_key=key, timeout=timeout_s, max_retries=retries, **client_options(where))


NO_KEY = "none"
"""Servers without keys want the header all the same."""


def is_loopback(url: str) -> bool:
    """Does the URL name this machine?"""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
