"""`segsmith augment`: a real dataset enlarged by generated images (IAA)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from segsmith.commands.build import run_build
from segsmith.commands.console import app, err, out, quiet_libraries
from segsmith.commands.options import (
    ConfigFile,
    MaxHours,
    MaxImages,
    MaxUsd,
    Memory,
    Offline,
    PresetChoice,
    Seed,
    Step,
    flags_of,
)
from segsmith.errors import SegsmithError
from segsmith.terminal_text import shown

SHOWN = 8
"""Skipped files and rare pairs printed; the rest is counted."""
ENOUGH = 0.75
"""Real share of a training that a warning aims at."""


@app.command()
def augment(
    dataset: Annotated[
        Path, typer.Option(help="the real dataset: VOC, COCO, a folder of images per class, and others")
    ],
    add_per_class: Annotated[
        int, typer.Option(help="generated images to add per class, on average; rare classes get more")
    ],
    out_dir: Annotated[
        Path, typer.Option("--out", help="run folder; the same folder goes on where it stopped")
    ],
    preset: PresetChoice = None,
    config: ConfigFile = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="any setting, e.g. --set augment.balance=1")
    ] = None,
    seed: Seed = None,
    memory: Memory = None,
    max_images: MaxImages = None,
    max_hours: MaxHours = None,
    max_usd: MaxUsd = None,
    offline: Offline = False,
    step: Step = False,
) -> None:
    """Find what a real dataset lacks, add generated images, and train on both.

    The real images keep their labels and masks; every image says whether it is real or generated.
    """
    quiet_libraries()
    from segsmith.commands.models import chosen_preset, pull_missing
    from segsmith.config import load_config
    from segsmith.workflows.augment import plan_enlargement

    if add_per_class < 1:
        raise SegsmithError(
            f"--add-per-class {add_per_class} adds nothing.", "Type a number of at least 1, e.g. 40."
        )
    flags = flags_of(
        set_,
        {"per_class": add_per_class, "seed": seed},
        memory=memory,
        offline=offline,
        caps={"max_images": max_images, "max_hours": max_hours, "max_usd": max_usd},
    )
    preset, why = chosen_preset(preset or "auto", offline, out_dir)
    with out.status("looking through the dataset"):
        plan = plan_enlargement(load_config(preset=preset, file=config, flags=flags), dataset, out_dir)
    if plan.config.images.backend == "simulator":
        from segsmith.tools.images.simulator import check_drawable

        check_drawable(plan.config.classes)
    _show(plan)
    _say_what_training_shows(plan)
    if why:
        out.print(f"preset [b]{preset}[/b]: {shown(why)}", soft_wrap=True)
    pull_missing(plan.config)
    run_build(plan.config, out_dir, step=step, prepare=plan.prepare)


def _show(plan: Any) -> None:
    """What was found, what was left out, and what is to be added."""
    for problem in plan.real.skipped[:SHOWN]:
        err.print(f"[yellow]skipped[/yellow] {shown(problem)}", soft_wrap=True)
    if len(plan.real.skipped) > SHOWN:
        err.print(f"... and {len(plan.real.skipped) - SHOWN} more skipped")
    splits = [image.split for image in plan.real.images]
    counts = ", ".join(f"{split} {splits.count(split)}" for split in dict.fromkeys(splits))
    masks = "with label maps" if any(i.masked for i in plan.real.images) else "with image labels alone"
    out.print(f"{len(splits)} real images ({counts}), {masks}; {len(plan.real.skipped)} skipped")
    table = Table(box=None, pad_edge=False)
    for heading in ("class", "real, train", "to add"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, count in plan.have.items():
        table.add_row(shown(name), str(count), str(plan.config.wanted[name]))
    out.print(table)
    never = [f"{a} + {b}" for a, b, count in plan.rare if not count]
    if never:
        more = f" and {len(never) - SHOWN} more" if len(never) > SHOWN else ""
        out.print(f"never seen together: {shown(', '.join(never[:SHOWN]))}{more}", soft_wrap=True)


def _say_what_training_shows(plan: Any) -> None:
    """How much of the training is real; a warning where that leaves the generated images no time."""
    from segsmith.segmentation.recipe import real_share

    n_real = sum(image.split == "train" for image in plan.real.images)
    n_added = sum(plan.config.wanted.values())
    trainer = plan.config.trainer
    share = real_share(trainer, [True] * n_real + [False] * n_added)
    if share < 1:
        out.print(f"training: at least {share:.0%} of what is shown is real")
        return
    enough = math.ceil(trainer.real_passes * n_real / (n_real + n_added) / ENOUGH)
    out.print(
        f"[yellow]In {trainer.epochs} epochs the real images are seen fewer than {trainer.real_passes} times, so the "
        f"segmenter is trained on them alone. --set trainer.epochs={enough} leaves generated ones "
        f"{1 - ENOUGH:.0%}.[/yellow]",
        soft_wrap=True,
    )
