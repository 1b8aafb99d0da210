"""Arguments for the pipelines of diffusers, whose parameters for the same thing have different names.

They are chosen by the signature of a pipeline's ``__call__``, so that pipelines work that this file does not know.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from segsmith.config import ImagesConfig

GUIDANCE = ("guidance_scale", "true_cfg_scale", "distilled_guidance_scale")
"""In this order; a parameter whose default is None is for a kind of model that does not exist yet (Qwen-Image)."""
WITHOUT_REWRITING: Mapping[str, Any] = {
    "use_pe": False,
    "enable_prompt_rewrite": False,
    "enable_prompt_enhancement": False,
    "use_en_prompt": False,
    "prompt_upsampling": False,
    "complex_human_instruction": None,
}
"""Values that keep a pipeline from having a language model rewrite the prompts: their words are what the judge,
the memory of prompts and the lineage of an image refer to."""

Parameters = Mapping[str, inspect.Parameter]


def parameters_of(pipe: Any) -> Parameters:
    """The parameters of a pipeline's ``__call__``."""
    return inspect.signature(pipe.__call__).parameters


def arguments(parameters: Parameters, config: ImagesConfig, prompts: Sequence[str]) -> dict[str, Any]:
    """Arguments for a batch of prompts, without those that keep the pipeline's defaults."""
    size = config.size
    given: dict[str, Any] = {"prompt": list(prompts), "height": size, "width": size, "output_type": "np"}
    given |= WITHOUT_REWRITING
    if config.steps is not None:
        given["num_inference_steps"] = config.steps
        if config.steps != 2:  # SANA-Sprint's second timestep is for two steps only
            given["intermediate_timesteps"] = None
    guidance = guidance_name(parameters)
    if config.guidance is not None and guidance:
        given[guidance] = config.guidance
    if config.negative_prompt:
        given["negative_prompt"] = [config.negative_prompt] * len(prompts)
    elif guidance == "true_cfg_scale":  # which has no effect without a negative prompt
        given["negative_prompt"] = [" "] * len(prompts)
    return {name: value for name, value in given.items() if name in parameters}


def guidance_name(parameters: Parameters) -> str | None:
    """The parameter that scales the guidance; None for a pipeline without guidance."""
    there = [name for name in GUIDANCE if name in parameters]
    return next((name for name in there if parameters[name].default is not None), there[0] if there else None)


def default_steps(parameters: Parameters) -> int:
    """The number of denoising steps that a pipeline takes by default; 1 if it does not say."""
    default = parameters["num_inference_steps"].default if "num_inference_steps" in parameters else None
    return default if isinstance(default, int) else 1
