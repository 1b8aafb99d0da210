"""`--preset auto`: which preset this machine can run, and why. It never picks one that costs money."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segsmith.config import cache_dir, load_config
from segsmith.memory.run_config import read_record
from segsmith.memory.run_folder import RunFolder
from segsmith.tools.machine import Machine, hub_answers, installed, look
from segsmith.tools.weights.catalogue import GB
from segsmith.tools.weights.model_requirements import requirements_of
from segsmith.tools.weights.store import find

GPU_PRESET_BYTES = 20 * GB
"""GPU memory that the gpu preset needs: the LLM's share beside SDXL and CLIP."""
GPU_PRESET_DISK = 20 * GB


@dataclass(frozen=True)
class Choice:
    """A preset, and why it was picked; `why` is "" for a preset that the user or an existing run names."""

    preset: str
    why: str


def pick(preset: str | None, *, offline: bool = False, run: Path | None = None) -> Choice:
    """The preset to use; None and "auto" leave it to the existing run folder `run`, else to this machine.

    An existing run keeps its own preset, so that the same command resumes it on any day.
    """
    if preset not in (None, "auto"):
        return Choice(preset, "")
    if run is not None and (record := RunFolder(run).config).is_file():
        return Choice(read_record(record).asked.preset, "")
    return choose(look(cache_dir()), offline=offline)


def choose(machine: Machine, *, offline: bool = False, hub: Callable[[], bool] = hub_answers) -> Choice:
    """The best preset for a machine.

    ``gpu`` needs a large enough GPU, and its model files on disk or a hub that answers; ``cpu`` needs its model files
    on disk, since they are large; everything else gets ``sim``. The hub is asked at most once, and only for a machine
    with such a GPU.
    """
    gpu = max(machine.gpus, key=lambda g: g.total, default=None)
    if gpu is not None and gpu.total >= GPU_PRESET_BYTES:
        return _with_gpu(f"{gpu.name} with {gpu.total / GB:.0f} GB", machine, offline, hub)
    if present("cpu"):
        return Choice("cpu", "no large enough GPU, and the cpu preset's models are on this machine")
    if gpu is not None:
        seen = f"{gpu.name} has {gpu.total / GB:.0f} GB, and the gpu preset needs {GPU_PRESET_BYTES // GB} GB"
    else:
        seen = "no GPU"
    return Choice("sim", f"{seen}, and no models were pulled, so a simulator draws the images")


def _with_gpu(seen: str, machine: Machine, offline: bool, hub: Callable[[], bool]) -> Choice:
    if not installed("vllm"):
        why = f"{seen}, but vLLM is not installed (pip install 'segsmith[vllm]' for the gpu preset)"
    elif present("gpu"):
        return Choice("gpu", f"{seen}, and the models are on this machine")
    elif machine.free_disk < GPU_PRESET_DISK:
        free = f"{machine.free_disk / GB:.0f} GB"
        why = f"{seen}, but its models need {GPU_PRESET_DISK // GB} GB of disk and {free} are free"
    elif offline:
        why = f"{seen}, but its models are not on this machine and nothing may be fetched"
    elif not hub():
        why = f"{seen}, but its models are not on this machine and the hub does not answer"
    else:
        return Choice("gpu", f"{seen}, and the hub answers")
    if present("cpu"):
        return Choice("cpu", f"{why}; the cpu preset's models are on this machine")
    return Choice("sim", f"{why}, so a simulator draws the images")


def present(preset: str) -> bool:
    """Whether all model files of a preset are on this machine."""
    return all(find(need) is not None for need in requirements_of(load_config(preset=preset)))
