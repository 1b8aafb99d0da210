"""Where the work on images is done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal, get_args

from segsmith.errors import SegsmithError

EngineName = Literal["local", "ray"]


@dataclass(frozen=True)
class EngineOptions:
    """Where the work on images is done. None of it changes a result, so a run may resume with other options."""

    name: EngineName = "local"
    """local: in this process; ray: by actors of a Ray cluster."""
    address: str | None = None
    """ray: "auto", "host:port" or "ray://host:port" of a running cluster; None starts Ray on this machine."""
    workers: int | None = None
    """ray: number of actors at most; None: one for each GPU, or without GPUs one for each CPU but one."""
    unit_timeout_s: float | None = None
    """ray: seconds after which a unit is given to another worker; None: a multiple of what units have taken."""


def engine_options(
    engine: str | EngineOptions = "local",
    address: str | None = None,
    workers: int | None = None,
    unit_timeout_s: float | None = None,
) -> EngineOptions:
    """The options that a user named. Raises `SegsmithError` for those that do not fit together."""
    given = engine if isinstance(engine, EngineOptions) else None
    name = engine if given is None else given.name
    if name not in get_args(EngineName):
        raise SegsmithError(f"There is no engine {name!r}.", "Type --engine local or --engine ray.")
    if name == "local" and (address, workers, unit_timeout_s) != (None, None, None):
        raise SegsmithError(
            "--address, --workers and --unit-timeout are options of --engine ray.",
            "Type --engine ray, or leave them out.",
        )
    if workers is not None and workers < 1:
        raise SegsmithError(f"--workers {workers} leaves nobody to work.", "Type a number of at least 1.")
    if unit_timeout_s is not None and not unit_timeout_s > 0:
        raise SegsmithError(
            f"--unit-timeout {unit_timeout_s:g} leaves no time to work.",
            "Type a number of seconds, e.g. 600.",
        )
    if name == "ray" and find_spec("ray") is None:
        raise SegsmithError(
            "Ray is not installed.", 'Type: pip install "segsmith[ray]", or leave out --engine ray.'
        )
    options = given or EngineOptions("ray" if name == "ray" else "local")
    return replace(
        options,
        address=address or options.address,
        workers=workers or options.workers,
        unit_timeout_s=unit_timeout_s or options.unit_timeout_s,
    )
