"""Segment Anything as a `PointSegmenter`: the packaged mini model, a folder like it, or an official file.

Every model here is built from segment-anything's own classes and uses their forward pass, so the mini checkpoint
exercises the same code as the official ones. SAM 2.1 and SAM-HQ are in `transformers_sam.py`.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything import build_sam_vit_b, build_sam_vit_h, build_sam_vit_l
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn

from segsmith.devices import autocast, choose_device, choose_dtype
from segsmith.errors import SegsmithError
from segsmith.terminal_text import first_line
from segsmith.tools.vision.mask_refiner import RefinerNetwork, RefinerSizes
from segsmith.tools.vision.point_batches import MaskLogits, PointBatches, logits_of
from segsmith.tools.weights.model_requirements import is_hub_sam
from segsmith.tools.weights.store import sam_file
from segsmith.types import Image

MINI = Path(str(resources.files("segsmith"))) / "checkpoints" / "mini_sam"
OFFICIAL: dict[int, Callable[[], Sam]] = {768: build_sam_vit_b, 1024: build_sam_vit_l, 1280: build_sam_vit_h}
"""Width of the image encoder -> builder, so that the variant is found even if the file was renamed."""


REFINER = "refiner."
"""Prefix of the names of the refiner's weights in a ``model.safetensors``."""
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class SamSizes:
    """Sizes of a small SAM; the content of ``config.json`` next to ``model.safetensors``."""

    image_size: int = 128
    patch_size: int = 8
    encoder_width: int = 128
    encoder_depth: int = 4
    encoder_heads: int = 4
    window_size: int = 0
    """Side of the attention windows in patches; 0 is global attention in every block."""
    global_blocks: tuple[int, ...] = ()
    relative_positions: bool = False
    stem_widths: tuple[int, ...] = ()
    """Channels of the convolutional stem that replaces the patch embedding: one per stride-2 layer but the last."""
    decoder_width: int = 64
    decoder_depth: int = 2
    decoder_heads: int = 4
    decoder_mlp: int = 256
    candidates: int = 3
    refiner: RefinerSizes | None = None
    """Of the network that corrects the masks, if the checkpoint has one."""


class ConvStem(nn.Module):
    """Strided 3x3 convolutions from (B, 3, H, W) to (B, H / 2^k, W / 2^k, C), in place of `PatchEmbed`.

    A small ViT trains much faster with it (Xiao et al. 2021, "Early convolutions help transformers see
    better"); all other parts are segment-anything's.
    """

    def __init__(self, widths: tuple[int, ...], out_width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in widths:
            layers += [nn.Conv2d(inputs, width, 3, 2, 1), nn.GroupNorm(8, width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(inputs, out_width, 3, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).permute(0, 2, 3, 1)


def build_sam(sizes: SamSizes) -> Sam:
    """A randomly initialised SAM of these sizes, in evaluation mode."""
    grid = sizes.image_size // sizes.patch_size
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=sizes.image_size,
            patch_size=sizes.patch_size,
            embed_dim=sizes.encoder_width,
            depth=sizes.encoder_depth,
            num_heads=sizes.encoder_heads,
            out_chans=sizes.decoder_width,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=sizes.relative_positions,
            window_size=sizes.window_size,
            global_attn_indexes=sizes.global_blocks,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=sizes.decoder_width,
            image_embedding_size=(grid, grid),
            input_image_size=(sizes.image_size, sizes.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=sizes.decoder_width,
            transformer=TwoWayTransformer(
                depth=sizes.decoder_depth,
                embedding_dim=sizes.decoder_width,
                num_heads=sizes.decoder_heads,
                mlp_dim=sizes.decoder_mlp,
            ),
            num_multimask_outputs=sizes.candidates,
            iou_head_hidden_dim=sizes.decoder_width,
        ),
    )
    if sizes.stem_widths:
        sam.image_encoder.patch_embed = ConvStem(sizes.stem_widths, sizes.encoder_width)
    return sam.eval()


def config_json(sizes: SamSizes) -> str:
    """The text of ``config.json``."""
    return json.dumps(asdict(sizes), indent=2) + "\n"


class SamSegmenter(PointBatches):
    """A `PointSegmenter` around any `Sam`."""

    def __init__(
        self,
        sam: Sam,
        name: str,
        device: str = "cpu",
        precision: str = "auto",
        refiner: RefinerNetwork | None = None,
    ) -> None:
        super().__init__(name, sam.image_encoder.img_size, sam.mask_decoder.num_multimask_outputs)
        self.refiner = refiner
        self._device = torch.device(device)
        self._dtype = choose_dtype(device, precision)
        self._sam = sam.eval().requires_grad_(False).to(self._device)
        self._resize = ResizeLongestSide(sam.image_encoder.img_size)

    @classmethod
    def load(cls, spec: str, device: str = "auto", precision: str = "auto") -> SamSegmenter:
        """Load "mini", a folder with config.json and model.safetensors, or an official ``sam_vit_*.pth``.

        "sam_vit_b", "sam_vit_l" and "sam_vit_h" are the official files that ``segsmith models pull`` stores.
        For `device` and `precision` see `segsmith.devices`; `precision` applies to the image encoder, while
        prompts and masks use float32. Raises `SegsmithError` if the file is missing, corrupt or of unknown
        architecture.
        """
        path = MINI if spec == "mini" else sam_file(spec) or Path(spec).expanduser()
        refiner = None
        if path.is_dir():
            sam, refiner = _load_folder(path)
        elif path.is_file():
            sam = _load_official(path)
        else:
            raise SegsmithError(f"SAM checkpoint {path} does not exist.", REMEDY)
        name = path.name if path.is_dir() else path.stem
        return cls(sam, name, choose_device(device), precision, refiner)

    def _embed(self, images: Sequence[Image]) -> list[tuple[Tensor, tuple[int, int]]]:
        """Each image's (C, h, w) embedding, and its (H, W) in the model's input."""
        resized = [torch.as_tensor(self._resize.apply_image(image)) for image in images]
        inputs = [self._sam.preprocess(r.permute(2, 0, 1).to(self._device)) for r in resized]
        with autocast(str(self._device), self._dtype):
            embeddings = self._sam.image_encoder(torch.stack(inputs)).float()
        return [(e, (r.shape[0], r.shape[1])) for e, r in zip(embeddings, resized, strict=True)]

    def _decode_equal(
        self,
        embedded: tuple[Tensor, tuple[int, int]],
        points: NDArray[np.float32],
        size: tuple[int, int],
    ) -> list[MaskLogits]:
        embedding, input_size = embedded
        coords = torch.as_tensor(
            self._resize.apply_coords(points, size), dtype=torch.float32, device=self._device
        )
        labels = torch.ones(coords.shape[:2], dtype=torch.int64, device=self._device)
        sparse, dense = self._sam.prompt_encoder(points=(coords, labels), boxes=None, masks=None)
        low, scores = self._sam.mask_decoder(
            image_embeddings=embedding[None],
            image_pe=self._sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        logits = self._sam.postprocess_masks(low, input_size, size)
        return logits_of(logits, scores, self._sam.mask_threshold)


def load_segmenter(spec: str, device: str = "auto", precision: str = "auto") -> PointBatches:
    """The SAM that `labeler.sam` names: one of segment-anything (see `SamSegmenter.load`), or of transformers.

    Those of transformers are a repository ``org/name`` on the hub, or a folder whose config.json states a model type.
    Raises `SegsmithError` as both `load`s do.
    """
    if is_of_transformers(spec):
        from segsmith.tools.vision.transformers_sam import TransformersSam

        return TransformersSam.load(spec, device, precision)
    return SamSegmenter.load(spec, device, precision)


def is_of_transformers(spec: str) -> bool:
    """Whether a SAM is loaded through transformers."""
    return is_hub_sam(spec) or "model_type" in _config_of(Path(spec).expanduser())


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


REMEDY = (
    "Set labeler.sam to 'mini', sam_vit_b, sam_vit_l or sam_vit_h, a sam_vit_*.pth file, "
    "a folder with config.json and model.safetensors, or a SAM 2.1 or SAM-HQ on the hub (org/name)."
)


def check_sam(spec: str) -> None:
    """Check that a checkpoint is complete and fits its model, without reading the weights of an official file.

    Raises `SegsmithError` as `SamSegmenter.load` does.
    """
    if is_of_transformers(spec):
        from segsmith.tools.vision.transformers_sam import check_transformers_sam

        check_transformers_sam(spec)
        return
    path = MINI if spec == "mini" else sam_file(spec) or Path(spec).expanduser()
    if not path.is_file() or not zipfile.is_zipfile(path):  # small, missing, truncated, or of an old format
        SamSegmenter.load(spec, "cpu")
        return
    with torch.device("meta"):
        _load_official(path, map_location="meta", mmap=True)


def _load_folder(folder: Path) -> tuple[Sam, RefinerNetwork | None]:
    try:
        sizes = sizes_of((folder / "config.json").read_text("utf-8"))
        sam, refiner = build_sam(sizes), RefinerNetwork(sizes.refiner) if sizes.refiner else None
        state = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    except FileNotFoundError as error:
        missing = Path(error.filename or "model.safetensors").name
        raise SegsmithError(f"SAM folder {folder} has no {missing}.", REMEDY) from None
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError,
            SafetensorError) as error:  # fmt: skip
        raise SegsmithError(f"SAM folder {folder} cannot be read: {error}.", REMEDY) from None
    if refiner is not None:
        names = [name for name in state if name.startswith(REFINER)]
        _fill(refiner, {name.removeprefix(REFINER): state.pop(name) for name in names}, folder)
    return _fill(sam, state, folder), refiner


def sizes_of(text: str) -> SamSizes:
    """The sizes in a ``config.json``. Raises `ValueError`, `TypeError` or `AttributeError` if it is damaged."""
    values: dict[str, Any] = json.loads(text)
    refiner = values.pop("refiner", None)
    sizes = SamSizes(**_tuples(values))
    return replace(sizes, refiner=RefinerSizes(**_tuples(refiner))) if refiner is not None else sizes


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _load_official(path: Path, map_location: str = "cpu", mmap: bool = False) -> Sam:
    try:
        state = torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)
        width = int(state["image_encoder.pos_embed"].shape[-1])
    except pickle.UnpicklingError:
        # torch's message is not shown, because it explains how to run arbitrary code from the file.
        raise SegsmithError(f"{path} is corrupt, or contains more than weights.", REMEDY) from None
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = first_line(error)
        raise SegsmithError(f"{path} is not a complete SAM checkpoint: {reason:.160}.", REMEDY) from None
    if width not in OFFICIAL:
        known = ", ".join(map(str, OFFICIAL))
        raise SegsmithError(f"{path} contains a SAM of unknown width {width} (known: {known}).", REMEDY)
    return _fill(OFFICIAL[width](), state, path)


def _fill(model: Model, state: dict[str, Tensor], source: Path) -> Model:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise SegsmithError(f"The weights in {source} do not fit the model: {reason:.160}.", REMEDY) from None
    return model
