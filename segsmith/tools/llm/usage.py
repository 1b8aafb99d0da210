"""Counts what a language model is asked and what it costs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

from segsmith.config import LLMConfig

TOKENS_PER_PRICE = 1_000_000


@dataclass
class Spent:
    """What one question, or many, took. `calls` are requests, `usd` by the prices in the config."""

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
        """Count the tokens of one reply, and their price."""
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        price = prompt * config.usd_per_million_in + completion * config.usd_per_million_out
        self.usd += price / TOKENS_PER_PRICE


class Usage:
    """The sum over all questions, safe to share between threads; each question is also told to `note`."""

    def __init__(self, note: Callable[[Spent], None] | None = None) -> None:
        self._lock = threading.Lock()
        self._sum = Spent()
        self._note = note

    def add(self, spent: Spent) -> None:
        """Take in one question, answered or not: what was sent is paid for."""
        with self._lock:
            self._sum.add(spent)
        if self._note is not None and spent.calls:
            self._note(spent)

    def snapshot(self) -> dict[str, float]:
        """A copy, keys as in `Spent`."""
        with self._lock:
            return asdict(self._sum)
