"""`segsmith plan`: what a build will take, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from segsmith.commands.console import app, out
from segsmith.commands.models import (
    ConfigOption,
    OfflineOption,
    PresetOption,
    SetOption,
    readable,
    settings_for,
)
from segsmith.errors import SegsmithError
from segsmith.terminal_text import shown


@app.command()
def plan(
    classes: Annotated[str, typer.Option(help="class names, separated by commas: cat,dog,bus")] = "",
    per_class: Annotated[int | None, typer.Option(help="accepted images wanted of each class")] = None,
    preset: PresetOption = "auto",
    offline: OfflineOption = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    like: Annotated[Path | None, typer.Option(help="take the figures from this run folder")] = None,
) -> None:
    """Images to draw, LLM tokens, hours, disk, GPU memory and dollars; nothing is drawn, asked or fetched."""
    pairs = [*(set_ or [])]
    if per_class is not None:
        pairs.append(f"per_class={per_class}")
    settings = settings_for(preset, offline, config, pairs)
    if classes:
        from segsmith.config import merged_config

        settings = merged_config(settings, {"classes": tuple(classes.split(","))}, "--classes")
    if not settings.classes:
        raise SegsmithError("No classes are named.", "Type --classes cat,dog,bus")
    from segsmith.graph.context import RunContext
    from segsmith.workflows.estimate import estimate, measure, recall

    figures = recall(settings)
    if like is not None:
        deps = RunContext.open(like)
        figures = measure(deps.ledger, deps.run, deps.config)
        deps.close()
        if figures is None:
            raise SegsmithError(f"{like} drew too little to measure anything.", "Name a finished run.")
    made = estimate(settings, figures)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    wanted = sum(settings.wanted.values())
    table.add_row(
        "images to draw", f"{made.images:,}", f"for {wanted:,} accepted: {shown(made.sources['yield'])}"
    )
    table.add_row("prompts", f"{made.prompts:,}", f"{settings.images.per_prompt} images each")
    table.add_row(
        "LLM tokens",
        f"{made.tokens_in + made.tokens_out:,}",
        f"{made.tokens_in:,} in, {made.tokens_out:,} out",
    )
    table.add_row("time", _duration(made.hours), shown(made.sources["time"]))
    fetch = f"and {readable(made.to_fetch)} of models to fetch" if made.to_fetch else "all models are here"
    table.add_row("disk", readable(made.disk), fetch)
    table.add_row("GPU memory", readable(made.gpu), "at its fullest, an estimate" if made.gpu else "none")
    table.add_row(
        "dollars",
        f"{made.usd:.2f}",
        "at the prices in the config" if made.usd else "no prices, or no paid model",
    )
    out.print(table)


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{max(1, round(60 * hours))} min"
