"""Inside the denoising loop: the predicted clean image, and samples that leave a running batch.

The online filter of IAA inspects images before they are finished. This file contains what it needs from
diffusers: the clean latents that a scheduler's step implies, and the removal of samples from a batch's state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from segsmith.types import Gate, Image, NoImage

SHRINKABLE = {
    "StableDiffusionPipeline": ("latents", "prompt_embeds"),
    "StableDiffusionXLPipeline": ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids"),
    "StableDiffusion3Pipeline": ("latents", "prompt_embeds", "pooled_prompt_embeds"),
}
"""Pipeline class -> every per-sample tensor of its loop; the step-end callback may replace all of them.

Other pipelines (FLUX among them) do not expose all of these tensors, so their batches cannot shrink.
"""


class NothingLeft(Exception):
    """Every sample of the batch was dropped, so the remaining steps and the decoding can be skipped."""


@dataclass
class StepWatch:
    """A pipeline's step-end callback for one batch: progress, cancellation and, with a gate, the filter."""

    generators: list[torch.Generator]
    """The list passed to the pipeline, modified in place: samplers draw their noise from it at each step."""
    steps: int
    on_step: Callable[[float], None]
    gate: Gate | None = None
    look_at: int = 0
    """Number of completed steps at which the gate is called."""
    preview: Callable[[torch.Tensor], list[Image]] | None = None
    """Decodes clean latents to small images."""
    alive: list[int] = field(default_factory=list)
    """Indices, in the original batch, of the remaining samples."""
    dropped: dict[int, NoImage] = field(default_factory=dict)
    clean: torch.Tensor | None = None
    done: int = 0
    counts_steps: bool = False
    """Whether the scheduler's steps are counted, for a pipeline that has no callback."""

    def __post_init__(self) -> None:
        self.alive = list(range(len(self.generators)))

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """diffusers' ``callback_on_step_end``; raises `NothingLeft` and whatever `on_step` raises."""
        self.done = step + 1
        self.on_step(self.done / self.steps)
        if self.gate is None or self.preview is None or self.done != self.look_at:
            return {}
        assert self.clean is not None
        reasons = self.gate(self.alive, self.preview(self.clean))
        self.clean = None
        return self._without(pipe, reasons, tensors)

    def count_step(self) -> None:
        """Report progress without looking at previews; a scheduler may take more steps than were asked for."""
        self.done += 1
        self.on_step(min(1.0, self.done / self.steps))

    def wants_clean(self) -> bool:
        """Whether the gate is called after the next step."""
        return self.gate is not None and self.done + 1 == self.look_at

    def _without(
        self, pipe: Any, reasons: Sequence[NoImage | None], tensors: dict[str, Any]
    ) -> dict[str, Any]:
        batch, rank = tensors["latents"].shape[0], tensors["latents"].ndim
        keep = [row for row, reason in enumerate(reasons) if reason is None]
        self.dropped.update((self.alive[row], r) for row, r in enumerate(reasons) if r is not None)
        self.alive = [self.alive[row] for row in keep]
        if not keep:
            raise NothingLeft
        if len(keep) == batch:
            return {}
        self.generators[:] = [self.generators[row] for row in keep]
        shrink_scheduler(pipe.scheduler, batch, rank, keep)
        return {name: shrink(tensor, batch, keep) for name, tensor in tensors.items()}


@contextmanager
def watched(scheduler: Any, watch: StepWatch) -> Iterator[None]:
    """Give `watch` the clean latents implied by the step after which it calls its gate.

    diffusers' callback gets the latents after a step but not the prediction; only the scheduler's `step` sees both.
    """
    inner = scheduler.step

    @functools.wraps(inner)  # pipelines inspect the signature to see whether it accepts generators
    def step(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **more: Any) -> Any:
        if watch.wants_clean():
            watch.clean = clean_latents(scheduler, model_output, timestep, sample)
        result = inner(model_output, timestep, sample, *args, **more)
        if watch.counts_steps:
            watch.count_step()
        return result

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step  # removes the instance attribute, which uncovers the class's method


def clean_latents(
    scheduler: Any, output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor
) -> torch.Tensor:
    """The noise-free latents implied by a model's `output` for the noisy `sample`; call it before `step`.

    With ``sample = a * clean + s * noise``, a model that predicts noise implies ``(sample - s * output) / a``,
    one that predicts ``v = a * noise - s * clean`` (Salimans and Ho 2022, appendix D) implies
    ``a * sample - s * v``. A flow model has ``sample = (1 - s) * clean + s * noise`` and predicts
    ``noise - clean``, so ``sample - s * output``. Samplers of the Euler family keep ``sample / a`` instead.
    """
    sigma = _sigma(scheduler)
    kind = scheduler.config.get("prediction_type", "epsilon")
    if is_flow(scheduler):
        assert sigma is not None
        return sample - sigma * output
    if kind == "sample":
        return output
    if sigma is None:
        variance = scheduler.alphas_cumprod[int(timestep)].to(sample.device)
        a, s = variance.sqrt(), (1 - variance).sqrt()
    else:
        a = (1 + sigma**2).rsqrt()
        s = sigma * a
        if not _keeps_variance(scheduler):
            sample = sample * a
    if kind == "v_prediction":
        return a * sample - s * output
    if kind == "epsilon":
        return (sample - s * output) / a
    raise ValueError(f"no rule for prediction type {kind!r}")


def is_flow(scheduler: Any) -> bool:
    """Whether the model is a rectified flow, which predicts ``noise - clean``."""
    config = scheduler.config
    return bool(
        type(scheduler).__name__.startswith("FlowMatch")
        or config.get("prediction_type") == "flow_prediction"
        or config.get("use_flow_sigmas")
    )


def shrink(tensor: torch.Tensor, batch: int, keep: Sequence[int]) -> torch.Tensor:
    """Rows `keep` of a tensor with one row per sample, or with several blocks of `batch` rows.

    Classifier-free guidance makes such blocks: first the negative prompts, then the prompts.
    """
    blocks = tensor.reshape(-1, batch, *tensor.shape[1:])
    return blocks[:, list(keep)].reshape(-1, *tensor.shape[1:])


def shrink_scheduler(scheduler: Any, batch: int, rank: int, keep: Sequence[int]) -> None:
    """Keep rows `keep` of a multistep sampler's history, which is every tensor shaped like the latents."""

    def shrunk(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim == rank and value.shape[0] == batch:
            return value[list(keep)]
        if isinstance(value, list):
            return [shrunk(item) for item in value]
        return value

    for name, value in list(vars(scheduler).items()):
        if isinstance(value, torch.Tensor | list):
            setattr(scheduler, name, shrunk(value))


def _sigma(scheduler: Any) -> torch.Tensor | None:
    """Noise level of the next step in the scheduler's own terms; None if it is tabulated by timestep instead."""
    if not hasattr(scheduler, "step_index") or not hasattr(scheduler, "sigmas"):
        return None
    index = scheduler.step_index
    return scheduler.sigmas[0 if index is None else index]


def _keeps_variance(scheduler: Any) -> bool:
    # Of the schedulers with sigmas, only the DPM-Solver family has this method. It mixes signal and noise
    # to constant variance; the others add noise to an unscaled signal.
    return hasattr(scheduler, "_sigma_to_alpha_sigma_t")
