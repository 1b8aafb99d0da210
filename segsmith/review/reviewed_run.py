"""What the review needs of a run, so that this package does not depend on the graph that pauses for it."""

from __future__ import annotations

from typing import Protocol

from segsmith.agents.prompt.agent import PromptAgent
from segsmith.config import Config
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_folder import RunFolder
from segsmith.protocols import ChatModel


class ReviewedRun(Protocol):
    """A run under review; `segsmith.graph.context.RunContext` is one."""

    @property
    def config(self) -> Config:
        """The settings in force."""
        ...

    @property
    def run(self) -> RunFolder:
        """The run folder."""
        ...

    @property
    def ledger(self) -> Ledger:
        """Where decisions are recorded."""
        ...

    @property
    def chat(self) -> ChatModel:
        """The language model, opened on first use."""
        ...

    @property
    def prompt_agent(self) -> PromptAgent:
        """Checks and admits edited prompts; opened on first use."""
        ...
