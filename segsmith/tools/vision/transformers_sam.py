"""SAM 2.1 and SAM-HQ through transformers, as a `PointSegmenter`.

Only configuration and safetensors weights are read; no code of a repository is run. Images are prepared as the
models' own processors do: SAM 2 stretches them to its square input, SAM-HQ keeps the aspect ratio and pads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
import transformers
from numpy.typing import NDArray
from torch import Tensor

from segsmith.devices import autocast, choose_device, choose_dtype
from segsmith.errors import SegsmithError
from segsmith.model_loading import READ_ERRORS, cached_first
from segsmith.terminal_text import first_line
from segsmith.tools.vision.point_batches import MaskLogits, PointBatches, logits_of
from segsmith.tools.vision.sam import REMEDY
from segsmith.tools.weights.hub import hub_file
from segsmith.tools.weights.model_requirements import TRANSFORMERS_WEIGHTS, is_hub_sam
from segsmith.tools.weights.tensor_files import check_tensors
from segsmith.types import Image

KINDS = {"sam2": "Sam2Model", "sam2_video": "Sam2Model", "sam_hq": "SamHQModel"}
"""Model type in config.json -> class. SAM 2.1's repositories state the type of the video model, which contains it."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, which both models' processors use."""
MAX_CONFIG_BYTES = 1 << 20


class TransformersSam(PointBatches):
    """A `PointSegmenter` around a `Sam2Model` or `SamHQModel`."""

    def __init__(self, model: Any, name: str, device: str = "cpu", precision: str = "auto") -> None:
        side = model.config.prompt_encoder_config.image_size
        self._side = int(side if isinstance(side, int) else side[0])
        super().__init__(name, self._side, int(model.config.mask_decoder_config.num_multimask_outputs))
        self._device = torch.device(device)
        self._dtype = choose_dtype(device, precision)
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._stretches = isinstance(model, transformers.Sam2Model)

    @classmethod
    def load(cls, spec: str, device: str = "auto", precision: str = "auto") -> TransformersSam:
        """Load a repository such as ``facebook/sam2.1-hiera-large``, or a folder that transformers saved.

        For `device` and `precision` see `SamSegmenter.load`. Raises `SegsmithError` if the model is missing, damaged
        or of another kind, and if the hub does not answer.
        """

        def model() -> Any:
            kind = getattr(transformers, KINDS[_model_type(spec)])
            with _quiet():
                return kind.from_pretrained(spec, use_safetensors=True, output_loading_info=True)

        try:
            loaded, info = cached_first(model)
        except READ_ERRORS as error:
            raise SegsmithError(f"Cannot load the SAM {spec}: {first_line(error)}.", REMEDY) from None
        if info["missing_keys"] or info["mismatched_keys"]:
            lacking = sorted(info["missing_keys"]) or sorted(key[0] for key in info["mismatched_keys"])
            raise SegsmithError(f"The weights of {spec} do not fit the model: {lacking[0]}.", REMEDY)
        return cls(loaded, Path(spec).name, choose_device(device), precision)

    def _embed(self, images: Sequence[Image]) -> list[tuple[Any, tuple[int, int]]]:
        """The embeddings of each image, with a batch of one, and its (H, W) in the model's input."""
        prepared = [self._prepared(image) for image in images]
        pixels = torch.stack([values for values, _ in prepared])
        with autocast(str(self._device), self._dtype):
            if self._stretches:
                levels = self._model.get_image_embeddings(pixels)
                parts: list[Any] = [
                    [level[i : i + 1].float() for level in levels] for i in range(len(images))
                ]
            else:
                embeddings, between = self._model.get_image_embeddings(pixels)
                parts = [
                    (embeddings[i : i + 1].float(), [layer[i : i + 1].float() for layer in between])
                    for i in range(len(images))
                ]
        return [(part, size) for part, (_, size) in zip(parts, prepared, strict=True)]

    def _prepared(self, image: Image) -> tuple[Tensor, tuple[int, int]]:
        """(3, side, side) input of the model, and the (H, W) that the image takes of it."""
        height, width = image.shape[:2]
        scale = self._side / max(height, width)
        size = (int(height * scale + 0.5), int(width * scale + 0.5))
        if self._stretches:
            size = (self._side, self._side)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(self._device)
        pixels = functional.interpolate(pixels.float(), size, mode="bilinear", antialias=True) / 255
        mean, std = (torch.tensor(values, device=self._device).view(3, 1, 1) for values in (MEAN, STD))
        return functional.pad(
            (pixels[0] - mean) / std, (0, self._side - size[1], 0, self._side - size[0])
        ), size

    def _decode_equal(
        self, embedded: tuple[Any, tuple[int, int]], points: NDArray[np.float32], size: tuple[int, int]
    ) -> list[MaskLogits]:
        part, (height, width) = embedded
        scaled = torch.from_numpy(points).to(self._device) * torch.tensor(
            [width / size[1], height / size[0]], device=self._device
        )
        labels = torch.ones(scaled.shape[:2], dtype=torch.int32, device=self._device)
        given = {"image_embeddings": part}
        if not self._stretches:
            given = {"image_embeddings": part[0], "intermediate_embeddings": part[1]}
        found = self._model(
            input_points=scaled[None], input_labels=labels[None], multimask_output=True, **given
        )
        logits = found.pred_masks[0].float()
        if not self._stretches:
            logits = functional.interpolate(logits, (self._side, self._side), mode="bilinear")
            logits = logits[..., :height, :width]
        return logits_of(functional.interpolate(logits, size, mode="bilinear"), found.iou_scores[0], 0.0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar, and its warning that an image model is read from a video model's file."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def check_transformers_sam(spec: str) -> None:
    """Check kind and weights of a SAM whose files are on this machine, of the weights the header only.

    Raises `SegsmithError`.
    """
    try:
        _model_type(spec)
    except READ_ERRORS as error:
        raise SegsmithError(f"Cannot load the SAM {spec}: {first_line(error)}.", REMEDY) from None
    weights = _file(spec, TRANSFORMERS_WEIGHTS[0])
    if weights is None:
        raise SegsmithError(f"The SAM {spec} has no {TRANSFORMERS_WEIGHTS[0]} on this machine.", REMEDY)
    check_tensors(weights)


def _model_type(spec: str) -> str:
    """The model type that config.json states. Raises `SegsmithError` for one that is not in `KINDS`."""
    file = _file(spec, "config.json")
    if file is None:
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(spec, "config.json"))
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise SegsmithError(f"{file} is too large for a configuration.", REMEDY)
    found = str(json.loads(file.read_text("utf-8")).get("model_type"))
    if found not in KINDS:
        raise SegsmithError(f"{spec} is no SAM 2 or SAM-HQ: its model type is {found[:40]!r}.", REMEDY)
    return found


def _file(spec: str, name: str) -> Path | None:
    """A file of a folder, or of a repository in the hub's cache; None if it is not there."""
    if is_hub_sam(spec):
        return hub_file(spec, name)
    path = Path(spec).expanduser() / name
    return path if path.is_file() else None
