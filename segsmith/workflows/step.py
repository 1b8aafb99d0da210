"""Reviewing a run after the fact: what waits in a stopped run, what nobody looked at in a finished one, and decisions
from a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from segsmith.config import Config
from segsmith.graph.context import RunContext
from segsmith.memory.ledger import DecisionKind
from segsmith.memory.run_config import record_of
from segsmith.memory.run_folder import RunFolder
from segsmith.review.decisions import KINDS, pending, record, set_auto, stale
from segsmith.workflows.reviewing import Reviewer, ask

FINISHED_KINDS: tuple[DecisionKind, ...] = ("verdict", "label", "mask")
"""What a finished run asks about; its prompts are drawn already."""


@dataclass(frozen=True)
class Review:
    """What came of a review."""

    finished: bool
    """Whether the run had finished before."""
    decisions: int = 0
    """Decisions taken from a file."""
    stopped: bool = False
    """Whether the reviewer left before the end."""
    changed: bool = False
    """Whether the decisions change the dataset of a finished run."""


def settings_of(run: Path) -> Config:
    """The settings that a run was started with; building it with them again resumes it."""
    return record_of(RunFolder(run)).asked


def is_finished(run: Path) -> bool:
    """Whether the run had its segmenter evaluated."""
    with opened(run) as context:
        return context.ledger.finished_at is not None


def take_decisions(run: Path, file: Path) -> Review:
    """Record the decisions in a JSON-lines file (docs/step.md).

    Raises `SegsmithError` that names the bad lines; then no decision is recorded.
    """
    from segsmith.review.decisions_file import read_answers

    with opened(run) as context:
        rows = read_answers(context, file)
        for row in rows:
            record(context, row)
        finished = context.ledger.finished_at is not None
        return Review(finished, decisions=len(rows), changed=finished and bool(stale(context.ledger)))


def unseen(run: Path) -> Mapping[DecisionKind, int]:
    """Kind of decision -> number of subjects in a finished run that nobody has looked at.

    What the reviewer had left to the agents (``auto``) counts, too: ``auto`` is switched off.
    """
    with opened(run) as context:
        if context.ledger.auto:  # the user who looks back wants to be asked
            set_auto(context.ledger, None)
        return {kind: len(pending(context.ledger, kind)) for kind in FINISHED_KINDS}


def look_back(run: Path, reviewer: Reviewer) -> Review:
    """Ask about everything in a finished run that nobody has looked at."""
    with opened(run) as context:
        stopped = not _ask_about(context, FINISHED_KINDS, reviewer)
        return Review(True, stopped=stopped, changed=bool(stale(context.ledger)))


def catch_up(run: Path, reviewer: Reviewer) -> Review:
    """Ask about what waits in a run that stopped, before any model is loaded."""
    with opened(run) as context:
        return Review(False, stopped=not _ask_about(context, KINDS, reviewer))


def _ask_about(context: RunContext, kinds: tuple[DecisionKind, ...], reviewer: Reviewer) -> bool:
    """False when the reviewer left."""
    for kind in kinds:
        waiting = pending(context.ledger, kind)
        if waiting and ask(reviewer, context, kind, waiting) == "stop":
            return False
    return True


@contextmanager
def opened(run: Path) -> Iterator[RunContext]:
    """The run's context, with its folder held."""
    folder = RunFolder(run)
    settings = record_of(folder).asked
    with folder.held(), RunContext(settings, folder) as context:
        yield context
