"""The graph as Mermaid, for the README and `segsmith diagram`.

LangGraph's own drawing keeps one label per pair of nodes and misplaces the edges of a deferred node, so reasons would
be lost; this module reads nodes, edges and routes from the builder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from langgraph.graph import END, START

NAMES = {START: "start((start))", END: "done((end))"}


def mermaid() -> str:
    """Mermaid flowchart of the main graph, and of the prompt agent's sub-graph, which runs once per class.

    A solid arrow is always taken, a dotted one only for the reasons written on it.
    """
    from segsmith.graph.graph import build_graph, build_prompt_graph

    lines = ["flowchart TD", *_arrows(build_graph().builder, "")]
    lines.append("    subgraph each [write_prompts, one for each class]")
    lines += [f"    {line}" for line in _arrows(build_prompt_graph().builder, "p_")]
    return "\n".join([*lines, "    end", "    write_prompts -.- each"])


def _arrows(builder: Any, prefix: str) -> Iterator[str]:
    """One line per edge, and one with all reasons per pair of nodes that a route connects."""
    for source, target in sorted(builder.edges):
        yield f"    {_node(source, prefix)} --> {_node(target, prefix)}"
    for source, branches in sorted(builder.branches.items()):
        for branch in branches.values():
            reasons: dict[str, list[str]] = defaultdict(list)
            for reason, target in branch.ends.items():
                reasons[target].append(reason)
            for target, named in reasons.items():
                label = "<br/>".join(named)
                yield f"    {_node(source, prefix)} -. {label} .-> {_node(target, prefix)}"


def _node(name: str, prefix: str) -> str:
    if name in NAMES:
        return prefix + NAMES[name]
    return f"{prefix}{name}[{name}]" if prefix else name
