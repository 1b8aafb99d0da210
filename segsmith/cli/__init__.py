"""The `segsmith` command: the only room that prints or exits. Torch is imported inside commands alone.

One module per family of commands; importing it registers them on the app.
"""

from __future__ import annotations

import sys

from segsmith.cli import (  # noqa: F401
    about,
    augment,
    build,
    datasets,
    ledger,
    models,
    plan,
    review,
    runs,
    train,
    weak,
)
from segsmith.cli.console import app, err, shown
from segsmith.errors import SegsmithError

INTERRUPTED = 130
"""The exit code that typer makes of Ctrl-C."""


def main() -> None:
    """Run the command; a `SegsmithError` becomes one line and exit code 2."""
    try:
        app(standalone_mode=True)
    except SegsmithError as error:
        err.print(f"[red]segsmith:[/red] {shown(str(error))}", soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            err.print("stopped; the same command goes on from here")
        raise
