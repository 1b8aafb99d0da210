"""CLIP through open_clip, for the mini checkpoint and full-size models alike."""

from __future__ import annotations

import difflib
import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from huggingface_hub import hf_hub_download
from PIL import Image as PILImage

import segsmith.tools.vision.mini_clip as mini
from segsmith.device_memory import Batches, free_device_memory
from segsmith.devices import autocast, choose_device, choose_dtype
from segsmith.errors import SegsmithError
from segsmith.model_loading import READ_ERRORS, cached_first
from segsmith.terminal_text import first_line
from segsmith.tools.vision.clip_config import check_clip, read_clip_config
from segsmith.tools.weights.model_requirements import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS
from segsmith.tools.weights.tensor_files import tensor_shapes
from segsmith.types import Image, Vectors

logger = logging.getLogger(__name__)

BPE_FILE = "bpe.txt.gz"
"""Optional file in a model folder: its byte-pair vocabulary for open_clip's SimpleTokenizer."""
SHOWN_TAGS = 6
TEXT_CACHE = 8192
HEADER_ONLY = 1 << 28
"""Bytes of a weights file above which a check reads its header only."""


class OpenClipEncoder:
    """Both towers of an open_clip model; see `ImageTextEncoder`. Safe to share between threads."""

    def __init__(
        self,
        model: Any,
        preprocess: Callable[[PILImage.Image], torch.Tensor],
        tokenizer: Any,
        *,
        name: str,
        device: str = "cpu",
        precision: str = "auto",
        batch_size: int | None = None,
        parked: bool = False,
    ) -> None:
        """With `parked` the weights stay in main memory until the first image (see `release`)."""
        # Convolutions on a CPU are nearly twice as fast with channels last and batches that fit its cache.
        self.model = (model if parked else model.to(device)).eval()
        self.model.visual.to(memory_format=torch.channels_last)
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.precision = precision
        self._dtype = choose_dtype(device, precision)
        size = batch_size or (64 if self.device.type == "cuda" else 16)
        self.batches = Batches(
            size,
            f"one image in CLIP {name}",
            "Stop other programs on the GPU, or set compute.device = 'cpu'.",
        )
        self.name = f"{name}@{_digest(model)}"
        self.logit_scale = float(model.logit_scale.detach().exp())
        self._texts: OrderedDict[str, Vectors] = OrderedDict()
        self._lock = threading.RLock()
        self.dim = int(self.embed_texts(["a photo"]).shape[1])

    @classmethod
    def load(
        cls, spec: str, device: str = "auto", precision: str = "auto", *, parked: bool = False
    ) -> OpenClipEncoder:
        """Load the model `spec` onto `device` (see `choose_device`), with `precision` as in `choose_dtype`.

        `spec` is "mini" (the packaged checkpoint), a folder with ``open_clip_config.json`` and weights,
        an open_clip ``name:weights`` where weights is a tag to download or a file, or ``hf-hub:org/repo``.
        Weights are read as safetensors or with ``weights_only``. Raises `SegsmithError` if `spec` names no model
        or its weights cannot be loaded.
        """
        device = choose_device(device)
        model_name, weights, bpe = _resolve(spec)
        options: dict[str, Any] = {"bpe_path": str(bpe)} if bpe else {}

        def parts() -> tuple[Any, Any, Any]:
            # Whatever the configuration or the tokenizer's own files ask for, no code of theirs is run.
            chosen = {"trust_remote_code": False} if _has_hf_tokenizer(model_name) else options
            model, preprocess = open_clip.create_model_from_pretrained(
                model_name, pretrained=weights, device="cpu" if parked else device, weights_only=True
            )
            return model, preprocess, open_clip.get_tokenizer(model_name, **chosen)

        try:
            model, preprocess, tokenizer = cached_first(parts)
        except READ_ERRORS as error:
            raise _unloadable(spec, error) from error
        return cls(model, preprocess, tokenizer, name=spec, device=device, precision=precision, parked=parked)

    def release(self) -> None:
        """Move the weights to main memory. Texts are embedded there; the next images bring the weights back."""
        with self._lock:
            if self.device.type != "cpu":
                self.model.to("cpu")
                free_device_memory()

    def _on_device(self) -> None:
        with self._lock:
            if self.device.type != "cpu" and self.model.logit_scale.device.type == "cpu":
                self.model.to(self.device)

    @property
    def tower(self) -> torch.nn.Module:
        """The image tower, e.g. open_clip's `TimmModel` (its `trunk` is the timm model)."""
        return self.model.visual

    @property
    def preprocess_config(self) -> dict[str, Any]:
        """open_clip's settings for image preprocessing, such as size, mean and std."""
        return dict(self.model.visual.preprocess_cfg)

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of a text, including start and end."""
        return int(self.model.context_length)

    def stem_state(self) -> dict[str, torch.Tensor]:
        """Weights of the tower's convolutional stem, with timm's names; empty if it has none.

        For the mini CLIP they are the ResNet-10-T up to stride 16, so they load into a segmenter's
        ``tu-resnet10t`` encoder: ``network.encoder.model.load_state_dict(stem, strict=False)``.
        """
        patch_embed = getattr(getattr(self.tower, "trunk", None), "patch_embed", None)
        stem = getattr(patch_embed, "backbone", None)
        return {} if stem is None else {k: v.detach().clone() for k, v in stem.state_dict().items()}

    def embed_images(self, images: Sequence[Image]) -> Vectors:
        self._on_device()

        def embed(start: int, stop: int) -> Vectors:
            batch = self._prepared(images[start:stop])
            with torch.inference_mode(), autocast(str(self.device), self._dtype):
                pixels = batch.to(self.device, memory_format=torch.channels_last)
                return _unit(self.model.encode_image(pixels, normalize=True))

        return np.concatenate([np.zeros((0, self.dim), np.float32), *self.batches.run(len(images), embed)])

    def _prepared(self, images: Sequence[Image]) -> torch.Tensor:
        """(N, 3, H, W) input of the tower.

        Square images of one size, as image models draw them, are resized together, which is five times as fast as
        open_clip's preprocessing one by one and differs from it by at most one of 255 levels.
        """
        config = self.preprocess_config
        height, width = _pair(config["size"])
        sides = {side for image in images for side in image.shape[:2]}
        if len(sides) > 1 or height != width or config.get("interpolation") not in ("bicubic", "bilinear"):
            return torch.stack([self.preprocess(PILImage.fromarray(image)) for image in images])
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        if sides != {height}:
            pixels = torch.nn.functional.interpolate(
                pixels, (height, width), mode=config["interpolation"], antialias=True
            )
        mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
        return (pixels.float() / 255 - mean) / std

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        with self._lock:
            new = [text for text in dict.fromkeys(texts) if text not in self._texts]
            found = {text: self._texts[text] for text in texts if text in self._texts}
            # One at a time, because the last bits of a vector depend on its batch, and a resumed run
            # asks for other batches than an uninterrupted one.
            for text in new:
                device = str(self.model.logit_scale.device)
                dtype = self._dtype if device != "cpu" else choose_dtype("cpu", self.precision)
                with torch.inference_mode(), autocast(device, dtype):
                    tokens = self.tokenizer([text], context_length=self.context_length).to(device)
                    found[text] = _unit(self.model.encode_text(tokens, normalize=True))[0]
            self._remember(found)
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        return np.stack([found[text] for text in texts])

    def fits(self, text: str) -> bool:
        return self.count_tokens(text) <= self.context_length

    def count_tokens(self, text: str) -> int:
        """Number of tokens of `text` before truncation, including start and end."""
        if hasattr(self.tokenizer, "encode"):
            return len(self.tokenizer.encode(text)) + 2
        return len(self.tokenizer.tokenizer(self.tokenizer.clean_fn(text))["input_ids"])

    def _remember(self, found: dict[str, Vectors]) -> None:
        for text, vector in found.items():
            self._texts[text] = vector
            self._texts.move_to_end(text)
        while len(self._texts) > TEXT_CACHE:
            self._texts.popitem(last=False)


def check_encoder(spec: str, weights: Path) -> None:
    """Check a CLIP as `OpenClipEncoder.load` would, but of a large safetensors file read the header only.

    `weights` is the file, or the folder, of `spec`. A file whose tensors open_clip would have to convert, or that is
    not safetensors, is loaded. Raises `SegsmithError` as `load` does.
    """
    if weights.is_dir():
        weights = weights / OPEN_CLIP_WEIGHTS[0]
    if weights.suffix == ".safetensors" and weights.is_file() and weights.stat().st_size > HEADER_ONLY:
        found = tensor_shapes(weights)
        own = _shapes(spec)
        if own.keys() == found.keys():
            wrong = next((name for name, shape in own.items() if found[name] != shape), None)
            if (
                wrong is None or "positional_embedding" in wrong or "pos_embed" in wrong
            ):  # resized when loaded
                return
            raise _unloadable(spec, f"{wrong} has the shape {found[wrong]} instead of {own[wrong]}")
    OpenClipEncoder.load(spec, "cpu")


def _shapes(spec: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight of a CLIP, built without memory; empty if it cannot be built that way."""
    model_name, _, _ = _resolve(spec)

    def build() -> Any:
        _has_hf_tokenizer(model_name)
        return open_clip.create_model(model_name, load_weights=False, pretrained_hf=False, device="meta")

    logging.getLogger().addFilter(_expected)
    try:
        with torch.device("meta"):
            model = cached_first(build)
    except READ_ERRORS:
        return {}
    finally:
        logging.getLogger().removeFilter(_expected)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _expected(record: logging.LogRecord) -> bool:
    """A log filter: open_clip warns of a model without weights, which is what `_shapes` asks for."""
    return "No pretrained weights" not in record.getMessage()


def _unloadable(spec: str, reason: str | BaseException) -> SegsmithError:
    return SegsmithError(
        f"Cannot load the CLIP model {spec!r}: {first_line(reason)}.",
        "Use 'mini', a folder with open_clip_config.json and its weights, or name:file "
        "with weights that fit the name.",
    )


def _resolve(spec: str) -> tuple[str, str | None, Path | None]:
    """open_clip's model name, weights, and the byte-pair file of a folder that has one.

    The configuration of a folder has been checked then; that of a repository is checked by `_has_hf_tokenizer`,
    which downloads it.
    """
    if spec == "mini" or (spec and Path(spec).is_dir()):
        folder = mini.packaged_checkpoint("mini_clip") if spec == "mini" else Path(spec)
        check_clip(str(folder))
        bpe = folder / BPE_FILE
        return f"local-dir:{folder}", None, bpe if bpe.is_file() else None
    if spec.startswith(("hf-hub:", "local-dir:")):
        return spec, None, None
    name, _, weights = spec.partition(":")
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise SegsmithError(
            f"There is no folder or open_clip model named {name!r}.{hint}",
            "Use 'mini', a folder, or name:weights such as ViT-B-32:openai.",
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    file = Path(weights).expanduser()
    if weights not in tags and not file.is_file():
        problem = f"has no weights {weights!r}" if weights else "needs weights"
        raise SegsmithError(
            f"The open_clip model {name} {problem}.",
            f"Type {name}: followed by a file or one of its tags: {_some(weights, tags)}.",
        )
    return name, weights if weights in tags else str(file), None


def _has_hf_tokenizer(model_name: str) -> bool:
    """Does open_clip take this model's tokenizer from transformers?

    A configuration that comes with the model is checked first; raises `SegsmithError` if it is not allowed.
    """
    if model_name.startswith("hf-hub:"):
        repository = model_name.removeprefix("hf-hub:")
        return read_clip_config(Path(hf_hub_download(repository, OPEN_CLIP_CONFIG))).has_hf_tokenizer
    if (config := check_clip(model_name)) is not None:
        return config.has_hf_tokenizer
    return bool((open_clip.get_model_config(model_name) or {}).get("text_cfg", {}).get("hf_tokenizer_name"))


def _some(wanted: str, tags: Sequence[str]) -> str:
    """The tags most similar to `wanted`, and the number of the others."""
    near = difflib.get_close_matches(wanted, tags, n=SHOWN_TAGS, cutoff=0) or list(tags)[:SHOWN_TAGS]
    more = len(tags) - len(near)
    return (", ".join(near) or "none") + (f" and {more} more" if more else "")


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) of open_clip's image size."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _unit(embedded: torch.Tensor) -> Vectors:
    # Normalised again in float32, because in half precision the vectors are visibly not of unit length.
    return torch.nn.functional.normalize(embedded.float(), dim=-1).cpu().numpy()


def _digest(model: torch.nn.Module) -> str:
    """Eight characters that change with the weights, so that stored vectors identify their embedding space."""
    hashed = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if value.ndim == 1 or "proj" in key:
            hashed.update(key.encode() + value.detach().float().cpu().numpy().tobytes())
    return hashed.hexdigest()[:8]
