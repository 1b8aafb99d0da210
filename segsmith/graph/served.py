"""The graph for LangGraph's server, where a run is named by the path of its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segsmith.graph.context import RunContext
from segsmith.graph.graph import build_graph


@dataclass(init=False, eq=False)
class ServedRun(RunContext):
    """The context that the server creates from ``{"path": "runs/pets", "step": true}``.

    It is a dataclass because LangGraph turns a mapping into a context only for those, and shows its fields in Studio.
    """

    path: str = ""
    """The run folder."""
    step: bool = False
    """Pause at prompts, verdicts, labels and masks for a reviewer."""

    def __init__(self, path: str, step: bool = False) -> None:
        opened = RunContext.open(Path(path))
        super().__init__(opened.config, opened.run, step=step)
        opened.close()
        self.path = path


def serve_graph() -> Any:
    """The graph that ``langgraph.json`` names; the server brings its own checkpointer."""
    return build_graph(context_schema=ServedRun)
