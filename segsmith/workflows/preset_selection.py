"""`--preset auto`: which preset this machine can run, and why. It never picks one that costs money."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segsmith.config import Config, LLMConfig, cache_dir, load_config
from segsmith.errors import SegsmithError
from segsmith.memory.run_config import read_record
from segsmith.memory.run_folder import RunFolder
from segsmith.tools.gpu_plan import plan_gpu
from segsmith.tools.llm.vllm import vllm_version
from segsmith.tools.machine import Machine, hub_answers, look
from segsmith.tools.weights.catalogue import GB
from segsmith.tools.weights.model_requirements import requirements_of
from segsmith.tools.weights.store import find

SPARE_DISK = 2 * GB
"""Disk space that a run needs beside its models, in bytes."""


@dataclass(frozen=True)
class Choice:
    """A preset, and why it was picked; `why` is "" for a preset that the user or an existing run names."""

    preset: str
    why: str


def pick(
    preset: str | None,
    *,
    offline: bool = False,
    run: Path | None = None,
    configs: Callable[[str], Config] | None = None,
) -> Choice:
    """The preset to use; None and "auto" leave it to the existing run folder `run`, else to this machine.

    An existing run keeps its own preset, so that the same command resumes it on any day.
    """
    if preset not in (None, "auto"):
        return Choice(preset, "")
    if run is not None and (record := RunFolder(run).config).is_file():
        return Choice(read_record(record).asked.preset, "")
    return choose(look(cache_dir()), offline=offline, configs=configs or _preset)


def _preset(name: str) -> Config:
    return load_config(preset=name)


def choose(
    machine: Machine,
    *,
    offline: bool = False,
    hub: Callable[[], bool] = hub_answers,
    configs: Callable[[str], Config] = _preset,
) -> Choice:
    """The best preset for a machine.

    ``gpu`` needs a large enough GPU, and its model files on disk or a hub that answers; ``cpu`` needs its model files
    on disk, since they are large; everything else gets ``sim``. The hub is asked at most once, and only for a machine
    with such a GPU. `configs` makes the config of a preset, with the settings that the user passes.
    """
    gpu = max(machine.gpus, key=lambda g: g.total, default=None)
    if gpu is not None:
        plan = plan_gpu(configs("gpu"), gpu.total)
        if not plan.problem and plan.offload == "none":
            return _with_gpu(f"{gpu.name} with {gpu.total / GB:.0f} GB", machine, offline, hub, configs)
    if present(configs("cpu")):
        return Choice("cpu", "no large enough GPU, and the cpu preset's models are on this machine")
    if gpu is not None:
        seen = f"{gpu.name} has {gpu.total / GB:.0f} GB, too little for the gpu preset (segsmith plan --preset gpu)"
    else:
        seen = "no GPU"
    return Choice("sim", f"{seen}, and no models were pulled, so a simulator draws the images")


def vllm_problem(llm: LLMConfig) -> str:
    """Why vLLM cannot be run, in its own environment or this one; "" if it can."""
    if llm.server != "vllm":
        return ""
    try:
        vllm_version(llm)
    except SegsmithError as error:
        return str(error)
    return ""


def _to_fetch(config: Config) -> int:
    return sum(n.facts.size for n in requirements_of(config) if n.facts and find(n) is None)


def _with_gpu(
    seen: str, machine: Machine, offline: bool, hub: Callable[[], bool], configs: Callable[[str], Config]
) -> Choice:
    config = configs("gpu")
    if problem := vllm_problem(config.llm):
        why = f"{seen}, but the gpu preset needs vLLM: {problem}"
    elif present(config):
        return Choice("gpu", f"{seen}, and the models are on this machine")
    elif machine.free_disk < (needed := _to_fetch(config) + SPARE_DISK):
        free = f"{machine.free_disk / GB:.0f} GB"
        why = f"{seen}, but its models need {needed / GB:.0f} GB of disk and {free} are free"
    elif offline:
        why = f"{seen}, but its models are not on this machine and nothing may be fetched"
    elif not hub():
        why = f"{seen}, but its models are not on this machine and the hub does not answer"
    else:
        return Choice("gpu", f"{seen}, and the hub answers")
    if present(configs("cpu")):
        return Choice("cpu", f"{why}; the cpu preset's models are on this machine")
    return Choice("sim", f"{why}, so a simulator draws the images")


def present(config: Config) -> bool:
    """Whether all model files of a config are on this machine."""
    return all(find(need) is not None for need in requirements_of(config))
