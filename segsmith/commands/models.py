"""Commands on models and the machine: `models`, `models pull`, `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from segsmith.commands.console import app, out, print_json, quiet_libraries, readable, screen, settings_of
from segsmith.commands.options import AsJson, ConfigFile, Offline, Preset, Set
from segsmith.terminal_text import shown

if TYPE_CHECKING:
    from segsmith.config import Config
    from segsmith.workflows.models import ModelFile

models_app = typer.Typer(invoke_without_command=True, help="List or fetch the models that a preset needs.")
app.add_typer(models_app, name="models")

SOURCES = {
    "package": "part of segsmith",
    "wheel": "from the package index",
    "hub": "from the hub",
    "url": "from a URL",
    "file": "a local file",
    "service": "behind a URL",
}


@models_app.callback()
def models(
    context: typer.Context,
    preset: Preset = None,
    offline: Offline = False,
    config: ConfigFile = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """List the models that a preset needs: role, name, size, licence, source, sha256, and whether they are here."""
    if context.invoked_subcommand is None:
        _print_models(_settings(preset, offline, config, set_, announce=not as_json), as_json)


@models_app.command()
def pull(
    preset: Preset = None,
    offline: Offline = False,
    config: ConfigFile = None,
    set_: Set = None,
) -> None:
    """Fetch the models that are missing, resuming interrupted downloads, and check them."""
    from segsmith.workflows.models import fetch_missing
    from segsmith.workflows.progress import open_display

    settings = _settings(preset, offline, config, set_)
    with open_display(None, True, screen()) as display:
        fetch_missing(settings, display.show, packages=True)
    _print_models(settings)


@app.command()
def doctor(
    preset: Preset = None,
    offline: Offline = False,
    config: ConfigFile = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Check whether this machine can run a preset, line by line; exit code 1 if it cannot."""
    from segsmith.workflows.doctor import examine

    lines = examine(_settings(preset, offline, config, set_, announce=not as_json))
    if as_json:
        found = list(lines)
        print_json(found)
        raise typer.Exit(0 if all(line.ok for line in found) else 1)
    healthy = True
    for line in lines:
        healthy = healthy and line.ok
        mark = "[green]ok  [/green]" if line.ok else "[red]fail[/red]"
        out.print(f"{mark} {line.what:9} {shown(line.found)}", soft_wrap=True)
        if line.remedy:
            out.print(f"               {shown(line.remedy)}", soft_wrap=True)
    if not healthy:
        raise typer.Exit(1)


def _settings(
    preset: str | None, offline: bool, config: Path | None, set_: list[str] | None, announce: bool = True
) -> Config:
    """The config that these commands are about; with `announce`, prints which preset was picked and why."""
    quiet_libraries()
    from segsmith.workflows.settings import overrides, resolve

    changes = overrides(settings_of(set_), offline=offline)
    settings, choice = resolve(preset=preset, config=config, changes=changes)
    if choice.why and announce:
        out.print(f"preset [b]{choice.preset}[/b]: {shown(choice.why)}", soft_wrap=True)
    return settings


def _print_models(settings: Config, as_json: bool = False) -> None:
    """Two lines per model, so that its whole name fits into 80 columns."""
    from segsmith.workflows.models import facts_of, model_files

    if as_json:
        print_json([facts_of(file) for file in model_files(settings)])
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("role", "model", "size", "here"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "size" else "left")
    files = model_files(settings)
    for file in files:
        table.add_row(file.need.role, shown(file.need.name), readable(file.size), _presence(file))
        hashed = [f"sha256 {file.sha256[:12]}"] if file.sha256 else []
        facts = [file.licence or "licence: see its card", SOURCES[file.need.kind], *hashed]
        table.add_row("", f"[dim]{shown(', '.join(facts))}[/dim]")
    out.print(table)
    missing = sum(file.size for file in files if file.found is None)
    to_fetch = readable(missing) if missing else "nothing"
    out.print(f"{readable(sum(file.size for file in files))} in total, {to_fetch} to fetch")
    if missing:
        out.print(f"Type: segsmith models pull --preset {settings.preset}")


def _presence(file: ModelFile) -> str:
    if file.need.kind == "service":
        return "online"
    return "[yellow]no[/yellow]" if file.found is None else "yes"
