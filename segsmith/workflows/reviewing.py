"""A pause of a build, as its reviewer gets it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from segsmith.memory.ledger import DecisionKind, DecisionRow
from segsmith.review.decisions import check_decision, mark_seen, pending, record
from segsmith.review.reviewed_run import ReviewedRun

if TYPE_CHECKING:
    from rich.console import Console

    from segsmith.types import Image, LabelMap


@dataclass(frozen=True)
class Pause:
    """What waits for a reviewer. A decision is stored at once, and outranks the agents' decision."""

    kind: DecisionKind
    """``prompt``, ``verdict``, ``label`` or ``mask``."""
    subjects: tuple[str, ...]
    """Ids of the prompts (kind ``prompt``) or images to look at."""
    run: ReviewedRun

    def prompt(self, subject: str) -> str:
        """The prompt, or the prompt that an image was drawn from."""
        ledger = self.run.ledger
        if self.kind == "prompt":
            return ledger.prompt(subject).text
        image = next(row for row in ledger.images() if row.id == subject)
        return ledger.prompt(image.prompt_id).text

    def image(self, subject: str) -> Image:
        """(H, W, 3) uint8 RGB."""
        from segsmith.files import read_image

        return read_image(self.run.run.image(subject))

    def mask(self, subject: str) -> LabelMap:
        """(H, W) uint8: 0 background, 1.. classes in the order of the run, 255 unknown."""
        from segsmith.files import read_index_map

        return read_index_map(self.run.run.mask(subject))

    def accept(self, subject: str, note: str = "") -> None:
        """Accept what the agents decided, or an image that they rejected."""
        self._decide(DecisionRow(self.kind, subject, "accept", {}, note))

    def reject(self, subject: str, note: str = "") -> None:
        """Reject a prompt, an image, its labels (CLIP's hold instead) or its mask."""
        self._decide(DecisionRow(self.kind, subject, "reject", {}, note))

    def edit(
        self, subject: str, *, text: str = "", labels: Sequence[str] | None = None, note: str = ""
    ) -> None:
        """Replace the text of a prompt, or the labels of an image, from which its mask is made again."""
        value = {"text": text} if self.kind == "prompt" else {"labels": list(labels or ())}
        self._decide(DecisionRow(self.kind, subject, "edit", value, note))

    def _decide(self, row: DecisionRow) -> None:
        record(self.run, check_decision(self.run, row))


Reviewer = Callable[[Pause], bool | None]
"""Called at each pause. Subjects that it does not decide about keep the agents' decision; False stops the build."""

Answer = Literal["continue", "stop"]


def ask(reviewer: Reviewer, run: ReviewedRun, kind: DecisionKind, subjects: Sequence[str]) -> Answer:
    """Call the reviewer, then mark what is left as seen, so that the build does not pause at it again."""
    if reviewer(Pause(kind, tuple(subjects), run)) is False:
        return "stop"
    mark_seen(run.ledger, kind, pending(run.ledger, kind, subjects))
    return "continue"


def terminal_reviewer(console: Console) -> Reviewer:
    """The conversation in a terminal or notebook: a word or a sentence about each subject."""

    def reviewer(pause: Pause) -> bool:
        from segsmith.review.session import Conversation, Quit, read_line

        try:
            Conversation(pause.run, console, read_line).hold(pause.kind, pause.subjects)
        except Quit:
            return False
        return True

    return reviewer
