"""Where the next session of a run starts: from scratch, where the last one stopped, or at outdated or lost work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segsmith.agents.director import cap_reached, spent
from segsmith.config import Config, merged_config, with_environment
from segsmith.errors import SegsmithError
from segsmith.files import PART, count_unchanged
from segsmith.graph.context import RunContext
from segsmith.memory.ledger import FileCheck, Ledger
from segsmith.memory.remote_run import STATE
from segsmith.memory.run_config import RunRecord, installed_versions, read_record, resumed
from segsmith.memory.run_folder import RunFolder
from segsmith.review.decisions import REENTER, stale
from segsmith.types import ClassTally
from segsmith.workflows.settings import Settings
from segsmith.workflows.verify import damaged_files, is_trained_segmenter

OURS = {"images", "masks", "checkpoints", "real", ".writable", ".lock", ".lock-holder", STATE}
"""What a session may have created before it wrote run.toml."""
DRAWING_ENDED = ("quota_met", "stalled", "budget_spent", "nothing_accepted")
"""The director's reasons for ending the rounds of drawing."""


def starts_over(run: RunFolder, config: Config) -> bool:
    """Whether an earlier session with another config ended here before its first prompt.

    For example, the LLM failed to start; the run may then restart with new settings.
    """
    if not run.config.exists() or not run.ledger.exists() or read_record(run.config).asked == config:
        return False
    with closing(Ledger(run.ledger)) as ledger:
        return not (ledger.has_prompts or ledger.guidance(active_only=False))


def finished_as(config: Config, run: RunFolder) -> bool:
    """Whether the run was finished with these settings, so that little or nothing is left to do."""
    if not run.config.exists() or not run.ledger.exists() or read_record(run.config).asked != config:
        return False
    with closing(Ledger(run.ledger, read_only=True)) as ledger:
        return ledger.finished_at is not None


def settings_of_run(run: RunFolder, changes: Settings) -> Config | None:
    """The settings that a run was started with, the environment and `changes` applied; None without prompts."""
    if not run.config.exists() or not run.ledger.exists():
        return None
    with closing(Ledger(run.ledger, read_only=True)) as ledger:
        if not ledger.has_prompts:
            return None
    return merged_config(read_record(run.config).asked, with_environment(changes), str(run.config))


def record_for(run: RunFolder, config: Config) -> RunRecord:
    """What ``run.toml`` is to hold. Nothing is written.

    Raises `SegsmithError` for a folder that holds something else, or a run that was started with other settings.
    """
    check_folder(run)
    if run.config.exists():
        return resumed(read_record(run.config), config, run.root, lambda: _accepted(run))
    return RunRecord(config, installed_versions())


def _accepted(run: RunFolder) -> dict[str, int]:
    """Class -> number of accepted images so far."""
    if not run.ledger.exists():
        return {}
    with closing(Ledger(run.ledger, read_only=True)) as ledger:
        return {name: tally.accepted for name, tally in ledger.tallies().items()}


def check_folder(run: RunFolder) -> None:
    """Raise `SegsmithError` for a folder that exists and is neither empty nor a run folder."""
    if run.root.exists() and not run.root.is_dir():
        raise SegsmithError(f"{run.root} is a file.", "Name a folder with --out.")
    try:
        entries = list(run.root.iterdir()) if run.root.exists() else []
    except OSError as error:
        raise SegsmithError(f"Cannot read {run.root}: {error.strerror}.", "Name another --out.") from None
    foreign = sorted(p.name for p in entries if p.name not in OURS and not p.name.startswith(PART))
    if foreign and not run.config.exists():
        raise SegsmithError(
            f"{run.root} is not empty and not a run folder (it holds {foreign[0]!r}).",
            "Name a new folder with --out.",
        )


@dataclass(frozen=True)
class Reentry:
    """Where a run continues because something changed."""

    node: str
    """The node behind which it continues."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """What changes in the graph's state."""


def reentry(context: RunContext, snapshot: Any, added: Sequence[str] = ()) -> Reentry | None:
    """Where the run continues because something changed; None where the checkpoint holds.

    What may have changed: classes (`added` to the list since the last session), a quota or a cap that was raised,
    verdicts, labels or masks by `rejudge` or a reviewer, and results of a finished run that are gone or damaged.
    """
    finished = not waiting(snapshot)
    reason = snapshot.values.get("reason")
    if reason in DRAWING_ENDED and "direct" not in waiting(snapshot):
        images, rounds = context.ledger.drawn, snapshot.values.get("round", 0)
        cap = cap_reached(context.config.budget, images, rounds, spent(context.ledger))
        capped = reason in ("budget_spent", "nothing_accepted")
        if capped and cap != snapshot.values.get("cap", ""):
            return Reentry("judge")
        known = snapshot.values.get("missing", {})
        more = any(n > known.get(name, 0) for name, n in missing(context).items())
        again = bool(context.ledger.set_aside.get("images") and missing(context))
        if context.ledger.set_aside.get("testimonies"):  # witnesses are asked when drawing has ended
            return Reentry("judge", {"idle": {}})
        if added or ((more or again) and not (capped and cap)):
            return Reentry("judge", {"idle": {}})
    if finished and (changed := stale(context.ledger)):
        return Reentry(REENTER[changed])
    lost = lost_result(context) if finished and reason != "nothing_accepted" else ""
    return Reentry(lost) if lost else None


def missing(context: RunContext) -> dict[str, int]:
    """Class -> accepted images short of what is wanted."""
    tallies = context.ledger.tallies()
    short = {c: n - tallies.get(c, ClassTally()).accepted for c, n in context.config.wanted.items()}
    return {name: n for name, n in short.items() if n > 0}


def state_of_ledger(ledger: Ledger) -> dict[str, Any]:
    """The graph's state after the last round of drawing that the ledger holds; empty where nothing was drawn.

    For a run whose checkpoints are lost: its images must be judged before the director counts them.
    """
    last = ledger.last_round
    if last is None:
        return {}
    return {"round": last, "writing": ledger.last_writing, "draw": ledger.drawn_in(last)}


def lost_result(context: RunContext) -> str:
    """The node that a finished run continues behind because the result after it is gone or damaged; "" for none.

    Masks and files of the dataset are looked up one by one only if their number is another one than after the last
    check, and read only if they have changed since.
    """
    ledger, run = context.ledger, context.run
    if ledger.set_aside.get("masks"):
        return "review_labels"
    now = run.check_now()
    checked = ledger.checked
    masks, dataset = (run.still_known(checked.get(part), now) for part in ("masks", "dataset"))
    new = {}
    if not _as_counted(run.masks, masks):
        if any(run.damaged_masks(ledger.mask_hashes(), masks.at)):
            return "review_labels"
        new["masks"] = run.counted(run.masks, now)
    # A store does not hold the dataset: on another machine it is written again when it is needed.
    if (run.remote is None or run.voc.exists()) and not _as_counted(run.voc, dataset):
        if any(damaged_files(run.voc, dataset.at)):
            return "segment"
        new["dataset"] = run.counted(run.voc, now)
    if new:
        ledger.checked = {**checked, **new}
    segmenter = run.segmenter
    if not segmenter.exists() or not segmenter.with_suffix(".json").exists():
        return "export"
    return "" if is_trained_segmenter(run, ledger) else "export"


def _as_counted(folder: Path, check: FileCheck) -> bool:
    """Whether all files that the check counted are there and unchanged."""
    return check.files >= 0 and check.files == count_unchanged(folder, check.at)


def waiting(snapshot: Any) -> tuple[str, ...]:
    """Nodes that the run continues with; none when it is finished.

    Not ``snapshot.next``: that leaves out a node that ended just before the process did, though everything after it
    is still to be done.
    """
    return tuple(task.name for task in snapshot.tasks)
