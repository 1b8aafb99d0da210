"""A trained segmenter for programs that do not use segsmith: ONNX or TorchScript, with a model card."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from segsmith.errors import SegsmithError
from segsmith.files import local_folder, sha256_of, write_atomic
from segsmith.terminal_text import first_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from segsmith.segmentation.checkpoint import SegmenterMeta

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt"}
"""Format -> suffix of the model file."""
TOLERANCE = 1e-3
"""Largest difference of a logit between the written model and the original."""


@dataclass(frozen=True)
class ExportedModel:
    """A model file, and how closely it agrees with the original."""

    model: Path
    card: Path
    difference: float
    """Largest absolute difference of a logit on random images, of another size than that traced if sizes are free."""


def export_model(
    checkpoint: str | Path, format: str = "onnx", out: str | Path | None = None
) -> ExportedModel:
    """Write a segmenter as ``segmenter.onnx`` or ``segmenter.pt`` with its model card, and compare both.

    The model takes RGB images as (N, 3, H, W) float32 in [0, 1], where H and W are multiples of 32, and returns the
    logits (N, classes + 1, H, W); channel 0 is background. Normalisation is part of the model. A network with a ViT
    encoder (architecture ``dpt``) takes images of one size, that of its training: its positions are resampled once.

    Args:
        checkpoint: a ``segmenter.safetensors`` or the folder that holds it.
        format: ``onnx`` (needs the extra ``segsmith[onnx]``) or ``torchscript``.
        out: folder to write; by default a folder named after the format beside the segmenter.

    Raises `SegsmithError` for a checkpoint that cannot be used, an unknown format, a package that is missing, and if
    the written model gives other results than the original.
    """
    from segsmith.segmentation.checkpoint import load_segmenter
    from segsmith.segmentation.network import fix_size

    if format not in SUFFIXES:
        raise SegsmithError(f"There is no model format {format!r}.", f"Name one of: {', '.join(SUFFIXES)}.")
    path = Path(checkpoint)
    folder = local_folder(out) if out is not None else (path if path.is_dir() else path.parent) / format
    model, meta = load_segmenter(path)
    fixed = fix_size(model, meta.size)
    network = _with_normalisation(model)
    data = _onnx(network, fixed) if format == "onnx" else _torchscript(network, fixed)
    difference = _difference(network, data, format, fixed)
    if not difference <= TOLERANCE:
        raise SegsmithError(
            f"The {format} model differs from the original by {difference:.2g}; {TOLERANCE:g} is allowed.",
            "Nothing was written. Try the other format.",
        )
    target, card = folder / f"segmenter{SUFFIXES[format]}", folder / "README.md"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(target, data)
        write_atomic(card, _card(meta, target, difference, fixed).encode())
    except OSError as error:
        raise SegsmithError(f"Cannot write to {folder}: {error.strerror}.", "Name another --out.") from None
    return ExportedModel(target, card, difference)


def _with_normalisation(model: nn.Module) -> nn.Module:
    """The network and its normalisation as one module."""
    import torch

    from segsmith.segmentation.network import normalise

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.model(normalise(self.model, images))
            return logits

    return Network().to(memory_format=torch.contiguous_format).eval()


def _example(height: int, width: int, seed: int) -> Tensor:
    import torch

    return torch.rand((2, 3, height, width), generator=torch.Generator().manual_seed(seed))


def _torchscript(network: nn.Module, fixed: tuple[int, int] | None) -> bytes:
    import torch

    buffer = io.BytesIO()
    with torch.inference_mode():
        torch.jit.save(
            torch.jit.trace(network, _example(*(fixed or (128, 128)), 0), check_trace=False), buffer
        )
    return buffer.getvalue()


def _onnx(network: nn.Module, fixed: tuple[int, int] | None) -> bytes:
    import torch

    free = {0: "images"} if fixed else {0: "images", 2: "height", 3: "width"}
    with TemporaryDirectory() as folder:
        path = Path(folder, "segmenter.onnx")
        try:
            torch.onnx.export(
                network,
                (_example(*(fixed or (128, 128)), 0),),
                path,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": free, "logits": free},
                opset_version=17,
                dynamo=False,
            )
        except (ImportError, torch.onnx.OnnxExporterError) as error:
            raise SegsmithError(
                f"The segmenter cannot be written as ONNX: {first_line(error)}.",
                "Type: pip install onnx onnxruntime; or name --format torchscript.",
            ) from None
        return path.read_bytes()


def _difference(network: nn.Module, data: bytes, format: str, fixed: tuple[int, int] | None) -> float:
    """Largest difference of a logit on images of another size than the one traced, if sizes are free."""
    import torch

    images = _example(*(fixed or (96, 160)), 1)
    with torch.inference_mode():
        expected = network(images)
        written: Tensor
        if format == "torchscript":
            written = torch.jit.load(io.BytesIO(data))(images)
        else:
            written = torch.from_numpy(_run_onnx(data, images.numpy()))
    return float((written - expected).abs().max())


def _run_onnx(data: bytes, images: NDArray[np.float32]) -> NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"images": images})[0]
    return logits


def _card(meta: SegmenterMeta, model: Path, difference: float, fixed: tuple[int, int] | None) -> str:
    """The model card, in Markdown."""
    nothing = "background" if meta.background else "never predicted: the data has no background"
    classes = "\n".join(f"| {i} | {name} |" for i, name in enumerate((nothing, *meta.classes)))
    height, width = meta.size
    sides = "H and W are multiples of 32"
    if fixed:
        sides = f"H is {fixed[0]} and W {fixed[1]}; pad smaller images at the right and the bottom"
    side = ""
    if meta.trainer.size:
        side = f"\nResize images to a longer side of {meta.trainer.size} pixels, as in training.\n"
    return f"""---
library_name: {"onnx" if model.suffix == ".onnx" else "torchscript"}
pipeline_tag: image-segmentation
---
# Segmenter of {len(meta.classes)} classes

{meta.architecture} with the encoder {meta.encoder}, trained by segsmith for {meta.epochs} epochs on images of
{height} x {width} pixels (seed {meta.seed}).

- File: `{model.name}`, SHA-256 `{sha256_of(model)}`
- Input `images`: RGB, (N, 3, H, W) float32 in [0, 1]; {sides}. The model normalises them.
- Output `logits`: (N, {len(meta.classes) + 1}, H, W) float32. The label map is the index of the largest channel.
- Largest difference of a logit from the PyTorch model: {difference:.1e}

| index | class |
| ---: | --- |
{classes}
{side}
The training images may be generated, and their labels made by models. Measure the segmenter on labelled images of
your own before you rely on it.
"""
