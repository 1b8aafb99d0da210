"""Options that several commands share, and what they mean for the settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from segsmith.commands.console import settings_of

PresetChoice = Annotated[
    str | None,
    typer.Option(
        show_default="auto", help="which models to use: auto, sim, cpu, gpu or hosted (see docs/models.md)"
    ),
]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML file of settings; flags win over it")]
Seed = Annotated[int | None, typer.Option(help="another seed gives other prompts and pictures")]
Memory = Annotated[Path | None, typer.Option(help="prompt memory shared by runs; else the run's own")]
MaxImages = Annotated[int | None, typer.Option(help="draw at most so many images")]
MaxHours = Annotated[
    float | None, typer.Option(help="write and draw for at most so many hours, over all sittings")
]
MaxUsd = Annotated[float | None, typer.Option(help="spend at most so many dollars on hosted models")]
Offline = Annotated[bool, typer.Option("--offline", help="fetch nothing from anywhere")]
Step = Annotated[
    bool, typer.Option("--step", help="pause at prompts, verdicts, labels and masks, and ask you")
]


def flags_of(
    pairs: list[str] | None,
    settings: Mapping[str, Any],
    *,
    memory: Path | None,
    offline: bool,
    caps: Mapping[str, float | None],
) -> dict[str, Any]:
    """The tree of settings that a run's flags give: ``--set`` pairs, then what was typed with a flag of its own."""
    flags = settings_of(pairs or [])
    typed = {**settings, "memory": memory and str(memory), "offline": offline or None}
    flags |= {key: value for key, value in typed.items() if value is not None}
    limits = {cap: value for cap, value in caps.items() if value is not None}
    if limits:
        flags.setdefault("budget", {}).update(limits)
    return flags
