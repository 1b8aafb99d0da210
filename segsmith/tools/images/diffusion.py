"""Diffusion models through diffusers: Stable Diffusion 1, 2, XL and 3, their distilled variants, FLUX.

diffusers objects are used only in this file, in `denoising` and in `attention`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segsmith.config import ImagesConfig
from segsmith.device_memory import free_device_memory, is_out_of_memory
from segsmith.devices import choose_device, choose_dtype
from segsmith.errors import OutOfMemory, SegsmithError
from segsmith.protocols import unwatched
from segsmith.terminal_text import first_line
from segsmith.tools.images.decoding import SlicedDecoder, sliced_decoder
from segsmith.tools.images.denoising import SHRINKABLE, NothingLeft, StepWatch, watched
from segsmith.tools.images.diffusion_files import (
    pipeline_files,
    settings_name,
)
from segsmith.tools.images.pipeline_calls import arguments, default_steps, parameters_of
from segsmith.tools.weights.tensor_files import check_tensors, load_tensors
from segsmith.types import Drawn, Gate, Image, ImageRequest

logger = logging.getLogger(__name__)

PREVIEW_PX = 256
"""Maximum side of a preview: CLIP's input is no larger, and the cost of decoding grows with the area."""
HEADROOM = 1.3
"""Free memory required per byte of weights; the surplus is for the activations of one image (ours)."""
SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "ddim": "DDIMScheduler",
    "lcm": "LCMScheduler",
}
BAD_FILES = (OSError, ValueError, LookupError, RuntimeError, ImportError, AttributeError, TypeError)
"""Errors that diffusers and transformers raise for an invalid or incomplete model folder."""


class DiffusionBackend:
    """An `ImageBackend` over a text-to-image pipeline, loaded at the first `draw` and freed by `close`.

    Each image has its own CPU generator, so its noise depends only on its seed, not on its batch or the device.
    """

    usd_per_image = 0.0

    def __init__(self, config: ImagesConfig, *, offline: bool = False) -> None:
        self._config = config
        self._offline = offline
        self._device = choose_device(config.device)
        self._pipe: Any = None
        self._decoder: SlicedDecoder | None = None
        self.name = settings_name(config)

    def draw(
        self,
        requests: Sequence[ImageRequest],
        gate: Gate | None = None,
        on_step: Callable[[float], None] = unwatched,
    ) -> Iterator[Drawn]:
        """See `ImageBackend.draw`. All images of a batch are finished together."""
        pipe = self._open()
        generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        parameters = parameters_of(pipe)
        inputs = arguments(parameters, self._config, [request.prompt for request in requests])
        steps = inputs.get("num_inference_steps") or default_steps(parameters)
        watch = StepWatch(generators, steps, on_step)
        tensors = ["latents"]
        if gate is not None:
            watch.gate = gate
            watch.look_at = max(1, round(self._config.filter.at * steps))
            watch.preview = lambda clean: self._preview(pipe, clean)
            tensors = list(SHRINKABLE[type(pipe).__name__])
        if "callback_on_step_end" in parameters:
            inputs |= {"callback_on_step_end": watch, "callback_on_step_end_tensor_inputs": tensors}
        else:
            watch.counts_steps = True
        images, unsafe = self._run(pipe, watch, generator=generators, **inputs)
        for index, reason in watch.dropped.items():
            yield Drawn(index, None, reason)
        for index, image, vetoed in zip(watch.alive, images, unsafe, strict=True):
            if vetoed:
                yield Drawn(index, None, "unsafe", "the model's own safety checker")
            else:
                yield Drawn(index, image)

    def pipeline(self) -> Any:
        """The pipeline of diffusers, loaded and placed on the device; drawing may go on with it."""
        return self._open()

    def close(self) -> None:
        """Release the pipeline and its device memory."""
        if self._pipe is not None:
            self._pipe = self._decoder = None
            free_device_memory()

    def _run(self, pipe: Any, watch: StepWatch, **inputs: Any) -> tuple[list[Image], list[bool]]:
        """The finished images and, for each, whether the model's safety checker blacked it out."""
        result: Any = None
        full = False
        decoding = self._decoder.installed() if self._decoder else nullcontext()
        try:
            with watched(pipe.scheduler, watch), decoding:
                result = pipe(**inputs)
        except NothingLeft:
            pass
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            full = True
        finally:
            if result is None:  # the pipeline did not get to free its hooks itself
                pipe.maybe_free_model_hooks()
        if full:  # outside `except`, because the traceback keeps the tensors alive
            free_device_memory()
            raise OutOfMemory
        if result is None:
            return [], []
        images = [to_uint8(image) for image in getattr(result, "images", ())]
        if len(images) != len(watch.alive):
            raise SegsmithError(
                f"{type(pipe).__name__} draws no images from text.",
                "Name a text-to-image model in images.model.",
            )
        return images, list(getattr(result, "nsfw_content_detected", None) or [False] * len(images))

    def _preview(self, pipe: Any, clean: torch.Tensor) -> list[Image]:
        """Small images of clean latents, which are downsampled by averaging before they are decoded."""
        decoder, config = self._decoder, pipe.vae.config
        assert decoder is not None
        cells = max(1, PREVIEW_PX // pipe.vae_scale_factor)
        side = min(clean.shape[-1], cells)
        with torch.inference_mode(), decoder.full_precision():
            small = torch.nn.functional.interpolate(clean.float(), (side, side), mode="area")
            scaled = small.to(pipe.vae.dtype) / config.scaling_factor + (config.get("shift_factor") or 0.0)
            (pixels,) = decoder.decode(scaled, return_dict=False)
        return [to_uint8(image) for image in (pixels / 2 + 0.5).permute(0, 2, 3, 1).numpy()]

    # -- opening ----------------------------------------------------------------------------------

    def _open(self) -> Any:
        if self._pipe is None:
            pipe = self._load()
            if self._config.filter.enabled and not can_shrink(pipe):
                raise SegsmithError(
                    f"The online filter cannot remove images from a running batch of {type(pipe).__name__}.",
                    "Set images.filter.enabled = false, or use Stable Diffusion 1, 2, XL or 3.",
                )
            pipe.set_progress_bar_config(disable=True)
            self._speed_up(pipe)
            self._place(pipe)
            if self._config.compile:
                _denoiser(pipe).compile(dynamic=True)  # dynamic: the filter shrinks batches
            self._decoder = sliced_decoder(pipe)
            self._pipe = pipe
        return self._pipe

    def _load(self) -> Any:
        import diffusers
        import transformers

        config = self._config
        files = pipeline_files(config, offline=self._offline)
        diffusers.utils.logging.disable_progress_bar()  # the command line shows its own progress
        transformers.utils.logging.disable_progress_bar()
        try:
            pipe = _text_to_image(
                files.folder,
                dtype=choose_dtype(self._device, config.dtype),
                variant=files.variant or None,
                use_safetensors=True,
                local_files_only=True,
            )
            if config.unet:
                pipe.unet.load_state_dict(load_tensors(config.unet))
            self._set_scheduler(pipe)
        except BAD_FILES as error:
            raise SegsmithError(
                f"{config.model!r} cannot be loaded as a text-to-image pipeline: {first_line(error, 200)}",
                "Name a complete diffusers folder or hub id with safetensors weights in images.model.",
            ) from error
        return pipe

    def _speed_up(self, pipe: Any) -> None:
        """Apply the options that change speed and no more of an image than rounding does."""
        if self._config.fuse_qkv:
            owners: tuple[Any, ...] = (pipe, _denoiser(pipe))
            if owner := next((o for o in owners if hasattr(o, "fuse_qkv_projections")), None):
                owner.fuse_qkv_projections()
        if self._config.channels_last and hasattr(pipe, "unet"):
            for part in (pipe.unet, pipe.vae):
                part.to(memory_format=torch.channels_last)

    def _set_scheduler(self, pipe: Any) -> None:
        import diffusers

        config = self._config
        if config.scheduler is None and config.timestep_spacing is None:
            return
        kind = getattr(diffusers, SCHEDULERS[config.scheduler]) if config.scheduler else type(pipe.scheduler)
        more = {"timestep_spacing": config.timestep_spacing} if config.timestep_spacing else {}
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **more)

    def _place(self, pipe: Any) -> None:
        """Move the pipeline to the device, or offload its parts if the free memory there is too small."""
        offload: str = self._config.offload
        sizes = [_bytes(part) for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
        cuda = torch.device(self._device).type == "cuda"
        if offload == "auto":
            free = torch.cuda.mem_get_info(self._device)[0] if cuda else None
            offload = choose_offload(sizes, free)
            logger.info("weights %.1f GiB: offload %s", sum(sizes) / 2**30, offload)
        if offload == "none" or torch.device(self._device).type == "cpu":
            self._to_device(pipe)
        elif offload == "model":
            pipe.enable_model_cpu_offload(device=self._device)
        else:
            pipe.enable_sequential_cpu_offload(device=self._device)

    def _to_device(self, pipe: Any) -> None:
        full = False
        try:
            pipe.to(self._device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            full = True
        if full:
            free_device_memory()
            raise SegsmithError(
                f"The weights of {self._config.model} do not fit on {self._device}.",
                "Set images.offload = 'model' or 'sequential', or name a smaller model.",
            )


def check_diffusion(config: ImagesConfig, *, offline: bool = False) -> None:
    """Download missing files and check every file, before a run starts.

    Raises `SegsmithError` for a model that does not exist, cannot be downloaded, or is incomplete.
    """
    files = pipeline_files(config, offline=offline)
    if config.unet:
        check_tensors(config.unet)
    if config.filter.enabled and files.index.pipeline not in SHRINKABLE:
        raise SegsmithError(
            f"The online filter cannot remove images from a running batch of {config.model}.",
            "Set images.filter.enabled = false, or use Stable Diffusion 1, 2, XL or 3.",
        )


def can_shrink(pipe: Any) -> bool:
    """Whether samples can be removed from a running batch of this pipeline."""
    unet = getattr(pipe, "unet", None)
    # A guidance-distilled UNet takes guidance as a per-sample tensor, which no callback can change.
    own_guidance = unet is not None and unet.config.get("time_cond_proj_dim") is not None
    return type(pipe).__name__ in SHRINKABLE and not own_guidance


def choose_offload(part_bytes: Sequence[int], free_bytes: int | None) -> str:
    """ "none" if all parts fit at once, "model" if the largest part does, else "sequential".

    `free_bytes` is None on a device that shares main memory, where offloading gains nothing.
    """
    if free_bytes is None or HEADROOM * sum(part_bytes) <= free_bytes:
        return "none"
    return "model" if HEADROOM * max(part_bytes) <= free_bytes else "sequential"


def to_uint8(image: Any) -> Image:
    """(H, W, 3) floats in [0, 1] as uint8; NaN becomes black, so that the judge rejects the image as blank."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    return np.asarray((values.clip(0, 1) * 255).round(), dtype=np.uint8)


def _text_to_image(folder: Path, **options: Any) -> Any:
    """The pipeline in `folder`, as text to image where the model's own pipeline does something else.

    diffusers maps the pipelines of older models to their text-to-image pipelines; any other is loaded as it is.
    """
    import diffusers

    try:
        return diffusers.AutoPipelineForText2Image.from_pretrained(folder, **options)
    except ValueError as error:
        if "can't find a pipeline linked to" not in str(error):
            raise
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **options)
    if "prompt" not in parameters_of(pipe):
        raise ValueError(f"{type(pipe).__name__} takes no prompt")
    return pipe


def _denoiser(pipe: Any) -> torch.nn.Module:
    found: torch.nn.Module = getattr(pipe, "unet", None) or pipe.transformer
    return found


def _bytes(part: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in part.parameters())
