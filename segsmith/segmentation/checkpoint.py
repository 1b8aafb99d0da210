"""Files of a training: the finished segmenter, and the state from which a killed training resumes.

A state has two slots, "a" and "b". Each save writes to the slot that ``state.json`` does not name and then replaces
``state.json``, so a crash at any moment leaves one complete state.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from segsmith.config import TrainerConfig
from segsmith.errors import SegsmithError
from segsmith.files import write_atomic
from segsmith.segmentation.network import bare_segmenter, set_normalisation

WEIGHTS = "segmenter.safetensors"
META = "segmenter.json"
STATE = "state.json"


class SegmenterMeta(BaseModel):
    """Description of a segmenter: everything but the weights that is needed to rebuild and use the network."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    classes: tuple[str, ...]
    """Names of the channels 1 to C; channel 0 is background."""
    architecture: str
    encoder: str
    decoder: dict[str, Any]
    """Settings of the architecture's decoder."""
    size: tuple[int, int]
    """(H, W) of the training images, in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Per channel of RGB in [0, 1]: the network's input is (pixel - mean) / std."""
    epochs: int
    seed: int
    trainer: TrainerConfig


@dataclass(frozen=True)
class TrainingState:
    """A training after `epoch` complete epochs, which also determine the learning rate and all randomness."""

    epoch: int
    fingerprint: str
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    ema_updates: int
    optimizer: Mapping[str, Any]
    reports: list[dict[str, Any]]
    sam_round: int | None = None
    """Epoch before which SAM last ran, which identifies its labels in use. None: SAM has not run."""


def save_segmenter(out: Path, weights: Mapping[str, Tensor], meta: SegmenterMeta) -> Path:
    """Write weights and description into the existing folder `out`; returns the path of the weights."""
    write_atomic(out / WEIGHTS, _tensors(weights))
    write_atomic(out / META, meta.model_dump_json(indent=2).encode())
    return out / WEIGHTS


def load_segmenter(path: Path) -> tuple[nn.Module, SegmenterMeta]:
    """The network, in evaluation mode on the CPU, and its description.

    `path` is ``segmenter.safetensors`` or its folder. Raises `SegsmithError` if a file is missing or damaged, or if
    the weights do not fit the described network.
    """
    folder = path if path.is_dir() else path.parent
    weights_path = folder / WEIGHTS if path.is_dir() else path
    remedy = "Use the checkpoint of a finished training, or train again."
    meta_path = weights_path.with_suffix(".json")
    try:
        meta = SegmenterMeta.model_validate_json(meta_path.read_bytes())
        weights = load(weights_path.read_bytes())
    except FileNotFoundError as error:
        raise SegsmithError(f"There is no checkpoint file {error.filename}.", remedy) from None
    except OSError as error:
        raise SegsmithError(f"Checkpoint {weights_path} cannot be read: {error.strerror}.", remedy) from None
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"])) or "JSON"
        raise SegsmithError(f"{meta_path} does not describe a segmenter ({field}).", remedy) from None
    except SafetensorError as error:
        raise SegsmithError(f"{weights_path} is damaged: {error}.", remedy) from None
    model = bare_segmenter(meta.architecture, meta.encoder, len(meta.classes), meta.decoder)
    set_normalisation(model, meta.mean, meta.std)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise SegsmithError(f"{weights_path} holds the weights of another network.", remedy) from None
    return model.to(memory_format=torch.channels_last).eval(), meta


def save_state(folder: Path, state: TrainingState) -> None:
    """Save a state for `load_state`; the previous one is kept until this one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    now = _read_index(folder)
    slot = "b" if now is not None and now["slot"] == "a" else "a"
    write_atomic(folder / f"model-{slot}.safetensors", _tensors(state.model))
    write_atomic(folder / f"ema-{slot}.safetensors", _tensors(state.ema))
    buffer = io.BytesIO()
    torch.save(dict(state.optimizer), buffer)
    write_atomic(folder / f"optimizer-{slot}.pt", buffer.getvalue())
    index = {
        "slot": slot,
        "epoch": state.epoch,
        "sam_round": state.sam_round,
        "fingerprint": state.fingerprint,
        "ema_updates": state.ema_updates,
        "reports": state.reports,
    }
    write_atomic(folder / STATE, json.dumps(index, indent=1).encode())


def load_state(folder: Path) -> TrainingState | None:
    """The last saved state, or None; raises `SegsmithError` if it is damaged."""
    index = _read_index(folder)
    if index is None:
        return None
    slot = index.pop("slot")
    try:
        return TrainingState(
            model=load((folder / f"model-{slot}.safetensors").read_bytes()),
            ema=load((folder / f"ema-{slot}.safetensors").read_bytes()),
            optimizer=torch.load(folder / f"optimizer-{slot}.pt", map_location="cpu", weights_only=True),
            **index,
        )
    # torch.load has no error type: a damaged file raises any of these.
    except (OSError, SafetensorError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from None


def _read_index(folder: Path) -> dict[str, Any] | None:
    try:
        index: dict[str, Any] = json.loads((folder / STATE).read_text("utf-8"))
        index["slot"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from None
    return index


def _damaged(folder: Path, error: Exception) -> SegsmithError:
    return SegsmithError(
        f"The training state in {folder} is damaged ({type(error).__name__}: {error}).",
        "Delete that folder to train from the start.",
    )


def _tensors(weights: Mapping[str, Tensor]) -> bytes:
    return save({name: value.detach().cpu().contiguous() for name, value in weights.items()})
