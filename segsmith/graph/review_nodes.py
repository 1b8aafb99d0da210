"""The pause of the review nodes."""

from __future__ import annotations

from langgraph.types import interrupt

from segsmith.graph.context import RunContext
from segsmith.memory.ledger import DecisionKind
from segsmith.review.decisions import pending


def pause(context: RunContext, kind: DecisionKind) -> None:
    """Interrupt the graph until the reviewer has seen everything of `kind`; without ``step`` return at once.

    A decision about a verdict may let other images in, which the reviewer is then asked about, too.
    """
    while True:
        if kind == "verdict" and context.ledger.is_overruled:
            context.judge_agent.judge()
        waiting = pending(context.ledger, kind) if context.step else []
        if not waiting:
            return
        interrupt({"kind": kind, "subjects": waiting})
