"""The whole graph: every node, edge and route, readable from top to bottom.

Nodes read state, make one or two calls and return what changed. Routes return reasons; one map per fork
turns reasons into nodes, and the reasons are the labels of the diagram. Every node may run twice (a crash
between its work and its checkpoint): ids and the ledger make that harmless.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, Literal

from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Send

from segsmith.agents.director import ClassTally, cap_reached, plan_round, spent
from segsmith.graph import review
from segsmith.graph.deps import opened
from segsmith.graph.handover import evaluate_segmenter, export_dataset, train_segmenter
from segsmith.graph.state import PromptResult, PromptState, RunContext, RunState

Context = Runtime[RunContext]


# -- the prompt agent's sub-graph: one class, fanned out with Send ---------------------------------


def propose(state: PromptState, runtime: Context) -> dict[str, Any]:
    """Rewrite the prompts the judge sent back, then ask for new ones."""
    agent = opened(runtime.context.run).prompt_agent
    rewritten = agent.refine(agent.returned(state.get("returned", [])))[: state["wanted"]]
    fresh = agent.propose(state["class_name"], state["wanted"] - len(rewritten), state["round"])
    return {"drafts": [*rewritten, *fresh], "refines": 0, "admitted": 0}


def critique(state: PromptState, runtime: Context) -> dict[str, Any]:
    """Find what is wrong with each draft; cheapest test first."""
    return {"drafts": opened(runtime.context.run).prompt_agent.critique(state["drafts"])}


def admit(state: PromptState, runtime: Context) -> dict[str, Any]:
    """Remember the drafts without a problem."""
    passed = [d for d in state["drafts"] if not d["problem"]]
    ids = opened(runtime.context.run).prompt_agent.admit(passed)
    rest = [d for d in state["drafts"] if d["problem"] or d["id"] not in ids]
    return {"drafts": rest, "admitted": state["admitted"] + len(ids)}


def refine(state: PromptState, runtime: Context) -> dict[str, Any]:
    """Rewrite the rejected drafts, told why they were rejected and what to keep away from."""
    agent = opened(runtime.context.run).prompt_agent
    return {"drafts": agent.refine(state["drafts"]), "refines": state["refines"] + 1}


def drop(state: PromptState, runtime: Context) -> dict[str, Any]:
    """Give up on what is still rejected; counted under its reason."""
    opened(runtime.context.run).prompt_agent.drop(state["drafts"])
    return {"drafts": []}


def route_drafts(state: PromptState, runtime: Context) -> Literal["all_admitted", "rejected", "hopeless"]:
    """After `admit`: is something left, and may it be refined once more?"""
    if not state["drafts"]:
        return "all_admitted"
    rounds = opened(runtime.context.run).config.prompts.max_refines
    return "rejected" if state["refines"] < rounds else "hopeless"


def build_prompt_graph() -> Any:
    """propose -> critique -> admit -> (refine -> critique ... | drop)."""
    graph = StateGraph(PromptState, context_schema=RunContext, output_schema=PromptResult)
    for node in (propose, critique, admit, refine, drop):
        graph.add_node(node)
    graph.add_edge(START, "propose")
    graph.add_edge("propose", "critique")
    graph.add_edge("critique", "admit")
    graph.add_conditional_edges(
        "admit", route_drafts, {"all_admitted": END, "rejected": "refine", "hopeless": "drop"}
    )
    graph.add_edge("refine", "critique")
    graph.add_edge("drop", END)
    return graph.compile()


# -- the main graph --------------------------------------------------------------------------------


def direct(state: RunState, runtime: Context) -> dict[str, Any]:
    """Decide what to write and draw next, or that it is time to label."""
    deps = opened(runtime.context.run)
    waiting = deps.image_agent.waiting()
    idle = dict(state.get("idle", {}))
    if state.get("reason") == "need_prompts":  # and now none came: that is a round without progress, too
        for name in state["write"]:
            idle[name] = idle.get(name, 0) + (not waiting.get(name))
    counts = deps.ledger.tallies()
    tallies = {c: ClassTally.of(counts.get(c, {}), idle.get(c, 0)) for c in deps.config.classes}
    plan = plan_round(deps.config, tallies, waiting, state.get("round", 0), spent(deps.ledger))
    for name, short in plan.missing.items():
        have = tallies[name].accepted
        deps.ledger.log(
            "missing",
            **{"class": name, "have": have, "want": have + short, "reason": plan.reason, "cap": plan.cap},
        )
    return {
        "reason": plan.reason,
        "draw": list(plan.draw),
        "write": dict(plan.write),
        "missing": dict(plan.missing),
        "cap": plan.cap,
        "idle": idle,
    }


def route_plan(state: RunState) -> list[str | Send]:
    """After `direct`: its reason, and one `write_prompts` for each class that is short of prompts.

    While this round's prompts are drawn, the next round's are written.
    """
    writers: list[str | Send] = [
        Send(
            "write_prompts",
            PromptState(
                class_name=name,
                wanted=wanted,
                round=state.get("round", 0),
                returned=state.get("returned", {}).get(name, []),
            ),
        )
        for name, wanted in state["write"].items()
    ]
    return writers if state["reason"] == "need_prompts" else [state["reason"], *writers]


def draw(state: RunState, runtime: Context) -> dict[str, Any]:
    """Draw this round's prompts."""
    deps, tell = opened(runtime.context.run), get_stream_writer()
    limit = deps.config.budget.max_images
    left = None if limit is None else max(0, limit - len(deps.ledger.images()))
    prompts = [deps.ledger.prompt(p) for p in state["draw"]]
    started = time.monotonic()
    done = 0

    def on_batch(so_far: int, total: int) -> None:
        nonlocal done
        done = so_far
        tell({"kind": "draw", "done": so_far, "total": total})
        # A round can take hours and dollars: these caps hold within it. The batch is saved already.
        if cap_reached(deps.config.budget.model_copy(update={"max_images": None}), 0, -1, spent(deps.ledger)):
            raise _Enough

    counts = deps.ledger.tallies()
    lacking = {c: n - counts.get(c, {}).get("accepted", 0) for c, n in deps.config.wanted.items()}
    with suppress(_Enough):
        deps.image_agent.draw(prompts, state.get("round", 0), limit=left, lacking=lacking, on_batch=on_batch)
    deps.ledger.log("drawn", images=done, seconds=time.monotonic() - started)
    return {}


class _Enough(Exception):
    """A cap was reached between two batches."""


def judge(state: RunState, runtime: Context) -> dict[str, Any]:
    """Measure the new pictures, decide about all, and send failed prompts back."""
    deps, tell = opened(runtime.context.run), get_stream_writer()
    deps.judge_agent.judge()
    asked = {deps.ledger.prompt(p).class_name for p in state["draw"]}
    # By round, not by a count before and after: a node that runs twice must say the same.
    new = [i for i in deps.ledger.accepted() if i.round == state.get("round", 0)]
    gained = {deps.ledger.prompt(image.prompt_id).class_name for image in new}
    idle = dict(state.get("idle", {}))
    for name in asked:
        idle[name] = 0 if name in gained else idle.get(name, 0) + 1
    returned = deps.judge_agent.returned(state["draw"])
    tell({"kind": "judge", "tallies": deps.ledger.tallies()})
    return {"round": state.get("round", 0) + 1, "idle": idle, "returned": returned}


def label(state: RunState, runtime: Context) -> dict[str, Any]:
    """Relabel every accepted picture by a ViT that did not train on it."""
    deps, tell = opened(runtime.context.run), get_stream_writer()
    deps.release_images()
    tell({"kind": "stage", "name": "relabelling"})
    changed = deps.labeler_agent.relabel()
    deps.ledger.log("relabelled", changed=changed)
    return {}


def segment(state: RunState, runtime: Context) -> dict[str, Any]:
    """Masks from patch scores and SAM."""
    deps, tell = opened(runtime.context.run), get_stream_writer()
    tell({"kind": "stage", "name": "segmenting"})
    deps.labeler_agent.segment(
        on_batch=lambda done, total: tell({"kind": "segment", "done": done, "total": total})
    )
    return {}


# -- a person's look; without --step these pass straight through ------------------------------------


def review_prompts(state: RunState, runtime: Context) -> dict[str, Any]:
    """Pause at prompts nobody has looked at."""
    review.pause(opened(runtime.context.run), "prompt", runtime.context.step)
    return {}


def review_verdicts(state: RunState, runtime: Context) -> dict[str, Any]:
    """Pause at new or changed verdicts; where a person says otherwise, judge again around that."""
    review.pause(opened(runtime.context.run), "verdict", runtime.context.step)
    return {}


def review_labels(state: RunState, runtime: Context) -> dict[str, Any]:
    """Pause at labels."""
    review.pause(opened(runtime.context.run), "label", runtime.context.step)
    return {}


def review_masks(state: RunState, runtime: Context) -> dict[str, Any]:
    """Pause at masks."""
    review.pause(opened(runtime.context.run), "mask", runtime.context.step)
    return {}


def route_masks(state: RunState, runtime: Context) -> Literal["masks_stand", "labels_edited"]:
    """After `review_masks`: a mask whose labels a person changed is made, and shown, again."""
    lagging = runtime.context.step and review.lagging_masks(opened(runtime.context.run).ledger)
    return "labels_edited" if lagging else "masks_stand"


# -- from labels to a score ------------------------------------------------------------------------


def export(state: RunState, runtime: Context) -> dict[str, Any]:
    """Write the dataset in PASCAL VOC's layout, split by prompt family."""
    deps, tell = opened(runtime.context.run), get_stream_writer()
    tell({"kind": "stage", "name": "exporting"})
    export_dataset(deps)
    deps.ledger.set_meta("built_from", review.inputs(deps.ledger))
    return {}


def train(state: RunState, runtime: Context) -> dict[str, Any]:
    """Hand the dataset to the trainer's tool."""
    deps, tell = opened(runtime.context.run), get_stream_writer()
    tell({"kind": "stage", "name": "training"})
    train_segmenter(deps, on_epoch=lambda report: tell({"kind": "epoch", **report}))
    return {}


def evaluate(state: RunState, runtime: Context) -> dict[str, Any]:
    """Test the segmenter on the held-out split and, in the simulator, on the real-style world."""
    deps, tell = opened(runtime.context.run), get_stream_writer()
    tell({"kind": "stage", "name": "evaluating"})
    deps.ledger.set_meta("evaluation", evaluate_segmenter(deps))
    deps.ledger.set_meta("finished_at", time.time())
    return {}


def build_graph(checkpointer: Any = None) -> Any:
    """The compiled graph; with a checkpointer it can be resumed by thread id."""
    graph = StateGraph(RunState, context_schema=RunContext)
    # Deferred: with writers and drawers running side by side, the director waits for the slower.
    graph.add_node(direct, defer=True)
    graph.add_node("write_prompts", build_prompt_graph())
    for node in (draw, judge, label, segment, export, train, evaluate):
        graph.add_node(node)
    for node in (review_prompts, review_verdicts, review_labels, review_masks):
        graph.add_node(node)

    graph.add_edge(START, "direct")
    graph.add_conditional_edges(
        "direct",
        route_plan,
        {
            "need_prompts": "write_prompts",
            "draw": "draw",
            "quota_met": "label",
            "stalled": "label",
            "budget_spent": "label",
            "nothing_accepted": END,
        },
    )
    graph.add_edge("write_prompts", "review_prompts")
    graph.add_edge("review_prompts", "direct")
    graph.add_edge("draw", "judge")
    graph.add_edge("judge", "review_verdicts")
    graph.add_edge("review_verdicts", "direct")
    graph.add_edge("label", "review_labels")
    graph.add_edge("review_labels", "segment")
    graph.add_edge("segment", "review_masks")
    graph.add_conditional_edges(
        "review_masks", route_masks, {"masks_stand": "export", "labels_edited": "segment"}
    )
    graph.add_edge("export", "train")
    graph.add_edge("train", "evaluate")
    graph.add_edge("evaluate", END)
    return graph.compile(checkpointer=checkpointer)


def serve_graph() -> Any:
    """What `langgraph.json` names: LangGraph's own server brings a checkpointer, and a run folder as context."""
    return build_graph()
