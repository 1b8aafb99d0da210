"""The diagram in the README matches the graph."""

from pathlib import Path

from segsmith.graph.diagram import mermaid

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
