"""What every command shares: the app, its consoles, and how ``--set`` is read."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from segsmith.errors import SegsmithError
from segsmith.terminal_text import shown

if TYPE_CHECKING:
    from segsmith.types import Evaluation
    from segsmith.workflows.progress import Screen

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Build a labelled segmentation dataset from a class list, and train a segmenter on it.",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
parts_of_this_call: ContextVar[Mapping[str, Any] | None] = ContextVar("parts", default=None)
"""What replaces the parts of a run (see `RunContext`); set by `segsmith.cli.main`."""


def screen() -> Screen:
    """Where a workflow shows its progress."""
    from segsmith.workflows.progress import Screen

    return Screen(out, err)


def command_line() -> str:
    """The command as it was typed, for the report."""
    return shlex.join(["segsmith", *sys.argv[1:]])


def settings_of(pairs: Sequence[str] | None) -> dict[str, Any]:
    """``["judge.top_k=3"]`` as ``{"judge.top_k": 3}``; a value that is no TOML is text."""
    import tomllib

    settings: dict[str, Any] = {}
    for pair in pairs or ():
        key, sign, text = pair.partition("=")
        if not sign or not key:
            raise SegsmithError(f"--set {pair!r} is not KEY=VALUE.", "Type e.g. --set judge.top_k=3")
        try:
            settings[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key] = text
    return settings


def quiet_libraries() -> None:
    """Keep libraries from sending telemetry and from printing warnings into the progress display."""
    os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import warnings

    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)


def print_path(path: Path) -> None:
    """Print a path on one line, so that it can be copied whole."""
    out.print(shown(str(path)), soft_wrap=True)


def print_scores(evaluation: Evaluation) -> None:
    """Print a table of IoU by class."""
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    table.add_column("IoU", justify="right")
    for name, iou in evaluation.iou.items():
        table.add_row(shown(name), "absent" if iou is None else f"{iou:.3f}")
    out.print(table)


def readable(size: int) -> str:
    """Bytes as MB or GB; "-" for an unknown size."""
    if size <= 0:
        return "-"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.1f} MB"
