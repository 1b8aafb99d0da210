"""The choice of the device and of the number format to compute in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from segsmith.errors import SegsmithError
from segsmith.terminal_text import first_line

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str = "auto") -> str:
    """ "auto" becomes the first available of "cuda", "mps" and "cpu"; any other device is tried.

    Raises `SegsmithError` for a device that this machine or this build of torch does not have.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error).split(". ")[0].rstrip(".")
        raise SegsmithError(
            f"There is no device {device!r}: {reason:.120}.", "Use auto, cpu, cuda, cuda:<number> or mps."
        ) from None
    return device


def choose_dtype(device: str, precision: str = "auto") -> torch.dtype:
    """The number format for matrix products on `device`.

    "auto" means bfloat16 on GPUs with native support (Ampere and later), float16 on older ones and on MPS, and
    float32 on CPUs, where bfloat16 without native support is far slower.
    """
    if precision != "auto":
        return PRECISIONS[precision]
    kind = torch.device(device).type
    if kind == "cuda":
        native = torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if native else torch.float16
    return torch.float16 if kind == "mps" else torch.float32


def autocast(device: str, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """A context for inference in mixed precision with `dtype`; it does nothing for float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype)


def training_dtype(dtype: torch.dtype) -> torch.dtype:
    """The number format for training: float32 in place of float16, which would need gradient scaling."""
    return torch.float32 if dtype == torch.float16 else dtype
