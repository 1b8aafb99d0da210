"""What a failing language model means for the person who runs segsmith: one line, and what to do."""

from __future__ import annotations

import openai

from segsmith.errors import SegsmithError
from segsmith.terminal_text import printable
from segsmith.tools.llm.endpoint import Endpoint

SAID = 160
"""Characters of a server's own words that an error quotes."""


def explained(error: Exception, where: Endpoint, model: str, timeout_s: float) -> SegsmithError:
    """The `SegsmithError` for what a client raised. It never holds the key, whatever the server echoed."""
    url, said = where.base_url, _said(error, where.api_key)
    if isinstance(error, openai.APITimeoutError):
        return SegsmithError(
            f"The language model at {url} took longer than {timeout_s:g} s.",
            "Raise llm.timeout_s, or lower llm.concurrency.",
        )
    if isinstance(error, openai.APIConnectionError):
        return SegsmithError(
            f"No language model answers at {url}.",
            "Start the server, or set llm.base_url; then start the same command again.",
        )
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return SegsmithError(f"{url} refuses the key ({said}).", "Set OPENAI_API_KEY to a valid key.")
    if isinstance(error, openai.NotFoundError):
        return SegsmithError(f"{url} knows no model {model!r} ({said}).", "Set llm.model and llm.base_url.")
    if isinstance(error, openai.RateLimitError):
        return SegsmithError(
            f"{url} turns requests away ({said}).",
            "Lower llm.concurrency or wait; then start the same command again.",
        )
    if isinstance(error, openai.InternalServerError):
        return SegsmithError(
            f"The language model at {url} failed ({said}).",
            "Look at the server's log; then start the same command again.",
        )
    if isinstance(error, openai.APIStatusError):
        return SegsmithError(
            f"The language model at {url} refused the question ({said}).",
            "Use a model that answers chat completions, or change the setting it names.",
        )
    return SegsmithError(
        f"{url} does not speak the chat-completions protocol ({type(error).__name__}).",
        "Set llm.base_url to an OpenAI-style URL; it usually ends in /v1.",
    )


def _said(error: Exception, api_key: str | None) -> str:
    lines = str(getattr(error, "message", error)).strip().splitlines()
    said = printable(lines[0]) if lines else type(error).__name__
    return (said.replace(api_key, "***") if api_key else said)[:SAID]
