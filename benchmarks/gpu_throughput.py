"""Full-size models with random weights on a GPU, through our adapters, against a bare loop of the same batch.

It measures what the adapter costs, not what the images show, so weights are random and nothing is downloaded. Bare
and adapted runs alternate in one process; the ratio is that of the medians.

    python -m benchmarks.gpu_throughput            # SDXL, CLIP ViT-L/14, SAM ViT-H: a GPU with 12 GiB, 12 GB of disk
    python -m benchmarks.gpu_throughput --tiny     # the same code on small models, on a CPU, to see that it runs
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import open_clip
import segment_anything
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import sdxl
from segsmith.config import ImagesConfig
from segsmith.devices import autocast, choose_device, choose_dtype
from segsmith.errors import OutOfMemory
from segsmith.tools.images.diffusion import DiffusionBackend
from segsmith.tools.vision.clip import OpenClipEncoder
from segsmith.tools.vision.sam import SamSegmenter
from segsmith.types import Drawn, ImageRequest
from tests import tiny_pipelines


def save_sdxl(folder: Path) -> Path:
    """Stable Diffusion XL's architecture, its published sizes, random weights in float16."""
    words = tiny_pipelines.tokenizer()
    with torch.device("cuda"):  # initialising 2.6 G weights takes minutes on a CPU
        first, second = sdxl.text_encoders(words.bos_token_id, words.eos_token_id)
        unet = sdxl.unet()
        vae = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=1024,
            scaling_factor=0.13025,
        )  # fmt: skip
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae, text_encoder=first, text_encoder_2=second, tokenizer=words, tokenizer_2=words, unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"
        ),
    )  # fmt: skip
    pipe.to(torch.float16).save_pretrained(folder)
    return folder


def save_clip(name: str, folder: Path) -> str:
    """open_clip's architecture `name` with random weights, as the spec that loads it."""
    with torch.device(choose_device("auto")):
        model = open_clip.create_model(name)
    path = folder / f"{name}.safetensors"
    save_file({key: value.cpu().contiguous() for key, value in model.state_dict().items()}, path)
    return f"{name}:{path}"


def save_sam(kind: str, folder: Path) -> str:
    """SAM's architecture `kind` ("vit_h") with random weights, as an official checkpoint."""
    with torch.device(choose_device("auto")):
        model = segment_anything.sam_model_registry[kind](checkpoint=None)
    path = folder / f"sam_{kind}.pth"
    torch.save({key: value.cpu() for key, value in model.state_dict().items()}, path)
    return str(path)


def seconds(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def against(
    name: str,
    ours: Callable[[], object],
    bare: Callable[[], object],
    items: int,
    repeats: int,
    other: str = "bare",
) -> None:
    """Print items per second of both ways, alternating, and the ratio of their medians."""
    ours(), bare()
    pairs = [(seconds(ours), seconds(bare)) for _ in range(repeats)]
    a, b = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"{name:34} {items / a:8.2f}/s ours  {items / b:8.2f}/s {other}  ratio {b / a:.3f}", flush=True)


def diffusion(folder: Path, size: int, steps: int, batch: int, repeats: int) -> None:
    backend = DiffusionBackend(ImagesConfig(
        backend="diffusion", model=str(folder), size=size, steps=steps, guidance=5.0
    ))  # fmt: skip
    pipe = backend._open()
    requests = [ImageRequest(f"a photo of thing {i}", i) for i in range(batch)]

    def bare():
        generators = [torch.Generator("cpu").manual_seed(r.seed) for r in requests]
        return pipe(
            prompt=[r.prompt for r in requests], height=size, width=size, num_inference_steps=steps,
            guidance_scale=5.0, generator=generators, output_type="np",
        ).images  # fmt: skip

    against(
        f"diffusion, {size} px, {steps} steps, {batch}",
        lambda: list(backend.draw(requests)),
        bare,
        batch,
        repeats,
    )
    half = batch // 2
    saved = lambda: list(backend.draw(requests, lambda i, _: [None if k < half else "filtered" for k in i]))  # noqa: E731
    against("  with half of them filtered", saved, bare, batch, repeats)
    if torch.cuda.is_available():
        print(f"  peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        out_of_memory(backend, requests)


OPTIONS: dict[str, dict[str, bool]] = {
    "channels_last": {"channels_last": True},
    "fuse_qkv": {"fuse_qkv": True},
    "channels_last and fuse_qkv": {"channels_last": True, "fuse_qkv": True},
    "compile": {"compile": True},
    "all three": {"channels_last": True, "fuse_qkv": True, "compile": True},
}
"""Settings of `images` that change speed alone. The first two are what the preset `gpu` has."""


def ablation(folder: Path, size: int, steps: int, batch: int, repeats: int, *, compiles: bool) -> None:
    """Each option against the pipeline without any, two pipelines at a time."""

    def backend(**options: bool) -> DiffusionBackend:
        return DiffusionBackend(ImagesConfig(
            backend="diffusion", model=str(folder), size=size, steps=steps, guidance=5.0, **options
        ))  # fmt: skip

    requests = [ImageRequest(f"a photo of thing {i}", i) for i in range(batch)]

    def draw(drawing: DiffusionBackend) -> list[Drawn]:
        return list(drawing.draw(requests))

    plain = backend()
    for name, options in OPTIONS.items():
        if options.get("compile") and not compiles:
            continue
        faster = backend(**options)
        against(
            f"  {name}",
            partial(draw, faster),
            partial(draw, plain),
            batch,
            repeats,
            other="without",
        )
        faster.close()
    plain.close()


def out_of_memory(backend: DiffusionBackend, requests: list[ImageRequest]) -> None:
    """Occupy the GPU's memory until a batch fails, then check that a single image can still be drawn."""
    hoard, unit = [], 2**30
    while torch.cuda.mem_get_info()[0] > 2 * unit:
        hoard.append(torch.empty(unit, dtype=torch.uint8, device="cuda"))
    try:
        list(backend.draw(requests * 8))
        print("  out of memory: could not be provoked")
    except OutOfMemory:
        hoard.clear()
        torch.cuda.empty_cache()
        (drawn,) = backend.draw(requests[:1])
        print(f"  out of memory: reported, and drew again: {drawn.image is not None}")


def clip(spec: str, batch: int, repeats: int) -> None:
    device = choose_device("auto")
    encoder = OpenClipEncoder.load(spec)
    images = [np.random.default_rng(i).integers(0, 255, (512, 512, 3), dtype=np.uint8) for i in range(batch)]

    def bare():
        pixels = torch.stack([encoder.preprocess(Image.fromarray(i)) for i in images]).to(encoder.device)
        with torch.inference_mode(), autocast(device, choose_dtype(device)):
            return encoder.model.encode_image(pixels, normalize=True).cpu()

    against(
        f"CLIP {spec.partition(':')[0]}, {batch}", lambda: encoder.embed_images(images), bare, batch, repeats
    )


def sam(spec: str, repeats: int) -> None:
    segmenter = SamSegmenter.load(spec)
    image = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    points = [np.array([[200.0 + 50 * i, 300.0]], dtype=np.float32) for i in range(8)]
    one = lambda: segmenter.segment(image, points)  # noqa: E731
    each = lambda: [segmenter.segment(image, [p]) for p in points]  # noqa: E731
    against("SAM, 8 prompts of one image", one, each, 1, repeats, other="prompt by prompt")


def load_random_weights(folder: Path) -> None:
    """See that our adapters load the files that `save_clip` and `save_sam` write."""
    dim = OpenClipEncoder.load(save_clip("RN50", folder), "cpu").dim
    SamSegmenter.load(save_sam("vit_b", folder), "cpu")
    print(f"random weights load: CLIP RN50 ({dim} dimensions), SAM ViT-B")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--tiny", action="store_true", help="tiny models on whatever device there is")
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument(
        "--compile", action="store_true", help="also try images.compile, which takes minutes"
    )
    given = options.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        raise SystemExit("No CUDA device; --tiny runs small models on the CPU.")
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, device {choose_device('auto')}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.tiny:
            pipeline, size = tiny_pipelines.save("sdxl", folder / "p"), tiny_pipelines.SIDE
        else:
            pipeline, size = save_sdxl(folder / "p"), 1024
        diffusion(pipeline, size, given.steps, given.batch, given.repeats)
        ablation(pipeline, size, given.steps, given.batch, given.repeats, compiles=given.compile)
        clip("mini" if given.tiny else save_clip("ViT-L-14", folder), 16, given.repeats)
        sam("mini" if given.tiny else save_sam("vit_h", folder), given.repeats)
        if given.tiny:
            load_random_weights(folder)


if __name__ == "__main__":
    main()
