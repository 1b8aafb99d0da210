"""The command `verify`."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from segsmith.commands.console import app, out
from segsmith.commands.options import Lock
from segsmith.terminal_text import shown

SHOWN = 20
"""Findings listed one by one."""


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    repair: Annotated[
        bool,
        typer.Option("--repair", help="mark what a build can make again; damaged files move to set-aside/"),
    ] = False,
    lock: Lock = "auto",
) -> None:
    """Check the files of a run against its ledger: hashes, counts and references; exit code 1 for any defect.

    No model is loaded. Without --repair nothing is changed.
    """
    from segsmith.workflows.verify import verify as check

    found = check(run, repair=repair)
    state = "finished" if found.finished else "not finished"
    out.print(f"{found.images} images, {found.masks} masks, {state}")
    for finding in found.findings[:SHOWN]:
        detail = f" ({finding.detail})" if finding.detail else ""
        out.print(f"[red]{finding.defect}[/red] {shown(finding.where + detail)}", soft_wrap=True)
    if len(found.findings) > SHOWN:
        out.print(f"... and {len(found.findings) - SHOWN} more")
    for kind, count in Counter(finding.defect for finding in found.findings).most_common():
        out.print(f"{count:6} {kind}: {kind.wording}", soft_wrap=True)
    if not found.findings:
        out.print("No problems found.")
        return
    remedies = {finding.defect.remedy for finding in found.open}
    if found.marked:
        out.print(
            f"{len(found.marked)} marked; damaged files are in {shown(str(run / 'set-aside'))}",
            soft_wrap=True,
        )
    if "mark" in remedies:
        command = shown(shlex.join(["segsmith", "verify", str(run), "--repair"]))
        out.print(f"to mark what can be made again: {command}", soft_wrap=True)
    if found.marked or "build" in remedies:
        build = ["segsmith", "build", "--from", str(run / "run.toml"), "--out", str(run)]
        out.print(f"to make it again: {shown(shlex.join(build))}", soft_wrap=True)
    if "" in remedies:
        out.print("some of this cannot be made again; restore it from a backup, or start a new run")
    if found.open:
        raise typer.Exit(1)
