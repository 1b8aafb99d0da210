"""The `segsmith` command. Importing a module of `commands` registers its commands; torch is imported inside them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from segsmith.commands import about, build, datasets, models, review, runs, train, verify  # noqa: F401
from segsmith.commands.console import app, err, parts_of_this_call
from segsmith.errors import SegsmithError
from segsmith.terminal_text import shown

INTERRUPTED = 130
"""Typer's exit code for Ctrl-C."""


def main(parts: Mapping[str, Any] | None = None) -> None:
    """Run the command; a `SegsmithError` becomes one line and exit code 2.

    `parts` replaces what a build would open (see `RunContext`); tests pass fakes.
    """
    parts_of_this_call.set(parts)
    try:
        app(standalone_mode=True)
    except SegsmithError as error:
        err.print(f"[red]segsmith:[/red] {shown(str(error))}", soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            err.print("stopped; run the same command again to resume")
        raise


if __name__ == "__main__":
    main()
