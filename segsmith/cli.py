"""The `segsmith` command. Importing a module of `commands` registers its commands; torch is imported inside them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

from segsmith.commands import about, build, datasets, models, review, runs, train, verify  # noqa: F401
from segsmith.commands.console import app, command_line, err, out, parts_of_this_call
from segsmith.errors import SegsmithError
from segsmith.terminal_text import shown

INTERRUPTED = 130
"""Typer's exit code for Ctrl-C."""


class _Interrupt:
    """Ctrl-C: the first one ends the command in good order, the second one at once, whatever a thread is doing.

    Nothing is lost then, because files are written whole and every write to the ledger is a transaction.
    """

    def __init__(self) -> None:
        self._interrupted = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            os._exit(INTERRUPTED)
        self._interrupted = True
        # On the console of the bars, which then move down instead of being overwritten.
        (out if out.is_terminal else err).print("finishing this batch... Ctrl-C again stops at once")
        signal.default_int_handler(number, frame)


def main(parts: Mapping[str, Any] | None = None) -> None:
    """Run the command; a `SegsmithError` becomes one line and exit code 2.

    `parts` replaces what a build would open (see `RunContext`); tests pass fakes.
    """
    parts_of_this_call.set(parts)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _Interrupt())
    try:
        app(standalone_mode=True)
    except SegsmithError as error:
        err.print(f"[red]segsmith:[/red] {shown(str(error))}", soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            err.print(f"stopped; continue with: {shown(command_line())}", soft_wrap=True)
        raise


if __name__ == "__main__":
    main()
