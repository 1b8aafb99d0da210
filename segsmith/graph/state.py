"""What travels along the graph: ids, numbers and short text. Data lies in the ledger.

The whole state is stored at every step, so it must stay small whatever the size of the run.
"""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict


class RunState(TypedDict, total=False):
    """State of the main graph."""

    round: int
    """Rounds of drawing finished. Written by `judge`."""
    idle: dict[str, int]
    """Class -> rounds in a row without a newly accepted image. Written by `judge`, read by `direct`."""
    reason: str
    """Why the graph goes where it goes. Written by `direct`, read by the route behind it."""
    draw: list[str]
    """Prompt ids to draw in this round. Written by `direct`, read by `draw`."""
    write: dict[str, int]
    """Class -> prompts to write. Written by `direct`, read by the fan-out to `write_prompts`."""
    returned: dict[str, list[str]]
    """Class -> prompts whose images all failed, for the prompt agent to refine. Written by `judge`."""
    admitted: Annotated[int, operator.add]
    """Prompts admitted so far. Added to by each `write_prompts`, which run side by side: hence the reducer."""
    missing: dict[str, int]
    """Class -> accepted images short of the quota when the run stopped early. Written by `direct`."""
    cap: str
    """The cap that ended the drawing, "" for none. Written by `direct`."""


class PromptState(TypedDict, total=False):
    """State of the prompt sub-graph, one class at a time."""

    class_name: str
    wanted: int
    round: int
    returned: list[str]
    """Prompt ids to refine first, because the judge refused all their images."""
    drafts: list[dict[str, Any]]
    """Drafts on their way, as `Draft.to_state` writes them. Replaced by each step."""
    refines: int
    """Refinements done; `prompts.max_refines` bounds them."""

    admitted: int
    """Prompts admitted. The only field handed back; the prompts themselves are in the ledger."""


class PromptResult(TypedDict):
    """What the sub-graph hands back to the main graph."""

    admitted: int
