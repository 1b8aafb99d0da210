"""Counts requests to a language model, their tokens and their cost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

from segsmith.config import LLMConfig

TOKENS_PER_PRICE = 1_000_000
CHARACTERS_PER_TOKEN = 3
"""For estimates. English has about four; fewer are assumed, so that costs are not underestimated."""
TOKENS_PER_IMAGE = 1500
"""For estimates of images of at most `chat.MAX_IMAGE_PX`; the hosted models bill fewer (ours)."""
MAX_TOKENS_STATED = 10_000_000
"""More tokens than any model accepts in one request."""


@dataclass
class Spent:
    """Requests sent for one question, or the sum over many; `usd` by the prices in the config."""

    calls: int = 0
    retries: int = 0
    bad_replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0

    def add(self, other: Spent) -> None:
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name) + getattr(other, part.name))

    def add_tokens(self, config: LLMConfig, prompt: int, completion: int) -> None:
        """Count the tokens of one request and their price."""
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        price = prompt * config.usd_per_million_in + completion * config.usd_per_million_out
        self.usd += price / TOKENS_PER_PRICE


def tokens(stated: object, text: str, images: int = 0) -> int:
    """The number of tokens that a server states for `text` and images, or an estimate where its statement is no use.

    A server that states nothing, zero for a text that is not empty, a negative or an impossible number must
    not make a run cheaper, or endless.
    """
    estimate = -(-len(text) // CHARACTERS_PER_TOKEN) + images * TOKENS_PER_IMAGE
    if not isinstance(stated, int) or isinstance(stated, bool) or not 0 <= stated <= MAX_TOKENS_STATED:
        return estimate
    return stated or estimate


class Usage:
    """The sum over all questions, safe to share between threads; `note` is called with each question's share."""

    def __init__(self, note: Callable[[Spent], None] | None = None) -> None:
        self._lock = threading.Lock()
        self._sum = Spent()
        self._note = note

    def add(self, spent: Spent) -> None:
        """Add one question, answered or not: requests that were sent are charged."""
        with self._lock:
            self._sum.add(spent)
        if self._note is not None and spent.calls:
            self._note(spent)

    def snapshot(self) -> dict[str, float]:
        """A copy, keys as in `Spent`."""
        with self._lock:
            return asdict(self._sum)
