"""Whether this machine can run a config, and if not, what to do (`segsmith doctor`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from pydantic import BaseModel, Field

from segsmith.config import Config, api_key, cache_dir
from segsmith.errors import BadReply, SegsmithError
from segsmith.tools.gpu_plan import plan_gpu
from segsmith.tools.http import is_loopback
from segsmith.tools.llm.vllm import vllm_version
from segsmith.tools.machine import Machine, hub_answers, look
from segsmith.tools.weights.catalogue import GB, ModelRequirement, Role
from segsmith.tools.weights.hub import go_offline
from segsmith.tools.weights.model_requirements import requirements_of
from segsmith.tools.weights.store import find

FETCHED = ("hub", "url")

MIN_MEMORY = 4 * GB
BASE_MEMORY = int(2.5 * GB)
"""Main memory of Python, torch and one batch of activations, in bytes (ours)."""
SMALL = 100_000_000
"""Bytes of a model that make no difference to what a machine needs."""
RUN_DISK = 2 * GB
"""Disk space for the images and checkpoints of a small run, in bytes."""


@dataclass(frozen=True)
class Line:
    """The result of one check. A check that passes may have a `remedy`, too, where something could be better."""

    what: str
    ok: bool
    found: str
    remedy: str = ""


def examine(config: Config) -> Iterator[Line]:
    """The checks one after the other; the slow one, a question to the LLM, comes last."""
    if config.offline:
        go_offline()
    machine = look(cache_dir())
    needs = requirements_of(config)
    missing = [need for need in needs if find(need) is None]
    yield _python()
    yield _torch()
    yield _gpu(config, machine)
    yield _memory(config, machine)
    yield _disk(machine, sum(n.facts.size if n.facts else 0 for n in missing))
    # The hub is asked once for all models. A missing model that `build` can fetch is not an error.
    reachable = any(n.kind in FETCHED for n in missing) and not config.offline and hub_answers()
    for need in needs:
        yield _model(need, need in missing, reachable, config.preset)
    yield _language_model(config, here=not any(n.role == "llm" for n in missing))


def _model(need: ModelRequirement, missing: bool, reachable: bool, preset: str) -> Line:
    if need.kind == "service":
        return Line(need.role, True, f"{need.name} at {need.source}")
    if not missing:
        if need.role == "judge":
            from segsmith.tools.vision.clip_config import check_clip

            try:
                check_clip(need.name)
            except SegsmithError as error:
                return Line(need.role, False, error.message, error.remedy)
        return Line(need.role, True, f"{need.name} ({need.kind})")
    if need.kind == "file":
        return Line(need.role, False, f"{need.source} does not exist", "Name a file or folder that exists.")
    remedy = f"Type: segsmith models pull --preset {preset}"
    if need.kind in FETCHED and reachable:
        return Line(need.role, True, f"{need.name} is not on this machine; build fetches it", remedy)
    unreachable = ", and the hub does not answer" if need.kind in FETCHED else ""
    return Line(need.role, False, f"{need.name} is not on this machine{unreachable}", remedy)


def _python() -> Line:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    return Line("python", ok, version, "" if ok else "Install Python 3.11 or newer.")


def _torch() -> Line:
    """torch is imported only here, because one that cannot be imported is among the things to report."""
    try:
        import torch
        import torchvision  # noqa: F401

        from segsmith.devices import choose_device
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        return Line(
            "torch", False, f"cannot be imported: {reason:.100}", "Type: pip install torch torchvision"
        )
    return Line("torch", True, f"{torch.__version__}, computes on {choose_device()}")


def _gpu(config: Config, machine: Machine) -> Line:
    if not machine.gpus:
        wanted = config.images.backend == "diffusion" and config.preset != "cpu"
        remedy = "Use a machine with an NVIDIA GPU and its driver, or --preset cpu, hosted or sim."
        return Line("gpu", not wanted, "none", remedy if wanted else "")
    best = max(machine.gpus, key=lambda gpu: gpu.total)
    found = f"{best.name}, {best.free / GB:.0f} of {best.total / GB:.0f} GB free"
    plan = plan_gpu(config, best.total, best.free)
    if plan.problem:
        return Line("gpu", False, f"{found}. {plan.problem}", f"Stop other programs on it. {plan.remedy}")
    needed = max((stage.size for stage in plan.stages), default=0)
    found += f", {needed / GB:.0f} GB needed"
    if plan.alternates:
        return Line("gpu", True, f"{found}; the language model and the image model take turns")
    return Line("gpu", True, found)


def memory_bytes(config: Config, *, gpu: bool) -> int:
    """Main memory that a config needs, in bytes. On a CPU models compute in float32, twice their files' size."""
    size = dict.fromkeys(get_args(Role), 0)
    for need in requirements_of(config):  # of a mixture's models, one is loaded at a time
        size[need.role] = max(size[need.role], need.facts.size if need.facts else 0)
    needed = BASE_MEMORY + (size["llm"] if config.llm.server == "llamacpp" else 0)
    if not gpu:
        needed += 2 * size["images"] if config.images.backend == "diffusion" else 0
        needed += size["judge"] if size["judge"] > SMALL else 0
    return max(MIN_MEMORY, needed)


def _memory(config: Config, machine: Machine) -> Line:
    needed = memory_bytes(config, gpu=bool(machine.gpus))
    found = f"{machine.memory / GB:.0f} GB, {machine.cores} cores, {-(-needed // GB)} GB needed"
    if machine.memory >= needed:
        return Line("memory", True, found)
    return Line("memory", False, found, "Use a machine with more memory, or smaller models (docs/models.md).")


def _disk(machine: Machine, to_fetch: int) -> Line:
    wanted = to_fetch + RUN_DISK
    found = f"{machine.free_disk / GB:.0f} GB free, {wanted / GB:.0f} GB needed, with models to fetch"
    if machine.free_disk >= wanted:
        return Line("disk", True, found)
    return Line("disk", False, found, "Free space, or set SEGSMITH_CACHE and HF_HOME to another disk.")


class _Answer(BaseModel):
    number: int = Field(ge=0, le=9)


def _language_model(config: Config, here: bool) -> Line:
    """Ask the LLM one short question. vLLM takes minutes to start, so for that only the package is checked."""
    if config.llm.server == "vllm":
        try:
            version = vllm_version(config.llm)
        except SegsmithError as error:
            return Line("answers", False, error.message, error.remedy)
        return Line("answers", True, f"vLLM {version} is installed (not started)")
    if not here:
        return Line("answers", False, "not asked: the model file is missing")
    if config.offline and config.llm.server == "openai" and not is_loopback(config.llm.base_url):
        return Line(
            "answers",
            False,
            "not asked, because of --offline",
            "Leave --offline out, or name a local server.",
        )
    from segsmith.tools.llm.chat import open_chat

    started = time.monotonic()
    try:
        with open_chat(config.llm, api_key=api_key()) as chat:
            chat.ask("You answer in JSON.", "Name a number from 0 to 9.", _Answer, seed=0)
    except SegsmithError as error:
        return Line("answers", False, error.message, error.remedy)
    except BadReply:
        return Line(
            "answers",
            False,
            "answers, but not in the requested schema",
            "Name a model that can follow a JSON schema.",
        )
    return Line("answers", True, f"{config.llm.model} answered in {time.monotonic() - started:.1f} s")
