"""`--preset auto`: which preset this machine can run, and why. Never one that costs money."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from segsmith.config import load_config
from segsmith.tools.machine import Machine, hub_answers, installed
from segsmith.tools.weights.hub import find
from segsmith.tools.weights.model_requirements import needs_of

GB = 1_000_000_000
GPU_PRESET_BYTES = 20 * GB
"""GPU memory the gpu preset needs: its language model's share beside SDXL and CLIP."""
GPU_PRESET_DISK = 20 * GB


@dataclass(frozen=True)
class Choice:
    """A preset and one line about it."""

    preset: str
    why: str


def choose(machine: Machine, *, offline: bool = False, hub: Callable[[], bool] = hub_answers) -> Choice:
    """gpu on a large enough GPU with its files here or the hub in reach; cpu where its files have been
    fetched on purpose; else sim. The hub is looked at once at most, and only for a machine with such a GPU.
    """
    gpu = max(machine.gpus, key=lambda g: g.total, default=None)
    if gpu is not None and gpu.total >= GPU_PRESET_BYTES:
        return _with_gpu(f"{gpu.name} with {gpu.total / GB:.0f} GB", machine, offline, hub)
    if present("cpu"):
        return Choice("cpu", "no large enough GPU, and the cpu preset's models are here")
    if gpu is not None:
        seen = f"{gpu.name} has {gpu.total / GB:.0f} GB, the gpu preset needs {GPU_PRESET_BYTES // GB}"
    else:
        seen = "no GPU"
    return Choice("sim", f"{seen}, and no models were pulled, so a simulator draws the pictures")


def _with_gpu(seen: str, machine: Machine, offline: bool, hub: Callable[[], bool]) -> Choice:
    if not installed("vllm"):
        why = f"{seen}, but vLLM is not installed (pip install 'segsmith[vllm]' for the gpu preset)"
    elif present("gpu"):
        return Choice("gpu", f"{seen}, and the models are here")
    elif machine.free_disk < GPU_PRESET_DISK:
        why = f"{seen}, but only {machine.free_disk / GB:.0f} GB of disk for {GPU_PRESET_DISK // GB} GB of models"
    elif offline or not hub():
        why = f"{seen}, but its models are not here and the hub is out of reach"
    else:
        return Choice("gpu", f"{seen}, and the hub is in reach")
    if present("cpu"):
        return Choice("cpu", f"{why}; the cpu preset's models are here")
    return Choice("sim", f"{why}, so a simulator draws the pictures")


def present(preset: str) -> bool:
    """Are all of a preset's model files on this machine?"""
    return all(find(need) is not None for need in needs_of(load_config(preset=preset)))
