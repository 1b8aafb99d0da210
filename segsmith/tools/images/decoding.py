"""From latents to pixels: a batch is decoded in slices, and running out of memory only makes the slices smaller.

Denoising takes most of the time of a batch and decoding most of its memory: SDXL's decoder needs 1.5 GiB for one
image at 1024 px and 12 GiB for eight. The pipelines of diffusers decode a whole batch at once, inside the call that
denoises it, so an allocation that fails there would discard every step.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from segsmith.device_memory import free_device_memory, is_out_of_memory
from segsmith.errors import OutOfMemory

logger = logging.getLogger(__name__)

SLICE_PX = 1024 * 1024
"""Pixels decoded at once; more gains no speed on the GPUs that large images need (ours)."""
TILE_PX = 512
"""Maximum side of a tile, for images that cannot be decoded whole."""
DECODERS = ("vae", "movq", "vqvae", "vqgan")
"""The components that turn latents into pixels, by the names that diffusers gives them."""


class SlicedDecoder:
    """Decodes with a pipeline's autoencoder in slices of a batch, which shrink when memory runs out.

    After slices of one image come tiles of an image, and then main memory. What was needed once is kept for the
    following batches. Pixels are collected in main memory as float32.
    """

    def __init__(self, autoencoder: Any, pixels_per_latent: int) -> None:
        self._autoencoder = autoencoder
        self._scale = pixels_per_latent
        self._decode = autoencoder.decode
        self._at_once: int | None = None
        self._tiled = False
        self._in_main_memory = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While open, the pipeline decodes through this object; at the end the weights have their format of before.

        Pipelines convert an autoencoder that overflows in float16 to float32 and back, but not back after an error.
        """
        autoencoder = self._autoencoder
        autoencoder.decode = self.decode
        try:
            with self._same_format():
                yield
        finally:
            del autoencoder.decode  # removes the instance attribute, which uncovers the class's method

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """While open, an autoencoder that overflows in float16 is in float32."""
        autoencoder = self._autoencoder
        with self._same_format():
            if autoencoder.dtype == torch.float16 and autoencoder.config.get("force_upcast"):
                autoencoder.to(torch.float32)
            yield

    def decode(self, latents: torch.Tensor, *args: Any, **more: Any) -> Any:
        """The autoencoder's own ``decode`` of (N, ...) latents. Raises `OutOfMemory` if not even one image fits."""
        batch, position = len(latents), 0
        if self._at_once is None:
            side = latents.shape[-1] * self._scale
            self._at_once = max(1, SLICE_PX // side**2)
        parts: list[torch.Tensor] = []
        result: Any = None
        while position < batch:
            rows = slice(position, position + self._at_once)
            chosen = {name: _rows(value, rows, batch) for name, value in more.items()}
            result = self._decode_slice(latents[rows], *args, **chosen)
            if result is None:
                self._make_smaller(min(self._at_once, batch - position), latents)
                continue
            pixels = result[0] if isinstance(result, tuple) else result.sample
            parts.append(pixels.float().cpu())
            position += len(parts[-1])
        pixels = torch.cat(parts)
        return (pixels,) if isinstance(result, tuple) else type(result)(sample=pixels)

    def _decode_slice(self, latents: torch.Tensor, *args: Any, **more: Any) -> Any:
        """The decoded slice, or None if memory ran out."""
        if self._in_main_memory:
            return self._decode_in_main_memory(latents, *args, **more)
        try:
            return self._decode(latents, *args, **more)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        free_device_memory()  # outside `except`, because the traceback keeps the tensors alive
        return None

    def _decode_in_main_memory(self, latents: torch.Tensor, *args: Any, **more: Any) -> Any:
        autoencoder = self._autoencoder
        device, dtype = autoencoder.device, autoencoder.dtype
        try:
            autoencoder.to("cpu", torch.float32)
            return self._decode(latents.to("cpu", torch.float32), *args, **more)
        finally:
            autoencoder.to(device, dtype)

    def _make_smaller(self, tried: int, latents: torch.Tensor) -> None:
        assert self._at_once is not None
        if tried > 1:
            self._at_once = tried // 2
            logger.warning("out of memory while decoding: decoding %d images at once", self._at_once)
        elif not self._tiled and self._enable_tiling(latents.shape[-1]):
            self._tiled = True
            logger.warning("out of memory while decoding one image: decoding it in tiles")
        elif not self._in_main_memory and self._can_leave_device():
            self._in_main_memory = True
            logger.warning("out of memory while decoding a tile: decoding in main memory, which is slow")
        else:
            raise OutOfMemory

    def _enable_tiling(self, latent_side: int) -> bool:
        """Decode in tiles of at most half the image's side; False if this autoencoder has no tiles.

        The default tile of Stable Diffusion's autoencoders is the image size they were trained with, so that
        an image of that size would not be divided.
        """
        autoencoder = self._autoencoder
        side = min(TILE_PX, latent_side * self._scale // 2)
        if not hasattr(autoencoder, "enable_tiling"):
            return False
        accepted = inspect.signature(autoencoder.enable_tiling).parameters
        sizes = {
            "tile_sample_min_height": side,
            "tile_sample_min_width": side,
            "tile_sample_stride_height": side * 3 // 4,
            "tile_sample_stride_width": side * 3 // 4,
        }
        autoencoder.enable_tiling(**{name: value for name, value in sizes.items() if name in accepted})
        if hasattr(autoencoder, "tile_latent_min_size"):
            autoencoder.tile_sample_min_size = side
            autoencoder.tile_latent_min_size = side // self._scale
        return True

    def _can_leave_device(self) -> bool:
        # With offloading, hooks decide where the weights are.
        return self._autoencoder.device.type != "cpu" and not hasattr(self._autoencoder, "_hf_hook")

    @contextmanager
    def _same_format(self) -> Iterator[None]:
        dtype = self._autoencoder.dtype
        try:
            yield
        finally:
            if self._autoencoder.dtype != dtype:
                self._autoencoder.to(dtype)


def sliced_decoder(pipe: Any) -> SlicedDecoder | None:
    """The `SlicedDecoder` of a pipeline; None if it has no autoencoder that diffusers names."""
    for name in DECODERS:
        part = getattr(pipe, name, None)
        if hasattr(part, "decode") and hasattr(part, "dtype"):
            return SlicedDecoder(part, int(getattr(pipe, "vae_scale_factor", 8)))
    return None


def _rows(value: Any, rows: slice, batch: int) -> Any:
    """Some pipelines pass one generator per image."""
    return value[rows] if isinstance(value, list) and len(value) == batch else value
