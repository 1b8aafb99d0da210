"""Files of a training: the finished segmenter, and the state from which a killed training resumes.

A state has two slots, "a" and "b". Each save writes to the slot that ``state.json`` does not name and then replaces
``state.json``, so a crash at any moment leaves one complete state.

A checkpoint may come from a stranger, and either may be damaged. Descriptions are therefore checked against what
segsmith writes, and the size of every file against the described network, before anything is built or read.
"""

from __future__ import annotations

import io
import json
import pickle
import shlex
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from segsmith.config import MAX_CLASSES, TrainerConfig
from segsmith.errors import SegsmithError
from segsmith.files import write_atomic
from segsmith.segmentation.network import (
    DecoderSettings,
    bare_segmenter,
    set_input_side,
    set_normalisation,
    without_background,
)
from segsmith.terminal_text import first_line, printable

WEIGHTS = "segmenter.safetensors"
META = "segmenter.json"
STATE = "state.json"

LARGEST_DESCRIPTION = 1 << 20
"""Bytes of a description, or of the JSON header of a weight file."""
LARGEST_STATE = 64 << 20
"""Bytes of ``state.json``, which has one report per epoch."""
OTHER_BYTES = 1 << 20
"""Bytes that a weight file or optimizer state may have besides its tensors."""
DTYPES = frozenset({"F64", "F32", "F16", "BF16", "I64"})
"""Types that weights and buffers may have in a file."""
DAMAGED_PICKLE = (
    zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError,
    AttributeError,
)  # fmt: skip
"""What `torch.load` raises for damaged files; it has no specific error type."""
LONGEST_NAME = 200
LARGEST_SIDE_PX = 100_000

Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE_PX)]
Deviation = Annotated[float, Field(gt=0)]


class SegmenterMeta(BaseModel):
    """Description of a segmenter: everything but the weights that is needed to rebuild and use the network."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    classes: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    """Names of the channels 1 to C; channel 0 is background."""
    background: bool = True
    """Whether background is one of the things that pixels can show; if not, it is never predicted or scored."""
    architecture: Name
    encoder: Name
    decoder: dict[str, Any]
    """Settings of the architecture's decoder; see `DecoderSettings`."""
    size: tuple[Side, Side]
    """(H, W) of the training images, in pixels."""
    mean: tuple[float, float, float]
    std: tuple[Deviation, Deviation, Deviation]
    """Per channel of RGB in [0, 1]: the network's input is (pixel - mean) / std."""
    epochs: int = Field(ge=0)
    seed: int
    trainer: TrainerConfig

    @field_validator("classes")
    @classmethod
    def _distinct_printable(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names) or not all(name.isprintable() for name in names):
            raise ValueError("names must differ and have no control characters")
        return names

    @field_validator("decoder")
    @classmethod
    def _known_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return DecoderSettings.model_validate(settings).model_dump(exclude_unset=True)


@dataclass(frozen=True)
class EpochReport:
    """Figures of one epoch, counted from 1, after `step` of `steps` optimisation steps (0 in older states).

    `loss` is the mean over all processes. `miou` in [0, 1] is that of the averaged weights on split val, None without
    such a split. `seconds` includes running SAM; `images_per_second` is that of all processes together. Both are None
    for epochs of an earlier process: a state holds no times, so that equal trainings leave equal files.
    """

    epoch: int
    epochs: int
    loss: float
    learning_rate: float
    miou: float | None
    step: int = 0
    steps: int = 0
    seconds: float | None = field(default=None, compare=False)
    images_per_second: float | None = field(default=None, compare=False)


TIMES = ("seconds", "images_per_second")
"""Fields of `EpochReport` that a state leaves out."""


@dataclass(frozen=True)
class TrainingState:
    """A training after `epoch` complete epochs, which also determine the learning rate and all randomness."""

    epoch: int
    fingerprint: str
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    ema_updates: int
    optimizer: Mapping[int, Mapping[str, Tensor]]
    """Index of a parameter -> AdamW's ``step``, ``exp_avg`` and ``exp_avg_sq``."""
    reports: tuple[EpochReport, ...]
    sam_round: int | None = None
    """Epoch before which SAM last ran, which identifies its labels in use. None: SAM has not run."""


class StateIndex(BaseModel):
    """``state.json``: everything of a state but its tensors. Earlier versions also wrote other keys."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    slot: Literal["a", "b"]
    epoch: int = Field(ge=1)
    sam_round: int | None = Field(None, ge=0)
    fingerprint: str
    ema_updates: int = Field(ge=0)
    reports: tuple[EpochReport, ...]

    @field_validator("reports")
    @classmethod
    def _without_times(cls, reports: tuple[EpochReport, ...]) -> tuple[EpochReport, ...]:
        return tuple(EpochReport(**{k: v for k, v in asdict(r).items() if k not in TIMES}) for r in reports)


def save_segmenter(out: Path, weights: Mapping[str, Tensor], meta: SegmenterMeta) -> Path:
    """Write weights and description into the existing folder `out`; returns the path of the weights."""
    write_atomic(out / WEIGHTS, _safetensors(weights))
    write_atomic(out / META, meta.model_dump_json(indent=2).encode())
    return out / WEIGHTS


def load_segmenter(path: Path) -> tuple[nn.Module, SegmenterMeta]:
    """The network, in evaluation mode on the CPU, and its description.

    `path` is ``segmenter.safetensors`` or its folder. Raises `SegsmithError` if a file is missing or damaged, if the
    description has values that segsmith does not write, or if the weights do not fit the described network.
    """
    folder = path if path.is_dir() else path.parent
    weights_path = folder / WEIGHTS if path.is_dir() else path
    remedy = "Use the checkpoint of a finished training, or train again."
    meta_path = weights_path.with_suffix(".json")
    try:
        meta = SegmenterMeta.model_validate_json(_read(meta_path, LARGEST_DESCRIPTION))
        architecture = (meta.architecture, meta.encoder, len(meta.classes), meta.decoder)
        weights = _load_tensors(weights_path, _described_tensors(*architecture))
    except FileNotFoundError as error:
        raise SegsmithError(f"There is no checkpoint file {error.filename}.", remedy) from None
    except OSError as error:
        raise SegsmithError(
            f"Checkpoint {weights_path} cannot be read: {error.strerror or error}.", remedy
        ) from None
    except ValidationError as error:
        raise SegsmithError(
            f"{meta_path} does not describe a segmenter ({first_problem(error)}).", remedy
        ) from None
    except SafetensorError as error:
        raise SegsmithError(f"{weights_path} is damaged: {first_line(error, 200)}.", remedy) from None
    except _OtherNetwork:
        raise SegsmithError(f"{weights_path} holds the weights of another network.", remedy) from None
    model = bare_segmenter(*architecture)
    set_normalisation(model, meta.mean, meta.std)
    set_input_side(model, meta.trainer.size)
    model.load_state_dict(weights)
    if not meta.background:
        without_background(model)
    return model.to(memory_format=torch.channels_last).eval(), meta


def save_state(folder: Path, state: TrainingState) -> None:
    """Save a state for `load_state`; the previous one is kept until this one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    before = _read_index(folder)
    slot: Literal["a", "b"] = "b" if before is not None and before.slot == "a" else "a"
    write_atomic(folder / f"model-{slot}.safetensors", _safetensors(state.model))
    write_atomic(folder / f"ema-{slot}.safetensors", _safetensors(state.ema))
    buffer = io.BytesIO()
    torch.save({"state": dict(state.optimizer)}, buffer)
    write_atomic(folder / f"optimizer-{slot}.pt", buffer.getvalue())
    index = {
        "slot": slot,
        "epoch": state.epoch,
        "sam_round": state.sam_round,
        "fingerprint": state.fingerprint,
        "ema_updates": state.ema_updates,
        "reports": [{k: v for k, v in asdict(r).items() if k not in TIMES} for r in state.reports],
    }
    write_atomic(folder / STATE, json.dumps(index, indent=1).encode())


def saved_fingerprint(folder: Path) -> str | None:
    """Fingerprint of the data and settings of the saved state, or None; `SegsmithError` if it is damaged."""
    index = _read_index(folder)
    return None if index is None else index.fingerprint


def load_state(folder: Path, model: nn.Module) -> TrainingState | None:
    """The last saved state of a training of `model`, or None; raises `SegsmithError` if it is damaged."""
    index = _read_index(folder)
    if index is None:
        return None
    tensors = model.state_dict()
    try:
        return TrainingState(
            epoch=index.epoch,
            fingerprint=index.fingerprint,
            model=_load_tensors(folder / f"model-{index.slot}.safetensors", tensors),
            ema=_load_tensors(folder / f"ema-{index.slot}.safetensors", tensors),
            ema_updates=index.ema_updates,
            optimizer=_load_optimizer(folder / f"optimizer-{index.slot}.pt", list(model.parameters())),
            reports=index.reports,
            sam_round=index.sam_round,
        )
    except (OSError, SafetensorError, _OtherNetwork) as error:
        raise damaged_state(folder, error) from None


def damaged_state(folder: Path, error: Exception | str) -> SegsmithError:
    """The error for a training folder that cannot be used."""
    reason = (
        error if isinstance(error, str) else f"{type(error).__name__.lstrip('_')}: {first_line(error, 200)}"
    )
    return SegsmithError(f"The training state in {folder} is damaged ({reason}).", start_over(folder))


def start_over(folder: Path) -> str:
    """What to type to train from the start without the damaged training folder."""
    return f"Type rm -r {shlex.quote(str(folder))} to train from the start."


def _read_index(folder: Path) -> StateIndex | None:
    try:
        index = StateIndex.model_validate_json(_read(folder / STATE, LARGEST_STATE))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise damaged_state(folder, error) from None
    except ValidationError as error:
        raise damaged_state(folder, f"{STATE}: {first_problem(error)}") from None
    if [report.epoch for report in index.reports] != list(range(1, len(index.reports) + 1)) or (
        len(index.reports) != index.epoch
    ):
        raise damaged_state(folder, f"{STATE}: the reports are not those of {index.epoch:.6g} epochs")
    return index


class _OtherNetwork(Exception):
    """The tensors in a file do not have the names and shapes of the network's."""


def _described_tensors(
    architecture: str, encoder: str, n_classes: int, decoder: Mapping[str, Any]
) -> Mapping[str, Tensor]:
    """The tensors of a network without their memory: a description may name a network of any size."""
    if encoder.startswith(
        "mit_"
    ):  # these cannot be built without memory; the largest has 82 million parameters
        return bare_segmenter(architecture, encoder, n_classes, decoder).state_dict()
    with torch.device("meta"):
        return bare_segmenter(architecture, encoder, n_classes, decoder).state_dict()


def _load_tensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A safetensors file with the names and shapes of `expected`, read only if it has these.

    Raises `_OtherNetwork` for others, `SafetensorError` for a damaged file, and `OSError`.
    """
    limit = sum(value.numel() * max(value.element_size(), 8) for value in expected.values()) + OTHER_BYTES
    with _opened(path, limit) as file:
        (header,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
    if header > LARGEST_DESCRIPTION:
        raise SafetensorError("its header is too large")
    with safe_open(path, "pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.offset_keys()}
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        dtypes = {part.get_dtype() for part in slices.values()}
    if shapes != {name: tuple(value.shape) for name, value in expected.items()} or not dtypes <= DTYPES:
        raise _OtherNetwork("weights of another network")
    return load(_read(path, limit))


def _load_optimizer(path: Path, parameters: list[Tensor]) -> Mapping[int, Mapping[str, Tensor]]:
    """AdamW's state of `parameters`; `_OtherNetwork` for anything else."""
    limit = sum(2 * p.numel() * p.element_size() for p in parameters) + len(parameters) * 8192 + OTHER_BYTES
    content = io.BytesIO(_read(path, limit))
    try:
        with zipfile.ZipFile(content) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > limit:
                raise _OtherNetwork("an optimizer state of another network")
        content.seek(0)
        saved = torch.load(content, map_location="cpu", weights_only=True)
    except DAMAGED_PICKLE as error:
        raise _OtherNetwork(f"an optimizer state that cannot be read, {first_line(error, 200)}") from None
    state = saved.get("state") if isinstance(saved, dict) else None
    if not isinstance(state, dict) or not state:
        raise _OtherNetwork("an optimizer state of another network")
    known = dict(enumerate(parameters))  # those that the loss never reached have no state
    if not all(index in known and _is_adamw(value, known[index]) for index, value in state.items()):
        raise _OtherNetwork("an optimizer state of another network")
    return state


def _is_adamw(state: Any, parameter: Tensor) -> bool:
    if not isinstance(state, dict) or set(state) != {"step", "exp_avg", "exp_avg_sq"}:
        return False
    shapes = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
    return all(isinstance(state[key], Tensor) and state[key].shape == shape for key, shape in shapes.items())


@contextmanager
def _opened(path: Path, limit: int) -> Iterator[BinaryIO]:
    """A regular file of at most `limit` bytes; raises `OSError` for others."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError(f"{path.name} is not a regular file")
    if about.st_size > limit:
        raise OSError(f"{path.name} has {about.st_size:,} bytes, more than the {limit:,} that it can need")
    with path.open("rb") as file:
        yield file


def _read(path: Path, limit: int) -> bytes:
    """The content of a file that `_opened` accepts."""
    with _opened(path, limit) as file:
        return file.read(limit)


def _safetensors(weights: Mapping[str, Tensor]) -> bytes:
    return save({name: value.detach().cpu().contiguous() for name, value in weights.items()})


def first_problem(error: ValidationError) -> str:
    """The field of the first problem and what is wrong with it."""
    problem = error.errors(include_url=False)[0]
    place = printable(".".join(map(str, problem["loc"])))[:60] or "JSON"  # the keys of the file are in it
    return f"{place}: {first_line(problem['msg'].removeprefix('Value error, '), 200)}"
