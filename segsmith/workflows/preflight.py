"""Checks before a run starts, so that whatever is missing is reported at once."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from segsmith.config import Config, api_key, cache_dir
from segsmith.engine.options import EngineOptions
from segsmith.errors import SegsmithError
from segsmith.files import local_folder
from segsmith.tools.gpu_plan import plan_gpu
from segsmith.tools.machine import Machine, look
from segsmith.tools.weights.catalogue import GB
from segsmith.tools.weights.model_requirements import requirements_of
from segsmith.tools.weights.store import find

TRACING = ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING", "LANGCHAIN_TRACING_V2")
"""Environment variables with which LangGraph sends every step of a run to LangSmith."""


def check_classes(config: Config) -> list[str]:
    """Check the class list, and return warnings about it.

    Raises `SegsmithError` where there is no class, or one that the simulator cannot draw.
    """
    if not config.classes:
        raise SegsmithError("No classes are named.", "Type --classes cat,dog,bus")
    if config.images.backend != "simulator":
        return []
    from segsmith.tools.images.simulator import check_drawable, untaught

    check_drawable(config.classes)
    unknown = untaught(config.classes) if config.judge.clip == "mini" else ()
    if not unknown:
        return []
    return [f"The mini CLIP was not trained on {', '.join(unknown)}; expect few accepted images of them."]


def check_engine(config: Config, engine: EngineOptions) -> None:
    """Raise `SegsmithError` where an engine cannot do what the settings ask for."""
    if engine.name == "local":
        return
    if config.images.backend == "hosted":
        raise SegsmithError(
            "Images of a hosted model are requested from one process.",
            "Leave out --engine ray, and raise images.hosted.concurrency instead.",
        )
    if config.images.filter.enabled:
        raise SegsmithError(
            "The online filter needs --engine local: it counts good previews over a whole round.",
            "Set images.filter.enabled = false, or leave out --engine ray.",
        )


def check_cluster(engine: EngineOptions) -> None:
    """Connect to the cluster at the engine's address; its workers start without waiting then.

    Raises `SegsmithError` where none answers.
    """
    from segsmith.engine.ray import connect

    connect(engine)


def check_witnesses(config: Config) -> None:
    """Check that the witnesses can be asked; a detector is loaded once, in main memory.

    Raises `SegsmithError` that names what to type.
    """
    witnesses = config.witnesses
    for setting, value in (
        ("detector", witnesses.detector), ("vlm", witnesses.vlm), ("attention", witnesses.attention),
    ):  # fmt: skip
        if value == "simulated" and config.images.backend != "simulator":
            raise SegsmithError(
                f"witnesses.{setting} is 'simulated', and images.backend is not the simulator.",
                f"Set witnesses.{setting} = 'off', or name a model.",
            )
    if witnesses.detector not in ("off", "simulated"):
        from segsmith.tools.vision.detector import open_detector

        on_cpu = config.compute.model_copy(update={"device": "cpu"})
        open_detector(config.model_copy(update={"compute": on_cpu}))
    if witnesses.attention == "generator":
        from segsmith.tools.images.attention import check_attention

        check_attention(config)


def check_vlm(config: Config) -> None:
    """Ask the server of a VLM of its own for its models. Raises `SegsmithError` as `check_llm` does."""
    if config.witnesses.vlm not in ("off", "simulated", "llm"):
        from segsmith.graph.context import vlm_settings
        from segsmith.tools.llm.chat import check_llm

        check_llm(vlm_settings(config), api_key())


def check_tracing(config: Config) -> list[str]:
    """A warning where the environment makes LangGraph send the run to LangSmith; `SegsmithError` when offline."""
    names = [name for name in TRACING if os.environ.get(name, "").lower() in ("true", "1")]
    if not names:
        return []
    if config.offline:
        raise SegsmithError(
            f"{names[0]} is set, so LangGraph would send the run to LangSmith, and --offline forbids that.",
            f"Type: unset {names[0]}",
        )
    return [f"{names[0]} is set: LangGraph sends prompts and state of this run to LangSmith."]


def check_images(config: Config) -> None:
    """Check that the image backend can start, fetching a pipeline that is not on this machine.

    Raises `SegsmithError` that names what to type.
    """
    if config.images.backend == "diffusion":
        from segsmith.tools.images.diffusion import check_diffusion

        for part in config.images.parts:
            check_diffusion(part, offline=config.offline)
    elif config.images.backend == "hosted":
        from segsmith.tools.images.hosted import check_hosted

        check_hosted(config.images, api_key=api_key(), max_usd=config.budget.max_usd)
    if config.images.filter.enabled and config.images.backend != "diffusion":
        raise SegsmithError(
            "The online filter works inside a local diffusion process, and images.backend is not diffusion.",
            "Set images.filter.enabled = false, or images.backend = 'diffusion'.",
        )


def check_machine(
    config: Config,
    replaced: Collection[str] = (),
    machine: Machine | None = None,
    *,
    ask_llm: bool = True,
) -> None:
    """The checks that take no time, before anything is fetched: programs, keys, folders, disk space, GPU memory.

    `replaced` are parts of the `RunContext` that the config does not open. A key is required only with `ask_llm`.
    Raises `SegsmithError`.
    """
    from segsmith.segmentation.tracking import check_tracker
    from segsmith.tools.llm.vllm import vllm_command
    from segsmith.tools.weights.store import require

    if config.memory:
        local_folder(config.memory)
    check_tracker(config.trainer)
    if config.offline and config.trainer.tracker == "wandb":
        raise SegsmithError(
            "trainer.tracker is 'wandb', which sends figures to a server, and --offline forbids that.",
            "Set trainer.tracker to tensorboard, or leave it out.",
        )
    machine = machine or look(cache_dir())
    if config.offline:
        services = [need for need in requirements_of(config) if need.kind == "service"]
        require([need for need in services if need.role not in _roles(replaced)], offline=True)
    if config.llm.server == "vllm" and "chat" not in replaced:
        vllm_command(config.llm)
    hosted = config.llm.server == "openai" and config.llm.base_url is None and ask_llm
    if hosted and not api_key() and "chat" not in replaced:
        raise SegsmithError(
            "The hosted language model needs a key.",
            "Set OPENAI_API_KEY, or set llm.base_url to your own server.",
        )
    if not {"chat", "backend"} & set(replaced):
        _check_gpu(config, machine)
    missing = sum(need.facts.size for need in requirements_of(config) if need.facts and find(need) is None)
    if not config.offline and missing > machine.free_disk:
        raise SegsmithError(
            f"{missing / GB:.0f} GB of models must be fetched, and {machine.free_disk / GB:.0f} GB of disk are free.",
            "Free space, or set SEGSMITH_CACHE and HF_HOME to another disk.",
        )


def _roles(replaced: Collection[str]) -> set[str]:
    """Roles of the models behind the `replaced` parts of a `RunContext`."""
    return {role for part, role in (("chat", "llm"), ("backend", "images")) if part in replaced}


def _check_gpu(config: Config, machine: Machine) -> None:
    card = next(iter(machine.gpus), None)
    if card is None:
        return
    plan = plan_gpu(config, card.total, card.free)
    if plan.problem:
        raise SegsmithError(plan.problem, plan.remedy)


def check_models(config: Config, *, ask_llm: bool = True, replaced: Collection[str] = ()) -> None:
    """Fetch missing model files, check each model, and build the segmenter once; the GPU is not used.

    Of large weights only the headers are read.

    A missing or broken model is thus reported before the run folder is touched. No server is started. A server named
    by its URL is asked only with `ask_llm`, because a run that has all its prompts needs none. The models behind
    the `replaced` parts of the `RunContext` are not checked. Raises `SegsmithError` that names what to type.
    """
    from segsmith.devices import choose_device
    from segsmith.segmentation.network import build_segmenter
    from segsmith.tools.llm.chat import check_llm
    from segsmith.tools.vision.clip import OpenClipEncoder, check_encoder
    from segsmith.tools.vision.sam import check_sam
    from segsmith.tools.weights.store import require

    unused = _roles(replaced)
    require([needed for needed in requirements_of(config) if needed.role not in unused], config.offline)
    if "images" not in unused:
        check_images(config)
    if "llm" not in unused and (ask_llm or config.llm.server != "openai"):
        check_llm(config.llm, api_key())
    check_witnesses(config)
    if ask_llm:
        check_vlm(config)
    choose_device(config.compute.device)
    if config.trainer.encoder_init == "clip":
        tower = OpenClipEncoder.load(config.judge.clip, "cpu").tower
        build_segmenter(config.trainer, len(config.classes), tower)
    else:
        judge = next(need for need in requirements_of(config) if need.role == "judge")
        check_encoder(config.judge.clip, found.path if (found := find(judge)) else Path())
        build_segmenter(config.trainer, len(config.classes))
    if config.labeler.vit != "judge":
        from segsmith.tools.vision.vit import TimmPatchClassifier

        spec = config.labeler.vit
        TimmPatchClassifier.from_timm(spec, 1, config.labeler, 0, pretrained=":" not in spec, device="cpu")
    if config.labeler.use_sam:
        check_sam(config.labeler.sam)
