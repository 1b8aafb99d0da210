"""What is printed at the end of a build, and when a reviewer stops one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from segsmith.commands.console import out
from segsmith.terminal_text import shown

if TYPE_CHECKING:
    from segsmith.workflows.run import Run

TESTS = {
    "synthetic_val": "held-out generated images",
    "real_val": "held-out real images",
    "real_val_guessed": "held-out real images against masks that the labeler made (agreement, not quality)",
    "test_set": "the simulator test set (unseen sprite style)",
}

COLUMNS = {
    "real_val": "IoU, real images",
    "real_val_guessed": "agreement, real images",
    "synthetic_val": "agreement, held out",
    "test_set": "IoU, simulator",
}
"""Heading of the column of each score. Where the labeler made the masks, a score is agreement with it."""


def print_summary(run: Run) -> None:
    """The closing table of a build, or how to continue where the reviewer stopped it."""
    from segsmith.events import Status

    assert run.ended is not None
    if run.ended.status is Status.STOPPED:
        print_how_to_continue(run.path)
        return
    if run.ended.status is Status.ALREADY_FINISHED:
        out.print(f"{shown(run.place)} is finished. Nothing was left to do.", soft_wrap=True)
    tallies, evaluations, spent = run.tallies, run.evaluations, run.summary
    tests = {key: heading for key, heading in COLUMNS.items() if key in evaluations}
    table = Table(box=None, pad_edge=False)
    for heading in ("class", "accepted", "drawn", "yield", *tests.values()):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, tally in tallies.items():
        ious = [evaluations[test].iou.get(name) if test in evaluations else None for test in tests]
        table.add_row(
            shown(name),
            f"{tally.accepted}/{run.config.wanted[name]}",
            str(tally.drawn),
            f"{tally.accepted / tally.judged:.0%}" if tally.judged else "-",
            *("-" if iou is None else f"{iou:.3f}" for iou in ious),
        )
    out.print(table)
    for test, words in TESTS.items():
        if test in evaluations:
            out.print(f"mIoU on {words}: [b]{evaluations[test].miou:.3f}[/b]")
    accepted = sum(tally.accepted for tally in tallies.values())
    if accepted:
        out.print(f"uncertain pixels (255) in the masks: {run.uncertain_share:.1%}")
    out.print(
        f"{sum(tally.drawn for tally in tallies.values())} images drawn, {accepted} accepted, "
        f"{spent.wall_seconds / 60:.1f} min, peak memory {spent.peak_memory_mb / 1024:.1f} GiB"
    )
    _print_missing(run)
    _print_doubts(run)
    for title, path in (("report", run.report), ("dataset", run.dataset), ("segmenter", run.segmenter)):
        if path.exists():
            out.print(f"{title:10}{shown(str(path))}", soft_wrap=True)
    if run.place != str(run.path):
        out.print(f"{'run':10}{shown(run.place)}", soft_wrap=True)


def _print_missing(run: Run) -> None:
    from segsmith.reasons import Shortfall

    assert run.ended is not None
    if run.ended.missing:
        short = ", ".join(f"{shown(name)} {n}" for name, n in run.ended.missing.items())
        why = (
            f"the cap {run.ended.cap} was reached"
            if run.ended.cap
            else Shortfall.wording_of(run.ended.reason)
        )
        out.print(f"[yellow]Images missing because {why}: {short}[/yellow]")


def _print_doubts(run: Run) -> None:
    from segsmith.agents.judge.agent import doubt

    for name, auc in run.doubtful_classes.items():
        out.print(f"[yellow]{doubt(shown(name), auc)}[/yellow]", soft_wrap=True)


def print_how_to_continue(run: Path) -> None:
    """The command that resumes a review."""
    command = shlex.join(["segsmith", "step", str(run)])
    out.print(f"stopped; continue with: {shown(command)}", soft_wrap=True)
