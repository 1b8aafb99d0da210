"""Questions about a run, answered by a language model that looks facts up with tools.

The tools read the ledger and nothing else. An answer that contains a number or an id that no tool returned is
dropped, and the reviewer sees the facts alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel, ConfigDict, Field, create_model

from segsmith.errors import BadReply
from segsmith.ids import seed_of
from segsmith.prompts import fill
from segsmith.protocols import ChatModel
from segsmith.review.facts import RunFacts, Standing
from segsmith.review.ledger_qa import answer
from segsmith.terminal_text import quoted

MAX_LOOKUPS = 4
"""Tool calls per question."""


@dataclass(frozen=True)
class Told:
    """`answer` is the model's, "" if it gave none that the facts support; `facts` are lines from the ledger."""

    answer: str
    facts: tuple[str, ...]


def ledger_tools(facts: RunFacts) -> list[BaseTool]:
    """LangChain tools with typed arguments over one reading of the ledger; each returns lines of text."""
    class_name: Any = Literal[("all", *facts.classes)]
    of_class = create_model("OfClass", class_name=(class_name, "all"))
    of_nth = create_model(
        "OfNth",
        class_name=(class_name, ...),
        nth=(int, Field(ge=1, le=1_000_000)),
        standing=(Standing, "any"),
    )
    of_id = create_model("OfId", id=(str, Field(max_length=40)))

    def counts(class_name: str = "all") -> str:
        return "\n".join(facts.status("" if class_name == "all" else class_name))

    def behind() -> str:
        return "\n".join(facts.behind())

    def image(class_name: str, nth: int, standing: Standing = "any") -> str:
        if class_name == "all":
            return "name one class"
        found = facts.nth_image(class_name, nth, standing)
        return "\n".join(answer(facts, found, {})) if found else f"there is no such {class_name} image"

    def lookup(id: str) -> str:
        return "\n".join(answer(facts, id.strip(), {})) or "no such id"

    return [
        StructuredTool.from_function(
            counts, name="counts", args_schema=of_class,
            description="prompts written and admitted; images drawn, accepted, and rejected by reason",
        ),
        StructuredTool.from_function(behind, name="behind", description="which classes need more accepted images"),
        StructuredTool.from_function(
            image, name="image", args_schema=of_nth,
            description="verdict, scores and prompt of a class's n-th image in drawing order; with standing, only "
            "accepted or only rejected images are counted",
        ),
        StructuredTool.from_function(
            lookup, name="lookup", args_schema=of_id,
            description="what is known of an image id (i-...) or prompt id (p-...)",
        ),
    ]  # fmt: skip


def inquire(question: str, chat: ChatModel, facts: RunFacts, present: str, seed: int) -> Told:
    """Let the model answer after up to `MAX_LOOKUPS` lookups; `present` is the id on the screen, or ""."""
    tools = {tool.name: tool for tool in ledger_tools(facts)}
    system = fill("inquire_system", tools="\n".join(f"- {t.name}: {t.description}" for t in tools.values()))
    known: list[str] = []
    for turn in range(MAX_LOOKUPS + 1):
        move_schema = _move([*tools] if turn < MAX_LOOKUPS else [], facts.classes, may_answer=bool(known))
        user = fill(
            "inquire_user",
            classes=", ".join(facts.classes),
            present=present or "nothing",
            question=quoted(question),
            facts="\n".join(known) or "none",
        )
        try:
            move: Any = chat.ask(system, user, move_schema, seed=seed_of(seed, question, turn))
        except BadReply:
            break
        if move.tool == "answer":
            return Told(move.answer if _is_supported(move.answer, question, known) else "", tuple(known))
        tool = tools[move.tool]
        wanted = {name: getattr(move, name) for name in tool.args}
        known += [line for line in str(tool.invoke(wanted)).splitlines() if line not in known]
    return Told("", tuple(known))


def _move(tools: Sequence[str], classes: Sequence[str], *, may_answer: bool) -> type[BaseModel]:
    """The schema of one turn; the model may answer only after a lookup."""
    names: Any = Literal[(*tools, *(("answer",) if may_answer else ()))]
    class_name: Any = Literal[("all", *classes)]
    return create_model(
        "Move",
        __config__=ConfigDict(extra="forbid"),
        tool=(names, ...),
        class_name=(class_name, "all"),
        nth=(int, Field(1, ge=1, le=1_000_000)),
        standing=(Standing, "any"),
        id=(str, Field("", max_length=40)),
        answer=(str, Field("", max_length=400)),
    )


def _is_supported(answer: str, question: str, facts: Sequence[str]) -> bool:
    """Whether there is an answer, and each number and id in it occurs in the facts or in the question."""
    said = set(re.findall(r"[ip]-[0-9a-f]+|\d+(?:\.\d+)?", answer.lower()))
    known = set(re.findall(r"[ip]-[0-9a-f]+|\d+(?:\.\d+)?", "\n".join([*facts, question]).lower()))
    return bool(answer.strip()) and said <= known
