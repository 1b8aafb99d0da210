"""Where a language model is reached, the plain client for it, and what its failures mean to the user."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from segsmith.errors import SegsmithError
from segsmith.terminal_text import first_line
from segsmith.tools.http import NO_KEY, ReplyLimits, ReplyRejected, openai_options

if TYPE_CHECKING:
    import openai

MAX_REPLY_BYTES = 8 << 20
"""Largest reply of a language model, or list of models, that is read."""


@dataclass(frozen=True)
class Endpoint:
    """Where requests go. `api_key` is not part of the repr, so it does not reach logs and tracebacks."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)


class ChatServer(Protocol):
    """The server behind a chat client: URLs maintained by others, or a server that segsmith starts."""

    def endpoint(self) -> Endpoint:
        """Where to send the next request; a local server is started at the first call."""
        ...

    def revive(self, seen: Endpoint) -> bool:
        """After a request to `seen` failed: is another server running now, so that a retry may succeed?"""
        ...

    def during(self, where: Endpoint) -> AbstractContextManager[None]:
        """Is entered while a request to `where` is in flight."""
        ...


@dataclass(frozen=True)
class RemoteServer:
    """A URL of a server that segsmith does not start."""

    where: Endpoint

    def endpoint(self) -> Endpoint:
        return self.where

    def revive(self, seen: Endpoint) -> bool:
        return False

    def during(self, where: Endpoint) -> AbstractContextManager[None]:
        return nullcontext()


def connect(where: Endpoint, timeout_s: float, retries: int) -> openai.OpenAI:
    """A plain client, for questions about the server rather than to the model."""
    import openai  # takes a second, and a session that finds its run finished asks no server

    key, limits = where.api_key or NO_KEY, ReplyLimits(MAX_REPLY_BYTES, timeout_s)
    return openai.OpenAI(api_key=key, max_retries=retries, **openai_options(where.base_url, limits))


def rejected(error: BaseException) -> ReplyRejected | None:
    """The `ReplyRejected` behind what a client raised, if there is one; some versions of openai wrap it."""
    cause = error if isinstance(error, ReplyRejected) else error.__cause__
    return cause if isinstance(cause, ReplyRejected) else None


def explained(error: Exception, where: Endpoint, model: str, timeout_s: float) -> SegsmithError:
    """The `SegsmithError` for what a client raised. It never contains the key, whatever the server echoed."""
    import openai

    url, said = where.base_url, _said(error, where.api_key)
    if (refusal := rejected(error)) is not None:
        return SegsmithError(
            f"A reply of the language model at {url} was rejected: {refusal}.",
            "Set llm.base_url to a server that you trust.",
        )
    if isinstance(error, openai.APITimeoutError):
        return SegsmithError(
            f"The language model at {url} took longer than {timeout_s:g} s.",
            "Raise llm.timeout_s, or lower llm.concurrency.",
        )
    if isinstance(error, openai.APIConnectionError):
        return SegsmithError(
            f"No language model answers at {url}.",
            "Start the server, or set llm.base_url; then rerun the same command.",
        )
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return SegsmithError(f"{url} rejects the key ({said}).", "Set OPENAI_API_KEY to a valid key.")
    if isinstance(error, openai.NotFoundError):
        return SegsmithError(f"{url} has no model {model!r} ({said}).", "Set llm.model and llm.base_url.")
    if isinstance(error, openai.RateLimitError):
        return SegsmithError(
            f"{url} limits the number of requests ({said}).",
            "Lower llm.concurrency or wait; then rerun the same command.",
        )
    if isinstance(error, openai.InternalServerError):
        return SegsmithError(
            f"The language model at {url} failed ({said}).",
            "Read the server's log; then rerun the same command.",
        )
    if isinstance(error, openai.APIStatusError):
        return SegsmithError(
            f"The language model at {url} rejected the request ({said}).",
            "Use a model that supports chat completions, or change the setting named there.",
        )
    return SegsmithError(
        f"{url} does not speak the chat-completions protocol ({type(error).__name__}).",
        "Set llm.base_url to a URL of an OpenAI-compatible server; it usually ends in /v1.",
    )


def _said(error: Exception, api_key: str | None) -> str:
    """The server's own words, as far as an error quotes them."""
    text = str(getattr(error, "message", error))
    return first_line((text.replace(api_key, "***") if api_key else text) or type(error).__name__)
