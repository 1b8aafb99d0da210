"""Decisions from a file (`segsmith step RUN --answers decisions.jsonl`) or a client of LangGraph's server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segsmith.errors import SegsmithError
from segsmith.memory.ledger import DecisionRow, DecisionSource
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
    numbered = [(f"line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    return _checked(reviewed, path.name, [(where, _parsed(line)) for where, line in numbered], "file")


def check_decisions(
    reviewed: ReviewedRun, decisions: Sequence[Any], source: DecisionSource
) -> list[DecisionRow]:
    """As `read_answers`, for decisions that came as JSON values."""
    return _checked(reviewed, "answer", [(f"decision {n}", d) for n, d in enumerate(decisions, 1)], source)


def _checked(
    reviewed: ReviewedRun, name: str, decisions: Sequence[tuple[str, Any]], source: DecisionSource
) -> list[DecisionRow]:
    """Checked decisions; each comes with where it stands, which errors name."""
    rows, problems = [], []
    for where, given in decisions:
        try:
            rows.append(check_decision(reviewed, _decision(given, source)))
        except SegsmithError as error:
            problems.append(f"{where}: {error.message}")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise SegsmithError(
            f"{name}: {len(problems)} of {len(rows) + len(problems)} decisions cannot be used. "
            + "; ".join(problems[:3]) + more,
            f"Fix {'these lines' if source == 'file' else 'them'}; nothing was changed.",
        )  # fmt: skip
    return rows


def _parsed(line: str) -> Any:
    """The JSON value in a line; None for a line that holds none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _decision(data: Any, source: DecisionSource) -> DecisionRow:
    if data is None:
        raise SegsmithError("it is not JSON.", "")
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
    return DecisionRow(kind, subject, action, value, note, source)
