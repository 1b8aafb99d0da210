"""Judge every image of a run again from what was measured; nothing is drawn and no model is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segsmith.agents.judge.agent import record as record_verdicts
from segsmith.agents.judge.rejudge import Rejudgement
from segsmith.agents.judge.rejudge import rejudge as judge_again
from segsmith.config import Config
from segsmith.errors import SegsmithError
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_config import RunRecord, record_of, write_record
from segsmith.memory.run_folder import RunFolder
from segsmith.workflows.settings import Settings, nested


@dataclass(frozen=True)
class Rejudged:
    """The verdicts that other settings lead to, compared with those before."""

    config: Config
    """The settings that the new verdicts follow from."""
    judgement: Rejudgement
    written: bool

    @property
    def missing(self) -> Mapping[str, int]:
        """Class -> accepted images short of what is wanted."""
        wanted, accepted = self.config.wanted, self.judgement.accepted
        return {name: wanted[name] - n for name, n in accepted.items() if n < wanted[name]}


def rejudge(
    run: str | Path,
    *,
    thresholds: float | Mapping[str, float] | None = None,
    settings: Settings | None = None,
    calibrated: bool = False,
    dry_run: bool = False,
) -> Rejudged:
    """Decide about every image of a run again. Labels, masks and the dataset follow when the run is built again.

    Args:
        run: the run folder.
        thresholds: probability that an image must reach, for every class or by class, in [0, 1].
        settings: settings of section ``judge``, e.g. ``{"judge.top_k": 3}``.
        calibrated: start from the settings that the run was built with, not from those of the last `rejudge`.
        dry_run: only compare; write nothing.

    Raises `SegsmithError` for a folder without a run, a run without measurements, or a setting of another section.
    """
    folder = RunFolder(Path(run))
    before = settled(folder, record_of(folder))
    changes = _judge_settings(thresholds, settings or {}, before.config.classes)
    if not changes and not calibrated:
        raise SegsmithError("No setting is named.", "Type e.g. --threshold 0.4, or --calibrated.")
    kept = {} if calibrated else dict(before.rejudged)
    by_class = {**kept.get("thresholds", {}), **changes.pop("thresholds", {})}
    rejudged = {**kept, **changes, **({"thresholds": by_class} if by_class else {})}
    record = RunRecord(before.asked, before.versions, rejudged)
    config = record.config
    with folder.held(), closing(Ledger(folder.ledger)) as ledger:
        judgement = judge_again(ledger, config.classes, config.judge, config.wanted)
        if not dry_run:
            # One transaction, and run.toml last: after a crash in between the ledger has the settings.
            with ledger.transaction():
                record_verdicts(ledger, judgement.decision, config.classes, config.judge)
                ledger.log("rejudged", settings=rejudged, gained=judgement.gained, lost=judgement.lost)
            write_record(folder.config, record)
    return Rejudged(config, judgement, written=not dry_run)


def settled(folder: RunFolder, record: RunRecord) -> RunRecord:
    """`record` with the judge settings that the verdicts in the ledger follow from.

    They differ from those in ``run.toml`` only where a `rejudge` was killed before it wrote that file.
    """
    if not folder.ledger.exists():
        return record
    with closing(Ledger(folder.ledger, read_only=True)) as ledger:
        stored = [detail["settings"] for _, _, detail in ledger.events("rejudged")]
    if not stored or stored[-1] == json.loads(json.dumps(record.rejudged)):
        return record
    return RunRecord(record.asked, record.versions, stored[-1])


def _judge_settings(
    thresholds: float | Mapping[str, float] | None, settings: Settings, classes: tuple[str, ...]
) -> dict[str, Any]:
    """The settings of section ``judge`` that change."""
    tree = nested(settings)
    if others := sorted(set(tree) - {"judge"}):
        raise SegsmithError(
            f"{others[0]} is not a section that `rejudge` can change.", "Only settings judge.* may be named."
        )
    changes: dict[str, Any] = dict(tree.get("judge", {}))
    if "clip" in changes:
        raise SegsmithError(
            "judge.clip cannot change: the stored measurements were made with it.",
            "Build with that CLIP into another folder with --out.",
        )
    if thresholds is None:
        return changes
    by_class = thresholds if isinstance(thresholds, Mapping) else dict.fromkeys(classes, thresholds)
    if unknown := sorted(set(by_class) - set(classes)):
        raise SegsmithError(f"This run has no class {unknown[0]!r}.", f"Name one of: {', '.join(classes)}.")
    changes["thresholds"] = {**changes.get("thresholds", {}), **by_class}
    return changes
