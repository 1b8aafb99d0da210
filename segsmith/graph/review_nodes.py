"""Nodes at which the graph pauses for a reviewer; without ``step`` they pass straight through."""

from __future__ import annotations

from langgraph.types import interrupt

from segsmith.graph.context import RunContext
from segsmith.memory.ledger import DecisionKind
from segsmith.review.decisions import overruled, pending


def pause(context: RunContext, kind: DecisionKind) -> None:
    """Stop the graph until nothing of `kind` waits for a look; without ``step`` pass straight through.

    What a person decides about verdicts may let other pictures in, which then wait in their turn.
    """
    while True:
        if kind == "verdict" and overruled(context.ledger):
            context.judge_agent.judge()
        waiting = pending(context.ledger, kind) if context.step else []
        if not waiting:
            return
        interrupt({"kind": kind, "subjects": waiting})
