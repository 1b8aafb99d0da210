"""What every command shares: the app, its consoles, and how ``--set`` is read."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from segsmith.errors import SegsmithError
from segsmith.terminal_text import shown

if TYPE_CHECKING:
    from segsmith.types import Evaluation
    from segsmith.workflows.progress import Screen

PANELS: dict[str, tuple[str, ...]] = {
    "Build a dataset": ("plan", "build", "augment", "refine"),
    "Review a run": ("step", "why", "ledger", "rejudge", "report", "gallery", "verify", "merge"),
    "Use the dataset": ("export", "push", "validate", "weaken"),
    "Use the segmenter": ("train", "evaluate", "predict", "export-model"),
    "Models and machine": ("doctor", "models", "nouns", "diagram"),
}
"""Panel of ``segsmith --help`` -> its commands, in the order in which users need them."""


class InOrder(TyperGroup):
    """Lists the commands by `PANELS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        order = [name for names in PANELS.values() for name in names]
        return sorted(super().list_commands(ctx), key=lambda name: order.index(name) if name in order else 99)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command: Any = super().get_command(ctx, cmd_name)
        for panel, names in PANELS.items():
            if command is not None and cmd_name in names:
                command.rich_help_panel = panel
        return command


app = typer.Typer(
    cls=InOrder,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Build a labelled segmentation dataset from a class list, and train a segmenter on it.",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
quiet: ContextVar[bool] = ContextVar("quiet", default=False)
"""Whether ``-q`` hides the progress; errors and results are printed all the same."""
verbose: ContextVar[bool] = ContextVar("verbose", default=False)
"""Whether ``-v`` prints segsmith's log."""
parts_of_this_call: ContextVar[Mapping[str, Any] | None] = ContextVar("parts", default=None)
"""What replaces the parts of a run (see `RunContext`); set by `segsmith.cli.main`."""


def screen(as_json: bool = False) -> Screen:
    """Where a workflow shows its progress: not on standard output if that is to hold JSON and nothing else."""
    from segsmith.workflows.progress import Screen

    warnings = Console(stderr=True, highlight=False, quiet=True) if quiet.get() else err
    return Screen(warnings if as_json else out, warnings)


def _print_version(asked: bool) -> None:
    if asked:
        from segsmith import __version__

        typer.echo(f"segsmith {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="print the version")
    ] = False,
    show_log: Annotated[bool, typer.Option("-v", "--verbose", help="print the log, too")] = False,
    hide_progress: Annotated[bool, typer.Option("-q", "--quiet", help="print no progress")] = False,
) -> None:
    """Build a labelled segmentation dataset from a class list, and train a segmenter on it."""
    quiet.set(hide_progress)
    verbose.set(show_log)


def print_json(value: Any) -> None:
    """Print a value as JSON; dataclasses become objects with their fields' names."""
    typer.echo(json.dumps(value, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return dict(value) if isinstance(value, Mapping) else str(value)


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
    if verbose.get():
        logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
        logging.getLogger("segsmith").setLevel(logging.INFO)


@contextmanager
def busy(doing: str) -> Iterator[None]:
    """Show what the command is doing and for how long, in a terminal, where nothing else reports progress."""
    if quiet.get() or not out.is_terminal:
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=out, transient=True) as progress:
        progress.add_task(shown(doing), total=None)
        yield


def print_path(path: Path | str) -> None:
    """Print a path or URL on one line, so that it can be copied whole."""
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
