"""Decisions from a file: `segsmith step RUN --answers decisions.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path

from segsmith.errors import SegsmithError
from segsmith.memory.ledger import DecisionRow
from segsmith.review.decisions import KINDS, check_decision
from segsmith.review.reviewed_run import ReviewedRun

ACTIONS = ("accept", "reject", "edit")
FIELDS = {"kind", "subject", "action", "value", "note"}


def read_answers(reviewed: ReviewedRun, path: Path) -> list[DecisionRow]:
    """The decisions in a file with one JSON object per line, checked against the run; nothing is changed.

    Raises `SegsmithError` with the number of unusable lines and what is wrong with the first three.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SegsmithError(
            f"{path} cannot be read: {error}.", "Name a file of decisions; docs/step.md describes it."
        ) from None
    rows, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(check_decision(reviewed, _decision(line)))
        except SegsmithError as error:
            problems.append(f"line {number}: {error.message}")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise SegsmithError(
            f"{path.name}: {len(problems)} of {len(rows) + len(problems)} decisions cannot be used. "
            + "; ".join(problems[:3]) + more,
            "Fix these lines; nothing was changed.",
        )  # fmt: skip
    return rows


def _decision(line: str) -> DecisionRow:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise SegsmithError("it is not JSON.", "") from None
    if not isinstance(data, dict):
        raise SegsmithError("it is not a JSON object.", "")
    if strange := sorted(set(data) - FIELDS):
        raise SegsmithError(f"unknown key {strange[0]!r}.", "")
    kind, action, value = data.get("kind"), data.get("action"), data.get("value") or {}
    if kind not in KINDS:
        raise SegsmithError(f"unknown kind {kind!r}; kinds are {', '.join(KINDS)}.", "")
    if action not in ACTIONS:
        raise SegsmithError(f"unknown action {action!r}; actions are {', '.join(ACTIONS)}.", "")
    subject, note = data.get("subject"), data.get("note") or ""
    if not isinstance(subject, str) or not isinstance(note, str) or not isinstance(value, dict):
        raise SegsmithError("subject and note must be text, value an object.", "")
    return DecisionRow(kind, subject, action, value, note, "file")
