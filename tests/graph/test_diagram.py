"""The diagram in the README matches the graph."""

from pathlib import Path

from segsmith.graph.diagram import mermaid
from segsmith.graph.served import serve_graph

ROOT = Path(__file__).parents[2]


def test_the_readme_contains_the_current_diagram():
    assert mermaid() in (ROOT / "README.md").read_text("utf-8")


def test_every_reason_is_on_a_label():
    text = mermaid()
    for reason in (
        "need_prompts",
        "draw",
        "quota_met",
        "stalled",
        "budget_spent",
        "nothing_accepted",
        "rejected",
    ):
        assert reason in text


def test_langgraph_json_names_a_graph():
    import json

    named = json.loads((ROOT / "langgraph.json").read_text())["graphs"]["segsmith"]
    assert named == "./segsmith/graph/served.py:serve_graph"
    assert "direct" in serve_graph().get_graph().nodes
