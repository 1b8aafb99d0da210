"""Peak memory of the presets' models at their full size, computed without a GPU and without weights.

Models are built under torch's FakeTensorMode, where tensors have shapes but no data, and every allocation and release
is counted while they run. Each model runs with two batch sizes, which gives its weights, a constant, and the bytes of
one more image. The result is ``segsmith/tools/gpu_figures.json``, from which `segsmith.tools.gpu_plan` plans.

The count is that of the tensors: workspaces of cuDNN, fragmentation and the CUDA context come on top and are covered
by the reserve in `gpu_plan`. Attention is counted as fused, as torch computes it on a GPU.

    python -m benchmarks.gpu_memory            # prints the figures and which differ from the stored ones; 2 minutes
    python -m benchmarks.gpu_memory --write    # stores them
"""

from __future__ import annotations

import argparse
import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import diffusers
import open_clip
import segment_anything
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks import sdxl as sdxl_modules
from segsmith.config import TrainerConfig
from segsmith.segmentation.network import padded_size
from segsmith.tools.gpu_plan import FIGURES, Figure, read_figures
from segsmith.tools.vision.patch_head import PatchHead

HALF = torch.bfloat16
SAM_SETS = 21
"""Point sets decoded at once for a 1024 px image: `sam.MAX_PIXELS` over three masks of a megapixel."""


class Peak(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, and their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for leaf in tree_leaves((args, kwargs)):  # weights, which exist already and of which views are made
            if isinstance(leaf, torch.Tensor):
                self._seen.add(leaf.untyped_storage())
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


def weights(model: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def activations(work: Callable[[int], object], batch: int) -> int:
    """Bytes that ``work(batch)`` needs beyond what is alive when it starts."""
    with Peak() as peak:
        work(batch)
    return peak.peak


def figure(work: Callable[[int], object], held: int, batches: tuple[int, int] = (1, 2)) -> Figure:
    """The figure of a model that holds `held` bytes, from the peaks of two batch sizes."""
    small, large = (activations(work, batch) for batch in batches)
    item = (large - small) // (batches[1] - batches[0])
    return Figure(held, max(0, small - batches[0] * item), item)


@contextmanager
def half_precision() -> Iterator[None]:
    """New weights and tensors are bfloat16."""
    torch.set_default_dtype(HALF)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@half_precision()
def sdxl() -> dict[str, Figure]:
    first, second = sdxl_modules.text_encoders()
    unet = sdxl_modules.unet()

    def denoise(batch: int) -> object:
        rows = 2 * batch  # with and without the prompt
        more = {
            "text_embeds": torch.empty(rows, 1280),
            "time_ids": torch.empty(rows, 6),
        }
        return unet(
            torch.empty(rows, 4, 128, 128), torch.tensor(1),
            torch.empty(rows, 77, 2048), added_cond_kwargs=more,
        )  # fmt: skip

    return pipeline("stabilityai/stable-diffusion-xl-base-1.0", [first, second], unet, denoise, 128)


@half_precision()
def sd_turbo() -> dict[str, Figure]:
    text = CLIPTextModel(CLIPTextConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16
    ))  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True,
    )  # fmt: skip

    def denoise(batch: int) -> object:
        latents = torch.empty(batch, 4, 64, 64)
        return unet(latents, torch.tensor(1), torch.empty(batch, 77, 1024))

    return pipeline("stabilityai/sd-turbo", [text], unet, denoise, 64)


def pipeline(
    name: str, texts: list[nn.Module], unet: nn.Module, denoise: Callable[[int], object], side: int
) -> dict[str, Figure]:
    """Figures of denoising (the weights are those of the whole pipeline), of the largest part, and of decoding."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4,
    )  # fmt: skip
    parts = [*texts, unet, vae]
    with torch.no_grad():
        return {
            f"images:{name}": figure(denoise, sum(map(weights, parts))),
            f"images:{name}:largest part": Figure(max(map(weights, parts)), 0, 0),
            f"images:{name}:decoding": figure(lambda batch: vae.decode(torch.empty(batch, 4, side, side)), 0),
        }


def clip(name: str) -> dict[str, Figure]:
    model = open_clip.create_model(name)

    def embed(batch: int) -> object:
        with torch.autocast("cpu", HALF):
            return model.encode_image(torch.empty(batch, 3, 224, 224), normalize=True)

    with torch.no_grad():
        return {f"judge:{name}": figure(embed, weights(model), (16, 64))}


def vit(name: str, tower: str) -> dict[str, Figure]:
    """Training the labeler's upper half: its weights, gradients and AdamW's two averages, and the lower half."""
    trunk = timm.create_model(name, num_classes=0)
    head = PatchHead(trunk, len(trunk.blocks) // 2, 20, None, torch.Generator())
    tokens = trunk.patch_embed.num_patches + trunk.num_prefix_tokens

    def train(batch: int) -> object:
        head.zero_grad()
        with torch.autocast("cpu", HALF):
            logits = head(torch.empty(batch, tokens, trunk.embed_dim))
        return logits.float().sum().backward()

    held = weights(trunk) + 3 * weights(head)
    return {f"labeler:{tower}": figure(train, held, (8, 32))}


def sam(kind: str) -> dict[str, Figure]:
    model = segment_anything.sam_model_registry[kind](checkpoint=None)

    def segment(sets: int) -> object:
        with torch.autocast("cpu", HALF):
            embedding = model.image_encoder(torch.empty(1, 3, 1024, 1024)).float()
        # The prompt encoder's output for five points: its indexing by labels has no shape without data.
        sparse = torch.empty(sets, 6, 256)
        dense = torch.empty(sets, 256, 64, 64)
        low, _ = model.mask_decoder(
            image_embeddings=embedding, image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=True,
        )  # fmt: skip
        return model.postprocess_masks(low, (1024, 1024), (1024, 1024)) > 0

    with torch.no_grad():
        return {f"masks:sam_{kind}": Figure(weights(model), activations(segment, SAM_SETS), 0)}


def segmenter(encoder: str, classes: int) -> dict[str, Figure]:
    """Training and validation at 1024 px; the weights, gradients, AdamW's averages and the teacher are held."""
    model = smp.create_model("DeepLabV3Plus", encoder, encoder_weights=None, classes=classes)
    height, width = padded_size((1024, 1024), TrainerConfig.model_validate({}).crop)

    def train(batch: int) -> object:
        model.train()
        model.zero_grad()
        with torch.autocast("cpu", HALF):
            logits = model(torch.empty(batch, 3, height, width))
        labels = torch.empty(batch, height, width, dtype=torch.int64)
        return F.cross_entropy(logits.float(), labels).backward()

    def predict(batch: int) -> object:
        with torch.no_grad(), torch.autocast("cpu", HALF):
            return model.eval()(torch.empty(batch, 3, 1024, 1024)).argmax(1).to(torch.uint8)

    name = f"segmenter:{encoder}:{classes} classes"
    training = figure(train, 4 * weights(model), (2, 4))
    return {name: training, f"{name}:predicting": figure(predict, 0)}


MODELS: tuple[Callable[[], dict[str, Figure]], ...] = (
    sdxl,
    sd_turbo,
    lambda: clip("ViT-L-14"),
    lambda: clip("ViT-B-16"),
    lambda: vit("vit_large_patch14_clip_224", "ViT-L-14"),
    lambda: vit("vit_base_patch16_clip_224", "ViT-B-16"),
    lambda: sam("vit_h"),
    lambda: sam("vit_l"),
    lambda: sam("vit_b"),
    lambda: segmenter("tu-resnet50", 6),
    lambda: segmenter("tu-resnet50", 81),
)


def measure() -> Iterator[tuple[str, Figure]]:
    """All figures, in order."""
    for model in MODELS:
        with ExitStack() as stack:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            # Fake tensors cannot be moved, so models stay where they are built; timm reads rates from a tensor.
            stack.enter_context(patch.object(nn.Module, "to", lambda module, *_, **__: module))
            for module in (timm.models.vision_transformer, timm.models.resnet):
                if hasattr(module, RATES):
                    stack.enter_context(patch.object(module, RATES, no_drop_path))
            yield from model().items()


RATES = "calculate_drop_path_rates"


def no_drop_path(rate: float, depths: int | list[int], stagewise: bool = False) -> list[Any]:
    """In place of timm's function of the same name, for rate 0."""
    return [0.0] * depths if isinstance(depths, int) else [[0.0] * depth for depth in depths]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--write", action="store_true", help="store the figures")
    stored = read_figures() if FIGURES.exists() else {}
    given = options.parse_args()
    found: dict[str, Figure] = {}
    for name, value in measure():
        found[name] = value
        same = "" if stored.get(name) == value else "  (not what is stored)"
        gib = [f"{size / 2**30:7.2f}" for size in (value.weights, value.fixed, value.per_item)]
        print(f"{name:60} weights {gib[0]}  fixed {gib[1]}  per item {gib[2]} GiB{same}", flush=True)
    if given.write:
        table = {name: [v.weights, v.fixed, v.per_item] for name, v in found.items()}
        FIGURES.write_text(
            json.dumps(table, indent=1).replace("[\n  ", "[").replace(",\n  ", ", ").replace("\n ]", "]")
            + "\n"
        )


if __name__ == "__main__":
    main()
