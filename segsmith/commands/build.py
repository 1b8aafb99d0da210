"""`segsmith build`, `augment` and `plan`: a dataset and a segmenter, from a class list or a real dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from segsmith.commands.console import (
    app,
    busy,
    command_line,
    out,
    parts_of_this_call,
    print_json,
    quiet_libraries,
    readable,
    screen,
    settings_of,
)
from segsmith.commands.options import (
    Address,
    AsJson,
    Classes,
    ConfigFile,
    Engine,
    Lock,
    MaxHours,
    MaxImages,
    MaxUsd,
    Memory,
    Offline,
    PerClass,
    Preset,
    Seed,
    Set,
    Step,
    UnitTimeout,
    Workers,
)
from segsmith.commands.summary import print_summary
from segsmith.terminal_text import shown

if TYPE_CHECKING:
    from segsmith.tools.gpu_plan import GpuPlan


@app.command()
def build(
    classes: Classes = "",
    out_dir: Annotated[
        Path,
        typer.Option(
            "--out",
            help="run folder, or a URL such as s3://bucket/run; the same command resumes a run that stopped",
        ),
    ] = Path("runs/run"),
    per_class: PerClass = None,
    preset: Preset = None,
    config: ConfigFile = None,
    set_: Set = None,
    seed: Seed = None,
    memory: Memory = None,
    max_images: MaxImages = None,
    offline: Offline = False,
    max_hours: MaxHours = None,
    max_usd: MaxUsd = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN.TOML", help="build with the settings of another run"),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust", help="also take the programs, servers and folders that the file of --from names"
        ),
    ] = False,
    step: Step = False,
    lock: Lock = "auto",
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    unit_timeout: UnitTimeout = None,
) -> None:
    """Build a dataset from a class list, and train a segmenter on it.

    The stages: write prompts, draw, judge, relabel, segment, export, train, evaluate. Rerun the command to resume; no
    work is repeated. A finished run grows with a larger --per-class, or with more names at the end of --classes.
    """
    quiet_libraries()
    with busy("loading"):
        from segsmith.workflows.build import build as run_build

    print_summary(
        run_build(
            classes,
            out_dir,
            per_class=per_class,
            preset=preset,
            config=config,
            settings=settings_of(set_),
            from_run=from_,
            trust=trust,
            seed=seed,
            memory=memory,
            max_images=max_images,
            max_hours=max_hours,
            max_usd=max_usd,
            offline=offline,
            step=step,
            engine=engine,
            address=address,
            workers=workers,
            unit_timeout_s=unit_timeout,
            screen=screen(),
            parts=parts_of_this_call.get(),
            command=command_line(),
        )
    )


@app.command()
def augment(
    dataset: Annotated[
        Path, typer.Option(help="the real dataset: VOC, COCO, a folder of images per class, and others")
    ],
    add_per_class: Annotated[
        int, typer.Option(help="generated images to add per class, on average; rare classes get more")
    ],
    out_dir: Annotated[
        Path, typer.Option("--out", help="run folder; the same command resumes a run that stopped")
    ],
    allow_simulator: Annotated[
        bool,
        typer.Option(
            "--allow-simulator", help="let the simulator add its cartoons to images that are not its own"
        ),
    ] = False,
    preset: Preset = None,
    config: ConfigFile = None,
    set_: Set = None,
    seed: Seed = None,
    memory: Memory = None,
    max_images: MaxImages = None,
    max_hours: MaxHours = None,
    max_usd: MaxUsd = None,
    offline: Offline = False,
    step: Step = False,
    lock: Lock = "auto",
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    unit_timeout: UnitTimeout = None,
) -> None:
    """Find what a real dataset lacks, add generated images, and train on both.

    Real images keep their labels and masks; every image of the result is marked as real or generated.
    """
    quiet_libraries()
    with busy("loading"):
        from segsmith.workflows.augment import augment as run_augment

    print_summary(
        run_augment(
            dataset,
            out_dir,
            add_per_class=add_per_class,
            allow_simulator=allow_simulator,
            preset=preset,
            config=config,
            settings=settings_of(set_),
            seed=seed,
            memory=memory,
            max_images=max_images,
            max_hours=max_hours,
            max_usd=max_usd,
            offline=offline,
            step=step,
            engine=engine,
            address=address,
            workers=workers,
            unit_timeout_s=unit_timeout,
            screen=screen(),
            parts=parts_of_this_call.get(),
            command=command_line(),
        )
    )


@app.command()
def plan(
    classes: Classes = "",
    per_class: PerClass = None,
    preset: Preset = None,
    offline: Offline = False,
    config: ConfigFile = None,
    set_: Set = None,
    like: Annotated[Path | None, typer.Option(help="take time and yield from this finished run")] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(help="plan for a card of this many GiB, in detail", min=1)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate images, LLM tokens, hours, disk, GPU memory and dollars of a build. Nothing is drawn or fetched."""
    quiet_libraries()
    with busy("loading"):
        from segsmith.workflows.estimate import plan_build

    estimate = plan_build(
        classes,
        per_class=per_class,
        preset=preset,
        config=config,
        settings=settings_of(set_),
        offline=offline,
        like=like,
        gpu_memory=gpu_memory,
        screen=screen(as_json),
    )
    if as_json:
        print_json(estimate)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    table.add_row(
        "images to draw",
        f"{estimate.images:,}",
        f"for {estimate.wanted:,} accepted images: {shown(estimate.sources['yield'])}",
    )
    table.add_row("prompts", f"{estimate.prompts:,}", f"{estimate.images_per_prompt} images each")
    table.add_row(
        "LLM tokens",
        f"{estimate.tokens_in + estimate.tokens_out:,}",
        f"{estimate.tokens_in:,} in, {estimate.tokens_out:,} out",
    )
    table.add_row("training", estimate.training, "of the segmenter")
    table.add_row("time", _duration(estimate.hours), shown(estimate.sources["time"]))
    fetch = (
        f"and {readable(estimate.to_fetch)} of models to fetch"
        if estimate.to_fetch
        else "all models are on this machine"
    )
    table.add_row("disk", readable(estimate.disk), fetch)
    table.add_row("GPU memory", readable(estimate.gpu), "estimated maximum" if estimate.gpu else "none")
    table.add_row(
        "dollars",
        f"{estimate.usd:.2f}",
        "at the prices in the config" if estimate.usd else "no prices set, or no paid model",
    )
    out.print(table)
    if estimate.gpu_plans:
        out.print("")
        _print_gpu(estimate.gpu_plans)


def _print_gpu(plans: Mapping[float, GpuPlan]) -> None:
    """The stages of a run in order, with the GiB that each takes on cards of several sizes."""
    from segsmith.device_memory import GIB
    from segsmith.tools.gpu_plan import GpuStage

    table = Table(box=None, pad_edge=False)
    table.add_column("GPU memory, GiB")
    for card in plans:
        table.add_column(f"{card:g} GiB", justify="right")
    for stage in GpuStage:
        cells = [plan.of(stage) for plan in plans.values()]
        table.add_row(
            stage.value,
            *(
                "-" if cell is None else f"{cell.size / GIB:.1f}{f' x{cell.batch}' if cell.batch else ''}"
                for cell in cells
            ),
        )
    out.print(table)
    out.print("[dim]x8: 8 images at once[/dim]")
    for card, plan in plans.items():
        if plan.problem:
            out.print(f"{card:g} GiB: {shown(plan.problem)} {shown(plan.remedy)}", soft_wrap=True)
            continue
        notes = ["LLM and image model take turns"] if plan.alternates else []
        notes += [f"images.offload = {plan.offload}"] if plan.offload != "none" else []
        notes += [f"vLLM's share {plan.llm_share:.2f}"] if plan.llm_share else []
        out.print(f"{card:g} GiB: {', '.join(notes) or 'everything stays loaded'}", soft_wrap=True)
        if len(plans) == 1:
            for stage_plan in plan.stages:
                loads = ", ".join(f"{part.value} {size / GIB:.1f}" for part, size in stage_plan.loads)
                out.print(f"  {stage_plan.stage.value:14} {loads}", soft_wrap=True)


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{max(1, round(60 * hours))} min"
