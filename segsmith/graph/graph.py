"""The whole graph: every node, edge and route, readable from top to bottom.

Nodes read state, make one or two calls and return what changed. Routes return reasons; one map per fork
turns reasons into nodes, and the reasons are the labels of the diagram. Every node may run twice (a crash
between its work and its checkpoint): ids and the ledger make that harmless.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Send

from segsmith.agents.director import ClassProgress, cap_reached, plan_round, spent
from segsmith.agents.prompt.draft import Draft
from segsmith.graph.context import RunContext
from segsmith.graph.review_nodes import pause
from segsmith.graph.state import PromptResult, PromptState, RunState
from segsmith.review import decisions as review
from segsmith.types import ClassTally

Context = Runtime[RunContext]


# -- the prompt agent's sub-graph: one class, fanned out with Send ---------------------------------


def propose(state: PromptState, runtime: Context) -> dict[str, Any]:
    """Rewrite the prompts the judge sent back, then ask for new ones."""
    agent = runtime.context.prompt_agent
    rewritten = agent.refine(agent.returned(state.get("returned", [])))[: state["wanted"]]
    fresh = agent.propose(state["class_name"], state["wanted"] - len(rewritten), state["round"])
    return {"drafts": _stored([*rewritten, *fresh]), "refines": 0, "admitted": 0}


def critique(state: PromptState, runtime: Context) -> dict[str, Any]:
    """Find what is wrong with each draft; cheapest test first."""
    return {"drafts": _stored(runtime.context.prompt_agent.critique(_drafts(state)))}


def admit(state: PromptState, runtime: Context) -> dict[str, Any]:
    """Remember the drafts without a problem."""
    drafts = _drafts(state)
    ids = runtime.context.prompt_agent.admit([draft for draft in drafts if draft.problem is None])
    rest = [draft for draft in drafts if draft.problem is not None or draft.id not in ids]
    return {"drafts": _stored(rest), "admitted": state["admitted"] + len(ids)}


def refine(state: PromptState, runtime: Context) -> dict[str, Any]:
    """Rewrite the rejected drafts, told why they were rejected and what to keep away from."""
    agent = runtime.context.prompt_agent
    return {"drafts": _stored(agent.refine(_drafts(state))), "refines": state["refines"] + 1}


def drop(state: PromptState, runtime: Context) -> dict[str, Any]:
    """Give up on what is still rejected; counted under its reason."""
    runtime.context.prompt_agent.drop(_drafts(state))
    return {"drafts": []}


def _drafts(state: PromptState) -> list[Draft]:
    return [Draft.from_state(item) for item in state["drafts"]]


def _stored(drafts: Sequence[Draft]) -> list[dict[str, Any]]:
    return [draft.to_state() for draft in drafts]


def route_drafts(state: PromptState, runtime: Context) -> Literal["all_admitted", "rejected", "hopeless"]:
    """After `admit`: is something left, and may it be refined once more?"""
    if not state["drafts"]:
        return "all_admitted"
    rounds = runtime.context.config.prompts.max_refines
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
    context = runtime.context
    waiting = context.image_agent.waiting()
    idle = dict(state.get("idle", {}))
    if state.get("reason") == "need_prompts":  # and now none came: that is a round without progress, too
        for name in state["write"]:
            idle[name] = idle.get(name, 0) + (not waiting.get(name))
    counts = context.ledger.tallies()
    progress = {c: ClassProgress(counts.get(c, ClassTally()), idle.get(c, 0)) for c in context.config.classes}
    plan = plan_round(context.config, progress, waiting, state.get("round", 0), spent(context.ledger))
    for name, short in plan.missing.items():
        have = progress[name].tally.accepted
        context.ledger.log(
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
    context, tell = runtime.context, get_stream_writer()
    limit = context.config.budget.max_images
    left = None if limit is None else max(0, limit - len(context.ledger.images()))
    prompts = [context.ledger.prompt(p) for p in state["draw"]]
    started = time.monotonic()
    done = 0

    def on_batch(so_far: int, total: int) -> None:
        nonlocal done
        done = so_far
        tell({"kind": "draw", "done": so_far, "total": total})
        # A round can take hours and dollars: these caps hold within it. The batch is saved already.
        if cap_reached(
            context.config.budget.model_copy(update={"max_images": None}), 0, -1, spent(context.ledger)
        ):
            raise _Enough

    counts = context.ledger.tallies()
    lacking = {c: n - counts.get(c, ClassTally()).accepted for c, n in context.config.wanted.items()}
    with suppress(_Enough):
        context.image_agent.draw(
            prompts, state.get("round", 0), limit=left, lacking=lacking, on_batch=on_batch
        )
    context.ledger.log("drawn", images=done, seconds=time.monotonic() - started)
    return {}


class _Enough(Exception):
    """A cap was reached between two batches."""


def judge(state: RunState, runtime: Context) -> dict[str, Any]:
    """Measure the new pictures, decide about all, and send failed prompts back."""
    context, tell = runtime.context, get_stream_writer()
    context.judge_agent.judge()
    asked = {context.ledger.prompt(p).class_name for p in state["draw"]}
    # By round, not by a count before and after: a node that runs twice must say the same.
    new = [i for i in context.ledger.accepted() if i.round == state.get("round", 0)]
    gained = {context.ledger.prompt(image.prompt_id).class_name for image in new}
    idle = dict(state.get("idle", {}))
    for name in asked:
        idle[name] = 0 if name in gained else idle.get(name, 0) + 1
    returned = context.judge_agent.returned(state["draw"])
    tell({"kind": "judge", "tallies": context.ledger.tallies()})
    return {"round": state.get("round", 0) + 1, "idle": idle, "returned": returned}


def label(state: RunState, runtime: Context) -> dict[str, Any]:
    """Relabel every accepted picture by a ViT that did not train on it."""
    context, tell = runtime.context, get_stream_writer()
    context.release_images()
    tell({"kind": "stage", "name": "relabelling"})
    changed = context.labeler_agent.relabel()
    context.ledger.log("relabelled", changed=changed)
    return {}


def segment(state: RunState, runtime: Context) -> dict[str, Any]:
    """Masks from patch scores and SAM."""
    context, tell = runtime.context, get_stream_writer()
    tell({"kind": "stage", "name": "segmenting"})
    context.labeler_agent.segment(
        on_batch=lambda done, total: tell({"kind": "segment", "done": done, "total": total})
    )
    return {}


# -- a person's look; without --step these pass straight through ------------------------------------


def review_prompts(state: RunState, runtime: Context) -> dict[str, Any]:
    """Pause at prompts nobody has looked at."""
    pause(runtime.context, "prompt")
    return {}


def review_verdicts(state: RunState, runtime: Context) -> dict[str, Any]:
    """Pause at new or changed verdicts; where a person says otherwise, judge again around that."""
    pause(runtime.context, "verdict")
    return {}


def review_labels(state: RunState, runtime: Context) -> dict[str, Any]:
    """Pause at labels."""
    pause(runtime.context, "label")
    return {}


def review_masks(state: RunState, runtime: Context) -> dict[str, Any]:
    """Pause at masks."""
    pause(runtime.context, "mask")
    return {}


def route_masks(state: RunState, runtime: Context) -> Literal["masks_stand", "labels_edited"]:
    """After `review_masks`: a mask whose labels a person changed is made, and shown, again."""
    lagging = runtime.context.step and review.lagging_masks(runtime.context.ledger)
    return "labels_edited" if lagging else "masks_stand"


# -- from labels to a score ------------------------------------------------------------------------


def export(state: RunState, runtime: Context) -> dict[str, Any]:
    """Write the dataset in PASCAL VOC's layout, split by prompt family."""
    context, tell = runtime.context, get_stream_writer()
    tell({"kind": "stage", "name": "exporting"})
    context.finalizer.export()
    context.ledger.built_from = review.inputs(context.ledger)
    return {}


def train(state: RunState, runtime: Context) -> dict[str, Any]:
    """Hand the dataset to the trainer's tool."""
    context, tell = runtime.context, get_stream_writer()
    tell({"kind": "stage", "name": "training"})
    context.finalizer.train(on_epoch=lambda report: tell({"kind": "epoch", **report}))
    return {}


def evaluate(state: RunState, runtime: Context) -> dict[str, Any]:
    """Test the segmenter on the held-out split and, in the simulator, on the real-style world."""
    context, tell = runtime.context, get_stream_writer()
    tell({"kind": "stage", "name": "evaluating"})
    context.ledger.evaluation = context.finalizer.evaluate()
    context.ledger.finished_at = time.time()
    return {}


def build_graph(checkpointer: Any = None, context_schema: type[RunContext] = RunContext) -> Any:
    """The compiled graph; with a checkpointer it can be resumed by thread id."""
    graph = StateGraph(RunState, context_schema=context_schema)
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
