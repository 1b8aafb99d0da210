"""The whole graph: every node, edge and route, readable from top to bottom.

Nodes read state, make one or two calls and return what changed. Routes return reasons; one map per fork turns reasons
into nodes, and the reasons are the labels of the diagram. A node that crashes between its work and its checkpoint
runs again, which is harmless because ids follow from content and every write to the ledger is an upsert.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any, Literal

from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Send

from segsmith.agents.director import ClassProgress, cap_reached, plan_round, spent
from segsmith.agents.judge.agent import doubt, doubtful, update_verdicts
from segsmith.agents.judge.ahead import MeasuringAhead
from segsmith.agents.prompt.draft import Draft
from segsmith.events import Event, ImagesDrawn, MasksMade, RoundJudged, Stage, StageStarted
from segsmith.graph.context import RunContext
from segsmith.graph.retries import RETRY
from segsmith.graph.review_nodes import pause
from segsmith.graph.state import PromptResult, PromptState, RunState
from segsmith.review import decisions as review
from segsmith.tools.gpu_plan import GpuStage
from segsmith.types import ClassTally

Context = Runtime[RunContext]

WRITTEN_TOGETHER = 64
"""Prompts of a class that are written, checked and stored together; the state holds their drafts."""
ATTEMPTS = 2
"""Prompts proposed for each one that is wanted, at most: drafts that are dropped are replaced."""


# -- the prompt agent's sub-graph: one class, fanned out with Send ---------------------------------


def propose(state: PromptState, runtime: Context) -> dict[str, Any]:
    """Rewrite the prompts the judge sent back, then ask for new ones; at most `WRITTEN_TOGETHER` at a time."""
    runtime.context.enter(GpuStage.WRITE, asks=True)
    agent = runtime.context.prompt_agent
    first, admitted = state.get("proposed", 0), state.get("admitted", 0)
    wanted = min(WRITTEN_TOGETHER, state["wanted"] - admitted)
    returned = [] if first else state.get("returned", [])[:wanted]
    rewritten = agent.refine(agent.returned(returned))
    fresh = agent.propose(
        state["class_name"], wanted - len(rewritten), state["round"], first, judged=state["judged"]
    )
    return {
        "drafts": _stored([*rewritten, *fresh]),
        "refines": 0,
        "admitted": admitted,
        "admitted_before": admitted,
        "proposed": first + wanted,
    }


def critique(state: PromptState, runtime: Context) -> dict[str, Any]:
    """Find what is wrong with each draft, with the cheapest test first."""
    return {"drafts": _stored(runtime.context.prompt_agent.critique(_drafts(state)))}


def admit(state: PromptState, runtime: Context) -> dict[str, Any]:
    """Store the drafts without a problem in the prompt memory and the ledger."""
    drafts = _drafts(state)
    ids = runtime.context.prompt_agent.admit([draft for draft in drafts if draft.problem is None])
    rest = [draft for draft in drafts if draft.problem is not None or draft.id not in ids]
    return {"drafts": _stored(rest), "admitted": state["admitted"] + len(ids)}


def refine(state: PromptState, runtime: Context) -> dict[str, Any]:
    """Rewrite the rejected drafts, with the reason for the rejection and the prompts to stay away from."""
    agent = runtime.context.prompt_agent
    return {"drafts": _stored(agent.refine(_drafts(state))), "refines": state["refines"] + 1}


def drop(state: PromptState, runtime: Context) -> dict[str, Any]:
    """Drop the drafts that are still rejected; each is counted under its reason."""
    runtime.context.prompt_agent.drop(_drafts(state))
    return {"drafts": []}


def _drafts(state: PromptState) -> list[Draft]:
    return [Draft.from_state(item) for item in state["drafts"]]


def _stored(drafts: Sequence[Draft]) -> list[dict[str, Any]]:
    return [draft.to_state() for draft in drafts]


def route_drafts(
    state: PromptState, runtime: Context
) -> Literal["rejected", "hopeless", "more_wanted", "all_written"]:
    """After `admit`: whether drafts are left and may be refined once more; if not, whether to write further ones."""
    if not state["drafts"]:
        return route_written(state)
    rounds = runtime.context.config.prompts.max_refines
    return "rejected" if state["refines"] < rounds else "hopeless"


def route_written(state: PromptState) -> Literal["more_wanted", "all_written"]:
    """Whether prompts are missing, and the last attempts give hope for more."""
    admitted, tried = state["admitted"], state.get("proposed", state["wanted"])
    hope = admitted > state.get("admitted_before", 0) and tried < ATTEMPTS * state["wanted"]
    return "more_wanted" if hope and admitted < state["wanted"] else "all_written"


def build_prompt_graph() -> Any:
    """propose -> critique -> admit -> (refine -> critique ... | drop), again until all that is wanted is written."""
    graph = StateGraph(PromptState, context_schema=RunContext, output_schema=PromptResult)
    for node in (propose, critique, admit, refine, drop):
        graph.add_node(node, retry_policy=RETRY)
    graph.add_edge(START, "propose")
    graph.add_edge("propose", "critique")
    graph.add_edge("critique", "admit")
    graph.add_conditional_edges(
        "admit",
        route_drafts,
        {"all_written": END, "more_wanted": "propose", "rejected": "refine", "hopeless": "drop"},
    )
    graph.add_edge("refine", "critique")
    graph.add_conditional_edges("drop", route_written, {"all_written": END, "more_wanted": "propose"})
    return graph.compile()


# -- the main graph --------------------------------------------------------------------------------


def direct(state: RunState, runtime: Context) -> dict[str, Any]:
    """Decide what to write and draw next, or that it is time to label."""
    context = runtime.context
    waiting = context.image_agent.waiting()
    idle = dict(state.get("idle", {}))
    if state.get("reason") == "need_prompts":  # a round that wrote no prompt made no progress either
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
    if plan.draw:
        context.ledger.plan_round(state.get("round", 0), plan.draw)
    # Where a state of an earlier version has no number, its prompts were written in rounds up to `round`.
    before = state.get("round", 0) if "reason" in state else -1
    return {
        "writing": state.get("writing", before) + 1,
        "reason": plan.reason,
        "draw": [],
        "write": dict(plan.write),
        "missing": dict(plan.missing),
        "cap": plan.cap,
        "idle": idle,
    }


def route_plan(state: RunState, runtime: Context) -> list[str | Send]:
    """After `direct`: its reason, and one `write_prompts` for each class that is short of prompts.

    The next round's prompts are written while this round's are drawn, unless the GPU has no room for both models.
    `draw` is sent like the writers and before them: LangGraph starts what is sent in order, before what an edge
    leads to, and with more classes than threads drawing would start when most prompts are written.
    """
    writers: list[str | Send] = [
        Send(
            "write_prompts",
            PromptState(
                class_name=name,
                wanted=wanted,
                round=state["writing"],
                judged=state.get("round", 0),
                returned=state.get("returned", {}).get(name, []),
            ),
        )
        for name, wanted in state["write"].items()
    ]
    if state["reason"] == "need_prompts":
        return writers
    if state["reason"] != "draw":
        return [state["reason"]]
    round_ = RunState(write=state["write"], round=state.get("round", 0))
    return [Send("draw", round_), *([] if runtime.context.gpu_plan.alternates else writers)]


def _entered(runtime: Context) -> tuple[RunContext, Callable[[Event], None]]:
    """The context, in which workers from now on report to this node's stream, and the stream."""
    emit = get_stream_writer()
    runtime.context.show = emit
    return runtime.context, emit


def draw(state: RunState, runtime: Context) -> dict[str, Any]:
    """Draw this round's prompts; images are written and measured while the next ones are drawn."""
    context, emit = _entered(runtime)
    context.enter(GpuStage.DRAW, asks=bool(state["write"]))
    limit = context.config.budget.max_images
    left = None if limit is None else max(0, limit - context.ledger.drawn)
    prompts = [context.ledger.prompt(p) for p in _planned(state, context)]
    started = time.monotonic()
    done = 0

    def on_batch(so_far: int, total: int) -> None:
        nonlocal done
        done = so_far
        emit(ImagesDrawn(so_far, total))
        # A round can take hours and dollars, so these caps hold within it. This batch is saved already.
        if cap_reached(
            context.config.budget.model_copy(update={"max_images": None}), 0, -1, spent(context.ledger)
        ):
            raise _CapReached

    counts = context.ledger.tallies()
    lacking = {c: n - counts.get(c, ClassTally()).accepted for c, n in context.config.wanted.items()}
    if plane := context.data_plane:
        with suppress(_CapReached):
            plane.draw_round(
                context.image_agent,
                context.judge_agent,
                prompts,
                state.get("round", 0),
                limit=left,
                on_batch=on_batch,
            )
    else:
        ahead = None
        if context.gpu_plan.judges_while_drawing:
            ahead = MeasuringAhead(
                context.judge_agent, context.ledger, context.run, context.device_use.shared
            )
        with ahead or nullcontext(), suppress(_CapReached):
            context.image_agent.draw(
                prompts,
                state.get("round", 0),
                limit=left,
                lacking=lacking,
                on_batch=on_batch,
                **({"on_images": ahead.add} if ahead else {}),
            )
    context.ledger.log("drawn", images=done, seconds=time.monotonic() - started)
    return {}


def _planned(state: RunState, context: RunContext) -> list[str]:
    """Ids of the prompts of this round."""
    return state.get("draw") or context.ledger.planned(state.get("round", 0))


class _CapReached(Exception):
    """A cap was reached between two batches."""


def judge(state: RunState, runtime: Context) -> dict[str, Any]:
    """Measure the new images, decide about them, and return failed prompts to the prompt agent."""
    context, emit = runtime.context, get_stream_writer()
    context.enter(GpuStage.JUDGE)
    known = doubtful(context.ledger.judgement)
    context.judge_agent.judge()
    for name, auc in doubtful(context.ledger.judgement).items():
        if name not in known:
            context.told.put(doubt(name, auc))
    planned = _planned(state, context)
    asked = {context.ledger.prompt(p).class_name for p in planned}
    # By round, not by a count before and after, because a node that runs twice must return the same.
    gained = context.ledger.gained(state.get("round", 0))
    idle = dict(state.get("idle", {}))
    for name in asked:
        idle[name] = 0 if name in gained else idle.get(name, 0) + 1
    returned = context.judge_agent.returned(planned)
    returned = {name: ids[:WRITTEN_TOGETHER] for name, ids in returned.items()}
    emit(RoundJudged(context.ledger.tallies()))
    return {"round": state.get("round", 0) + 1, "idle": idle, "returned": returned}


def hear(state: RunState, runtime: Context) -> dict[str, Any]:
    """Ask the witnesses about accepted images that they have not spoken about, and decide about the images again."""
    context, emit = _entered(runtime)
    config = context.config
    if not context.witness_agent.enabled:
        return {"denied": 0}
    context.enter(GpuStage.HEAR)
    emit(StageStarted(Stage.HEARING))
    # All accepted images, as each of them may be asked about here; this happens once or twice a run.
    before = set(context.ledger.accepted_ids())
    context.witness_agent.hear(stopped=context.stopping.is_set)
    update_verdicts(context.ledger, config.classes, config.judge, config.wanted)
    return {"denied": len(before.difference(context.ledger.accepted_ids()))}


def route_heard(state: RunState, runtime: Context) -> Literal["all_stand", "images_denied"]:
    """After `hear`: whether the witnesses deny images, which others must replace."""
    return "images_denied" if state["denied"] else "all_stand"


def label(state: RunState, runtime: Context) -> dict[str, Any]:
    """Relabel every accepted image by a ViT that was not trained on it."""
    context, emit = _entered(runtime)
    context.enter(GpuStage.LABEL)
    emit(StageStarted(Stage.RELABELLING))
    changed = context.labeler_agent.relabel()
    context.ledger.log("relabelled", changed=changed)
    return {}


def segment(state: RunState, runtime: Context) -> dict[str, Any]:
    """Make masks from patch scores and SAM."""
    context, emit = _entered(runtime)
    context.enter(GpuStage.SEGMENT)
    emit(StageStarted(Stage.SEGMENTING))

    def on_batch(done: int, total: int) -> None:
        emit(MasksMade(done, total))

    if plane := context.data_plane:
        plane.make_masks(context.labeler_agent, on_batch=on_batch)
    else:
        context.labeler_agent.segment(on_batch=on_batch)
    return {}


# -- review; without ``step`` these nodes return at once ---------------------------------------------


def review_prompts(state: RunState, runtime: Context) -> dict[str, Any]:
    """Pause at prompts that nobody has looked at."""
    pause(runtime.context, "prompt")
    return {}


def review_verdicts(state: RunState, runtime: Context) -> dict[str, Any]:
    """Pause at new or changed verdicts; where the reviewer overrules one, judge the others again."""
    pause(runtime.context, "verdict")
    return {}


def review_labels(state: RunState, runtime: Context) -> dict[str, Any]:
    """Pause at new or changed labels."""
    pause(runtime.context, "label")
    return {}


def review_masks(state: RunState, runtime: Context) -> dict[str, Any]:
    """Pause at new or changed masks."""
    pause(runtime.context, "mask")
    return {}


def route_masks(state: RunState, runtime: Context) -> Literal["masks_stand", "labels_edited"]:
    """After `review_masks`: a mask whose labels the reviewer changed is made and shown again."""
    lagging = runtime.context.step and review.lagging_masks(runtime.context.ledger)
    return "labels_edited" if lagging else "masks_stand"


# -- from labels to a score ------------------------------------------------------------------------


def export(state: RunState, runtime: Context) -> dict[str, Any]:
    """Write the dataset in PASCAL VOC's layout, split by prompt family."""
    context, emit = _entered(runtime)
    emit(StageStarted(Stage.EXPORTING))
    run = context.run
    masks = run.check_now()  # `segment` or the export reads them
    context.finalizer.export()
    dataset = run.check_now()
    context.ledger.checked = {
        "masks": run.counted(run.masks, masks),
        "dataset": run.counted(run.voc, dataset),
    }
    context.ledger.built_from = context.ledger.dataset_inputs()
    return {}


def train(state: RunState, runtime: Context) -> dict[str, Any]:
    """Train the segmenter on the exported dataset."""
    context, emit = runtime.context, get_stream_writer()
    context.enter(GpuStage.TRAIN)
    emit(StageStarted(Stage.TRAINING))
    context.finalizer.train(emit)
    return {}


def evaluate(state: RunState, runtime: Context) -> dict[str, Any]:
    """Score the segmenter on held-out images and, with the simulator, on its test set."""
    context, emit = runtime.context, get_stream_writer()
    emit(StageStarted(Stage.EVALUATING))
    context.ledger.evaluation = context.finalizer.evaluate()
    context.ledger.finished_at = time.time()
    return {}


def build_graph(checkpointer: Any = None, context_schema: type[RunContext] = RunContext) -> Any:
    """The compiled graph; with a checkpointer it can be resumed by thread id."""
    graph = StateGraph(RunState, context_schema=context_schema)
    # Deferred, so that the director waits for the slower of writing and drawing, which run side by side.
    graph.add_node(direct, defer=True, retry_policy=RETRY)
    graph.add_node("write_prompts", build_prompt_graph())
    for node in (draw, judge, hear, label, segment, export, train, evaluate):
        graph.add_node(node, retry_policy=RETRY)
    for node in (review_prompts, review_verdicts, review_labels, review_masks):
        graph.add_node(node)

    graph.add_edge(START, "direct")
    graph.add_conditional_edges(
        "direct",
        route_plan,
        {
            "need_prompts": "write_prompts",
            "draw": "draw",
            "quota_met": "hear",
            "stalled": "hear",
            "budget_spent": "hear",
            "nothing_accepted": END,
        },
    )
    graph.add_edge("write_prompts", "review_prompts")
    graph.add_edge("review_prompts", "direct")
    graph.add_edge("draw", "judge")
    graph.add_edge("judge", "review_verdicts")
    graph.add_edge("review_verdicts", "direct")
    graph.add_conditional_edges(
        "hear", route_heard, {"all_stand": "label", "images_denied": "review_verdicts"}
    )
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
