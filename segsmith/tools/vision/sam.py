"""Segment Anything as a `PointSegmenter`: the packaged mini model, a folder like it, or an official file.

Every model is built from segment-anything's own classes and uses their forward pass, so the mini checkpoint
exercises the same code as the official ones.
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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything import build_sam_vit_b, build_sam_vit_h, build_sam_vit_l
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn

from segsmith.device_memory import Batches
from segsmith.devices import autocast, choose_device, choose_dtype
from segsmith.errors import SegsmithError
from segsmith.terminal_text import first_line
from segsmith.tools.weights.store import sam_file
from segsmith.types import Image, MaskCandidates

MINI = Path(str(resources.files("segsmith"))) / "checkpoints" / "mini_sam"
OFFICIAL: dict[int, Callable[[], Sam]] = {768: build_sam_vit_b, 1024: build_sam_vit_l, 1280: build_sam_vit_h}
"""Width of the image encoder -> builder, so that the variant is found even if the file was renamed."""

MAX_PIXELS = 1 << 26
"""Maximum number of mask pixels decoded in one call (256 MB of float32)."""
MAX_POINT_SETS = 64


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


class SamSegmenter:
    """A `PointSegmenter` around any `Sam`."""

    def __init__(self, sam: Sam, name: str, device: str = "cpu", precision: str = "auto") -> None:
        self.name = name
        self._device = torch.device(device)
        self._dtype = choose_dtype(device, precision)
        self._sam = sam.eval().requires_grad_(False).to(self._device)
        self._resize = ResizeLongestSide(sam.image_encoder.img_size)
        side = sam.image_encoder.img_size
        self._embedding = Batches(max(1, min(16, (1024 // side) ** 2)), f"one image in SAM {name}", _SMALLER)
        self._decoding = Batches(MAX_POINT_SETS, f"one point set in SAM {name}", _SMALLER)

    @classmethod
    def load(cls, spec: str, device: str = "auto", precision: str = "auto") -> SamSegmenter:
        """Load "mini", a folder with config.json and model.safetensors, or an official ``sam_vit_*.pth``.

        "sam_vit_b", "sam_vit_l" and "sam_vit_h" are the official files that ``segsmith models pull`` stores.
        For `device` and `precision` see `segsmith.devices`; `precision` applies to the image encoder, while
        prompts and masks use float32. Raises `SegsmithError` if the file is missing, corrupt or of unknown
        architecture.
        """
        path = MINI if spec == "mini" else sam_file(spec) or Path(spec).expanduser()
        if path.is_dir():
            sam = _load_folder(path)
        elif path.is_file():
            sam = _load_official(path)
        else:
            raise SegsmithError(f"SAM checkpoint {path} does not exist.", _REMEDY)
        name = path.name if path.is_dir() else path.stem
        return cls(sam, name, choose_device(device), precision)

    def segment(self, image: Image, point_sets: Sequence[NDArray[np.float32]]) -> list[MaskCandidates]:
        """Candidates per point set, at the size of `image`; an empty list without point sets.

        Each set is (N, 2) foreground points as (x, y) pixels of `image`, N >= 1; sets may differ in N.
        """
        return self.segment_many([image], [point_sets])[0]

    @torch.inference_mode()
    def segment_many(
        self,
        images: Sequence[Image],
        point_sets: Sequence[Sequence[NDArray[np.float32]]],
        images_per_batch: int | None = None,
    ) -> list[list[MaskCandidates]]:
        """`segment` for several images of any sizes, embedded `images_per_batch` at a time.

        By default, as many as fit into the area of one 1024 x 1024 input, at most 16: one for an official model.
        A batch that does not fit is halved. Raises `SegsmithError` if memory is too small for one image.
        """
        embedding = self._embedding
        if images_per_batch:
            embedding = replace(embedding, size=images_per_batch)
        results: list[list[MaskCandidates]] = [[] for _ in images]
        wanted = [i for i, sets in enumerate(point_sets) if len(sets)]

        def embed(start: int, stop: int) -> tuple[list[int], list[Tensor], Tensor]:
            batch = wanted[start:stop]
            resized = [torch.as_tensor(self._resize.apply_image(images[i])) for i in batch]
            inputs = [self._sam.preprocess(r.permute(2, 0, 1).to(self._device)) for r in resized]
            with autocast(str(self._device), self._dtype):
                return batch, resized, self._sam.image_encoder(torch.stack(inputs)).float()

        for batch, resized, embeddings in embedding.run(len(wanted), embed):
            for i, small, embedding in zip(batch, resized, embeddings, strict=True):
                size = (images[i].shape[0], images[i].shape[1])
                results[i] = self._decode(embedding, point_sets[i], size, (small.shape[0], small.shape[1]))
        return results

    def _decode(
        self,
        embedding: Tensor,
        point_sets: Sequence[NDArray[np.float32]],
        size: tuple[int, int],
        input_size: tuple[int, int],
    ) -> list[MaskCandidates]:
        """Decode the sets of one (C, h, w) embedding.

        Sets of equal length share a call. Padding shorter sets with "not a point" tokens would save calls, but
        these tokens take part in attention, so a mask would depend on the other sets.
        """
        by_length: dict[int, list[int]] = {}
        for index, points in enumerate(point_sets):
            by_length.setdefault(len(points), []).append(index)
        candidates = self._sam.mask_decoder.num_multimask_outputs
        fits = max(1, MAX_PIXELS // (candidates * size[0] * size[1]))
        decoding = replace(self._decoding, size=min(self._decoding.size, fits))
        found: dict[int, MaskCandidates] = {}
        for indices in by_length.values():

            def decode(start: int, stop: int, indices: list[int] = indices) -> dict[int, MaskCandidates]:
                part = indices[start:stop]
                sets = np.stack([point_sets[i] for i in part])
                return dict(zip(part, self._decode_equal(embedding, sets, size, input_size), strict=True))

            before = decoding.size
            for masks in decoding.run(len(indices), decode):
                found.update(masks)
            if decoding.size < before:
                self._decoding.size = decoding.size
        return [found[i] for i in range(len(point_sets))]

    def _decode_equal(
        self,
        embedding: Tensor,
        points: NDArray[np.float32],
        size: tuple[int, int],
        input_size: tuple[int, int],
    ) -> list[MaskCandidates]:
        """Decode (S, N, 2) points in one call."""
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
        masks = (logits > self._sam.mask_threshold).cpu().numpy()
        ious = scores.clamp(0, 1).float().cpu().numpy()
        return [MaskCandidates(mask, iou) for mask, iou in zip(masks, ious, strict=True)]


_SMALLER = "Stop other programs on the GPU, or set labeler.sam to a smaller model, e.g. sam_vit_b."
_REMEDY = (
    "Set labeler.sam to 'mini', sam_vit_b, sam_vit_l or sam_vit_h, a sam_vit_*.pth file, "
    "or a folder with config.json and model.safetensors."
)


def check_sam(spec: str) -> None:
    """Check that a checkpoint is complete and fits its model, without reading the weights of an official file.

    Raises `SegsmithError` as `SamSegmenter.load` does.
    """
    path = MINI if spec == "mini" else sam_file(spec) or Path(spec).expanduser()
    if not path.is_file() or not zipfile.is_zipfile(path):  # small, missing, truncated, or of an old format
        SamSegmenter.load(spec, "cpu")
        return
    with torch.device("meta"):
        _load_official(path, map_location="meta", mmap=True)


def _load_folder(folder: Path) -> Sam:
    try:
        values: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        sam = build_sam(SamSizes(**sizes))
        state = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    except FileNotFoundError as error:
        missing = Path(error.filename or "model.safetensors").name
        raise SegsmithError(f"SAM folder {folder} has no {missing}.", _REMEDY) from None
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError,
            SafetensorError) as error:  # fmt: skip
        raise SegsmithError(f"SAM folder {folder} cannot be read: {error}.", _REMEDY) from None
    return _fill(sam, state, folder)


def _load_official(path: Path, map_location: str = "cpu", mmap: bool = False) -> Sam:
    try:
        state = torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)
        width = int(state["image_encoder.pos_embed"].shape[-1])
    except pickle.UnpicklingError:
        # torch's message is not shown, because it explains how to run arbitrary code from the file.
        raise SegsmithError(f"{path} is corrupt, or contains more than weights.", _REMEDY) from None
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = first_line(error)
        raise SegsmithError(f"{path} is not a complete SAM checkpoint: {reason:.160}.", _REMEDY) from None
    if width not in OFFICIAL:
        known = ", ".join(map(str, OFFICIAL))
        raise SegsmithError(f"{path} contains a SAM of unknown width {width} (known: {known}).", _REMEDY)
    return _fill(OFFICIAL[width](), state, path)


def _fill(sam: Sam, state: dict[str, Tensor], source: Path) -> Sam:
    try:
        sam.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise SegsmithError(
            f"The weights in {source} do not fit the model: {reason:.160}.", _REMEDY
        ) from None
    return sam
