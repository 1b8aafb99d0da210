"""What every command shares: the app, the two consoles, and how settings on the command line are read."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import typer
from rich.console import Console

from segsmith.errors import SegsmithError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Forge a labelled segmentation dataset from a class list, and train a segmenter on it.",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
parts_of_this_call: ContextVar[Mapping[str, Any] | None] = ContextVar("parts", default=None)
"""What replaces the parts of a run (see `RunContext`); set by `segsmith.cli.main`."""


def settings_of(pairs: list[str]) -> dict[str, Any]:
    """``["judge.top_k=3"]`` as a nested mapping; values are TOML where they parse as such, else text."""
    import tomllib

    tree: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key:
            raise SegsmithError(f"--set {pair!r} is not KEY=VALUE.", "Type e.g. --set judge.top_k=3")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        node = tree
        *sections, last = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree


def quiet_libraries() -> None:
    """Nothing of a run phones home, and libraries' warnings do not break the progress display."""
    os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import warnings

    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
