"""Where the next session of a run starts: from scratch, where the last one stopped, or at outdated or lost work."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from segsmith.agents.director import cap_reached, spent
from segsmith.config import Config
from segsmith.errors import SegsmithError
from segsmith.files import PART, sha256_of
from segsmith.graph.context import RunContext
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_config import RunRecord, installed_versions, read_record, resumed
from segsmith.memory.run_folder import RunFolder
from segsmith.review.decisions import REENTER, stale
from segsmith.workflows.verify import damaged_files

OURS = {"images", "masks", "checkpoints", "real", ".writable", ".lock", ".lock-holder"}
"""What a session may have created before it wrote run.toml."""


def starts_over(run: RunFolder, config: Config) -> bool:
    """Whether an earlier session with another config ended here before its first prompt.

    For example, the LLM failed to start; the run may then restart with new settings.
    """
    if not run.config.exists() or not run.ledger.exists() or read_record(run.config).asked == config:
        return False
    with closing(Ledger(run.ledger)) as ledger:
        return not (ledger.prompts() or ledger.guidance(active_only=False))


def record_for(run: RunFolder, config: Config) -> RunRecord:
    """What ``run.toml`` is to hold. Nothing is written.

    Raises `SegsmithError` for a folder that holds something else, or a run that was started with other settings.
    """
    check_folder(run)
    if run.config.exists():
        return resumed(read_record(run.config), config, run.root)
    return RunRecord(config, installed_versions())


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


def reentry(context: RunContext, snapshot: Any) -> str:
    """The node behind which the run continues because something changed; "" where the checkpoint holds.

    What may have changed: verdicts, labels or masks by `rejudge` or a reviewer, a cap that was raised, and results
    of a finished run that are gone or damaged.
    """
    finished = not waiting(snapshot)
    if finished and (changed := stale(context.ledger)):
        return REENTER[changed]
    drawing_ended = snapshot.values.get("reason") in ("budget_spent", "nothing_accepted")
    if drawing_ended and "direct" not in waiting(snapshot):
        images, rounds = len(context.ledger.images()), snapshot.values.get("round", 0)
        cap = cap_reached(context.config.budget, images, rounds, spent(context.ledger))
        if cap != snapshot.values.get("cap", ""):
            return "judge"
    return lost_result(context) if finished and snapshot.values.get("reason") != "nothing_accepted" else ""


def state_of_ledger(ledger: Ledger) -> dict[str, Any]:
    """The graph's state after the last round of drawing that the ledger holds; empty where nothing was drawn.

    For a run whose checkpoints are lost: its images must be judged before the director counts them.
    """
    images = ledger.images()
    if not images:
        return {}
    last = max(image.round for image in images)
    return {"round": last, "draw": sorted({image.prompt_id for image in images if image.round == last})}


def lost_result(context: RunContext) -> str:
    """The node that a finished run continues behind because the result after it is gone or damaged; "" for none."""
    if any(damaged_files(context.run.voc)):
        return "segment"
    segmenter = context.run.segmenter
    trained = [detail["sha256"] for _, _, detail in context.ledger.events("trained")]
    if not segmenter.exists() or not segmenter.with_suffix(".json").exists():
        return "export"
    return "export" if trained and sha256_of(segmenter) != trained[-1] else ""


def waiting(snapshot: Any) -> tuple[str, ...]:
    """Nodes that the run continues with; none when it is finished.

    Not ``snapshot.next``: that leaves out a node that ended just before the process did, though everything after it
    is still to be done.
    """
    return tuple(task.name for task in snapshot.tasks)
