"""The state of the graph: ids, numbers and short text. The data itself is in the ledger.

The whole state is stored at every step, so it must stay small whatever the size of the run.
"""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict


class RunState(TypedDict, total=False):
    """State of the main graph."""

    round: int
    """Number of finished rounds of drawing. Written by `judge`."""
    writing: int
    """Number of times that the director has planned, without the first: the round of the prompts that are written.

    Different from `round`, since prompts are written twice before the first images are judged. Written by `direct`.
    """
    idle: dict[str, int]
    """Class -> rounds in a row without a newly accepted image. Written by `judge`, read by `direct`."""
    reason: str
    """Why the director chose the next node. Written by `direct`, read by the route after it."""
    draw: list[str]
    """Prompt ids of this round where the ledger has no plan for it: in checkpoints of earlier versions, and in a
    state that was made from the ledger. Emptied by `direct`, which writes its plan to the ledger, since a large round
    draws thousands of prompts. Read by `draw` and `judge`."""
    write: dict[str, int]
    """Class -> prompts to write. Written by `direct`, read by the fan-out to `write_prompts`."""
    returned: dict[str, list[str]]
    """Class -> ids of prompts whose images were all rejected, for the prompt agent to refine: as many as it writes
    together, and it does not look at more. Written by `judge`."""
    admitted: Annotated[int, operator.add]
    """Number of prompts admitted so far. A reducer, because several `write_prompts` add to it at once."""
    missing: dict[str, int]
    """Class -> accepted images short of the quota when drawing ended early. Written by `direct`."""
    denied: int
    """Number of accepted images that the witnesses deny. Written by `hear`, read by the route after it."""
    cap: str
    """The cap that ended drawing, "" for none. Written by `direct`."""


class PromptState(TypedDict, total=False):
    """State of the prompt sub-graph, one class at a time."""

    class_name: str
    wanted: int
    round: int
    """The main graph's `writing`: the offers and seeds of the drafts follow from it."""
    judged: int
    """The main graph's `round`."""
    returned: list[str]
    """Ids of prompts to refine first, because the judge rejected all their images."""
    drafts: list[dict[str, Any]]
    """The drafts being worked on, as `Draft.to_state` writes them. Replaced by each step."""
    refines: int
    """Number of refinements so far, at most `prompts.max_refines`."""

    proposed: int
    """Number of prompts asked for so far, those that were dropped included."""
    admitted_before: int
    """`admitted` when the drafts being worked on were proposed."""
    admitted: int
    """Number of prompts admitted. The only field that is returned; the prompts themselves are in the ledger."""


class PromptResult(TypedDict):
    """What the sub-graph returns to the main graph."""

    admitted: int
