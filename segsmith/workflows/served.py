"""The graph of LangGraph's server (``langgraph.json``): it builds as `segsmith.build` does, and asks its client.

``build`` calls `build`, so that checks, lock, checkpoints and report are those of the command line. Where that pauses
for a reviewer, the run folder is released and ``review`` interrupts; the client answers with decisions, and ``build``
resumes. The server's own checkpoints hold only the request and the result: a run that was started here can be resumed
with `segsmith build` or `segsmith step`, and the other way round.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from typing_extensions import TypedDict  # Python 3.11's cannot be described as JSON schema

from segsmith.errors import Cancelled, SegsmithError
from segsmith.events import Event, Status
from segsmith.graph.graph import build_graph
from segsmith.memory.ledger import DecisionKind
from segsmith.review.decisions import mark_seen, pending, record
from segsmith.review.decisions_file import check_decisions
from segsmith.review.facts import RunFacts
from segsmith.review.reviewed_run import ReviewedRun
from segsmith.workflows.build import Parts
from segsmith.workflows.build import build as run_build
from segsmith.workflows.reviewing import Pause
from segsmith.workflows.settings import REACHING_OUTSIDE, nested
from segsmith.workflows.step import opened

DEFAULT_OUT = "runs/run"
PAUSED = "paused"
PAGE = 50
"""Prompts or images that one interrupt asks about."""
ANSWERS = (
    'Answer "continue" to keep the decisions of the agents, "stop" to end here, or a list of decisions such as '
    '[{"subject": "i-1f9c0a2b7d3e", "action": "reject", "note": "half a bus"}].'
)
EXAMPLE = (
    'Send e.g. {"request": {"classes": ["cat", "dog"], "per_class": 4, "preset": "sim", "out": "runs/pets"}}.'
)

Made = TypeVar("Made")


class ServedError(SegsmithError, ValueError):
    """A `SegsmithError` whose message reaches the client: the server hides those of errors it does not know."""


class Request(BaseModel):
    """What to build. A run that exists in `out` resumes; it needs neither classes nor settings."""

    model_config = ConfigDict(extra="forbid")

    out: str = DEFAULT_OUT
    """Run folder, relative to the folder that the server was started in, and inside of it."""
    classes: list[str] = []
    """Class names in the order of the masks' indices from 1."""
    per_class: int | None = Field(None, ge=1)
    """Accepted images wanted of each class."""
    preset: str | None = None
    """``sim``, ``cpu``, ``gpu`` or ``hosted``; None picks the best one for this machine."""
    settings: dict[str, Any] = {}
    """Any other setting, e.g. ``{"judge.top_k": 3, "budget.max_usd": 5}``, but not those in `REACHING_OUTSIDE`."""
    step: bool = False
    """Pause at prompts, verdicts, labels and masks for a reviewer."""


class Result(TypedDict, total=False):
    """How the last session ended, and where its files are."""

    status: str
    """A `Status`, or `PAUSED`."""
    reason: str
    missing: dict[str, int]
    """Class -> accepted images short of what was wanted."""
    cap: str
    accepted: dict[str, int]
    """Class -> accepted images."""
    miou: dict[str, float]
    """Test -> mIoU in [0, 1], see `Run.evaluations`."""
    report: str
    dataset: str
    segmenter: str


class ServedInput(TypedDict):
    """The input of the graph."""

    request: Annotated[dict[str, Any], WithJsonSchema(Request.model_json_schema())]
    """A `Request`, which `build` checks: LangGraph itself would drop unknown keys without a word."""


class ServedState(ServedInput, total=False):
    """State of the graph; the run itself is in its folder."""

    waiting: DecisionKind | Literal[""]
    """What the build has paused at, "" for nothing."""
    result: Result


def read_request(given: Any) -> Request:
    """The checked request. Raises `SegsmithError` that names the key and what it must be.

    Whoever reaches the server's port can send one, and so can a web page in a browser on this machine. So a request
    cannot name a program, a server or a folder elsewhere.
    """
    try:
        request = Request.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"]) or "request"
        if problem["type"] == "extra_forbidden":
            known = ", ".join(Request.model_fields)
            raise SegsmithError(f"The request has an unknown key {key!r}.", f"Known are: {known}.") from None
        raise SegsmithError(f"{key!r} in the request: {problem['msg']}.", EXAMPLE) from None
    _folder(request.out)
    for key, meaning in REACHING_OUTSIDE.items():
        if _has(nested(request.settings), key):
            variable = "SEGSMITH_" + key.upper().replace(".", "__")
            raise SegsmithError(
                f"The request sets {key}, which is {meaning}.", f"Set {variable} where you start the server."
            )
    return request


def _folder(out: str) -> Path:
    """The run folder. Raises `SegsmithError` unless it is inside of the folder that the server was started in."""
    here = Path.cwd()
    if not out.strip() or here not in (here / out).resolve().parents:
        raise SegsmithError(
            f"The run folder {out!r} is not inside of {here}, where the server was started.",
            'Name a folder such as "runs/pets".',
        )
    return Path(out)


def _has(tree: Mapping[str, Any], key: str) -> bool:
    first, _, rest = key.partition(".")
    return first in tree and (not rest or not isinstance(tree[first], Mapping) or _has(tree[first], rest))


# -- nodes -----------------------------------------------------------------------------------------


def build_node(parts: Parts | None) -> Any:
    """The node `build`; `parts` replaces what its runs would open (see `RunContext`)."""

    async def build(state: ServedState) -> dict[str, Any]:
        """Build until the run is finished or pauses for the reviewer; events go out as custom stream events."""
        write, here = get_stream_writer(), contextvars.copy_context()

        def emit(event: Event) -> None:  # the writer reads this node's context variables
            here.run(write, event)

        return await _in_thread(lambda check: _build(state.get("request"), parts, emit, check))

    return build


def _build(
    given: Any, parts: Parts | None, emit: Callable[[Event], None], check: Callable[[], None]
) -> dict[str, Any]:
    request = read_request(given)
    paused: list[Pause] = []

    def leave(pause: Pause) -> bool:
        paused.append(pause)
        return False

    def on_event(event: Event) -> None:
        check()
        emit(event)

    run = run_build(
        request.classes,
        Path(request.out),
        per_class=request.per_class,
        preset=request.preset,
        settings=request.settings,
        reviewer=leave if request.step else None,
        on_event=on_event,
        parts=parts,
        command="langgraph dev",
    )
    ended = run.ended
    assert ended is not None
    result = Result(
        status=PAUSED if paused else ended.status.value,
        reason=ended.reason,
        missing=dict(ended.missing),
        cap=ended.cap,
        accepted={name: tally.accepted for name, tally in run.tallies.items()},
        miou={name: score.miou for name, score in run.evaluations.items()},
    )
    for key in ("report", "dataset", "segmenter"):
        path: Path = getattr(run, key)
        if path.exists():
            result[key] = str(path)
    return {"waiting": paused[0].kind if paused else "", "result": result}


async def review(state: ServedState) -> dict[str, Any]:
    """Ask about what waits, at most `PAGE` items at a time, until the answer can be used; then record it.

    An item that the answer does not name keeps the agents' decision. Nothing holds the run folder meanwhile.
    """
    kind = state["waiting"]
    assert kind
    out = str(state["request"].get("out", DEFAULT_OUT))
    page = await _in_thread(lambda check: _page(out, kind))
    if not page:
        return {"waiting": ""}
    problem = ""
    while True:
        asked = {"kind": kind, "subjects": page, "how_to_answer": ANSWERS}
        answer = interrupt(asked | ({"problem": problem} if problem else {}))
        if answer == "stop":
            return {"waiting": "", "result": {**state["result"], "status": Status.STOPPED.value}}
        try:
            return {"waiting": await _in_thread(partial(_take, out, kind, page, answer))}
        except SegsmithError as error:
            # Asked again with the reason, so that a mistake in a decision does not end the run.
            problem = str(error)


def _page(out: str, kind: DecisionKind) -> list[dict[str, str]]:
    with opened(_folder(out)) as run:
        facts = RunFacts(run.ledger, run.config.classes, run.config.wanted, run.config.images.size)
        return [_shown(run, facts, kind, subject) for subject in pending(run.ledger, kind)[:PAGE]]


def _shown(run: ReviewedRun, facts: RunFacts, kind: DecisionKind, subject: str) -> dict[str, str]:
    """What a reviewer needs to decide about one prompt or image."""
    item = {"subject": subject, "class": facts.target(subject)}
    if kind == "prompt":
        return item | {"prompt": facts.prompts[subject].text}
    item |= {
        "prompt": facts.prompts[facts.images[subject].prompt_id].text,
        "image": str(run.run.image(subject)),
        "verdict": facts.verdict_line(subject),
    }
    if kind in ("label", "mask"):
        item["labels"] = "; ".join(f"{who}: {what}" for who, what in facts.label_sources(subject).items())
    if kind == "mask":
        item |= {"mask": str(run.run.mask(subject)), "pixels": "; ".join(facts.mask_lines(subject))}
    return item


def _take(
    out: str, kind: DecisionKind, page: list[dict[str, str]], answer: Any, check: Callable[[], None]
) -> DecisionKind | Literal[""]:
    """Record the answer about a page; returns `kind` while more of it waits. `SegsmithError` changes nothing."""
    check()
    decisions = answer.get("decisions") if isinstance(answer, Mapping) else answer
    if decisions == "continue":
        decisions = []
    if not isinstance(decisions, list):
        raise SegsmithError(f"The answer {str(answer)[:80]!r} is not one that can be used.", ANSWERS)
    with opened(_folder(out)) as run:
        given = [{"kind": kind, **item} if isinstance(item, Mapping) else item for item in decisions]
        for row in check_decisions(run, given, "server"):
            record(run, row)
        mark_seen(run.ledger, kind, pending(run.ledger, kind, [item["subject"] for item in page]))
        return kind if pending(run.ledger, kind) else ""


async def _in_thread(work: Callable[[Callable[[], None]], Made]) -> Made:
    """Call `work` in another thread with a function that raises `Cancelled` once the client has cancelled the run.

    `run_in_executor` starts it without the context variables of this node: with them, the graph of the build would
    take itself for a sub-graph and write to the server's checkpoints.
    """
    cancelled = threading.Event()

    def check() -> None:
        if cancelled.is_set():
            raise Cancelled

    try:
        return await asyncio.get_running_loop().run_in_executor(None, work, check)
    except asyncio.CancelledError:
        cancelled.set()
        raise
    except SegsmithError as error:
        raise ServedError(error.message, error.remedy) from error


def route_build(state: ServedState) -> Literal["paused", "ended"]:
    """After `build`: whether the reviewer must be asked."""
    return "paused" if state["waiting"] else "ended"


def route_review(state: ServedState) -> Literal["more", "decided", "stopped"]:
    """After `review`: whether more waits, or the reviewer has left."""
    if state["waiting"]:
        return "more"
    return "stopped" if state["result"]["status"] == Status.STOPPED.value else "decided"


def served_graph(parts: Parts | None = None) -> Any:
    """The compiled graph; `parts` replaces what its runs would open, with fakes in tests."""
    graph = StateGraph(ServedState, input_schema=ServedInput)
    graph.add_node("build", build_node(parts))
    graph.add_node("review", review)
    graph.add_edge(START, "build")
    graph.add_conditional_edges("build", route_build, {"paused": "review", "ended": END})
    graph.add_conditional_edges(
        "review", route_review, {"more": "review", "decided": "build", "stopped": END}
    )
    compiled = graph.compile(name="segsmith")
    compiled.nodes["build"].subgraphs = [build_graph()]  # for Studio's drawing: what the node runs
    return compiled


def serve_graph() -> Any:
    """The graph that ``langgraph.json`` names; the server brings its own checkpointer."""
    return served_graph()
