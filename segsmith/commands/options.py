"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segsmith.errors import SegsmithError
from segsmith.locks import set_lock_mode

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
RunArgument = Annotated[Path, typer.Argument(help="a run folder")]
Preset = Annotated[
    str | None,
    typer.Option(
        show_default="auto", help="which models to use: auto, sim, cpu, gpu or hosted (see docs/models.md)"
    ),
]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML file of settings; flags win over it")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="any setting, e.g. judge.top_k=3; may be repeated"),
]
TrainerSet = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="a trainer setting, e.g. trainer.epochs=40; may be repeated"
    ),
]
Classes = Annotated[str, typer.Option(help="class names, separated by commas, e.g. cat,dog,bus")]
PerClass = Annotated[int | None, typer.Option(help="accepted images wanted of each class")]
Seed = Annotated[int | None, typer.Option(help="another seed gives other prompts and images")]
Memory = Annotated[
    Path | None, typer.Option(help="folder of a prompt memory that several runs share; default: in --out")
]
MaxImages = Annotated[int | None, typer.Option(help="draw at most this many images")]
MaxHours = Annotated[
    float | None, typer.Option(help="write and draw for at most this many hours, over all sessions")
]
MaxUsd = Annotated[float | None, typer.Option(help="spend at most this many US dollars on hosted models")]
Offline = Annotated[bool, typer.Option("--offline", help="fetch nothing; a missing model is an error")]
Engine = Annotated[
    str,
    typer.Option(
        help="local: all work in this process; ray: images, labels and masks on the GPUs of a cluster"
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="ray: auto, host:port or ray://host:port of a running cluster; default: start Ray here"
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="ray: at most this many workers; default: one for each GPU, or else for each CPU but one"
    ),
]
TrainEngine = Annotated[
    str, typer.Option(help="local: train in this process; ray: in one process for each GPU of a cluster")
]
TrainWorkers = Annotated[
    int | None,
    typer.Option(
        help="ray: number of processes, which must divide trainer.batch_size; default: one for each GPU, or else "
        "for each CPU but one"
    ),
]
ExportEngine = Annotated[
    str,
    typer.Option(help="local: in this process, with a thread for each CPU; ray: on the CPUs of a cluster"),
]
UnitTimeout = Annotated[
    float | None,
    typer.Option(
        help="ray: seconds that a worker may take for a unit of images before it is replaced; "
        "default: 8 times the median"
    ),
]


ELSEWHERE = {
    "rejudge": "; workers make the masks with segsmith build --out RUN --engine ray",
}
"""Command that works in one process -> what is done on several GPUs instead."""


def _reject_engine(context: typer.Context, given: str) -> str:
    if given != "local":
        command = context.info_name or ""
        raise SegsmithError(
            f"segsmith {command} works in one process.",
            f"Leave out --engine, --address and --workers{ELSEWHERE.get(command, '')}.",
        )
    return given


OneProcess = Annotated[
    str, typer.Option("--engine", "--address", "--workers", hidden=True, callback=_reject_engine)
]
"""Options of an engine, for a command without one: an error that says what to type, and not "no such option"."""
Step = Annotated[
    bool, typer.Option("--step", help="pause at prompts, verdicts, labels and masks, and ask you")
]


def _set_lock_mode(mode: str) -> str:
    set_lock_mode(mode)
    return mode


Lock = Annotated[
    str,
    typer.Option(
        "--lock",
        metavar="auto|file|none",
        callback=_set_lock_mode,
        help="how the folder is locked against other processes: auto (the file system's lock; where there is none, "
        "as file), file (a file that one process at a time can create, for folders that several machines share) or "
        "none (you make sure that no other process uses the folder)",
    ),
]
"""Takes effect when it is parsed (`set_lock_mode`), so that the command itself has nothing to do with it."""
