"""The graph as Mermaid, for the README and `segsmith diagram`."""

from __future__ import annotations


def mermaid() -> str:
    """Mermaid text of the main graph with the prompt agent's sub-graph opened."""
    from segsmith.graph.build import build_graph

    text: str = build_graph().get_graph(xray=1).draw_mermaid(with_styles=False)
    return text.strip()
