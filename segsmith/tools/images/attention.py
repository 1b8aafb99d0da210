"""The generator as a witness: cross-attention of a Stable Diffusion model between an image and the class names.

DAAM (Tang et al. 2023) and Dataset Diffusion (Nguyen et al. 2023) read masks from the attention of the steps that
draw an image. Here a finished image is partly noised and denoised again, with the class list as its prompt. That is
a few evaluations of the UNet for each accepted image, where recording would slow down the drawing of all images; and
it needs neither the prompt nor the noise of the drawing, so it works for images that another process drew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segsmith.config import Config, ImagesConfig
from segsmith.device_memory import Batches
from segsmith.errors import SegsmithError
from segsmith.ids import seed_of
from segsmith.tools.images.diffusion import DiffusionBackend
from segsmith.types import Image, Testimony

STRENGTH = 0.6
"""Noise level that an image is denoised from again, as a fraction of the schedule: its layout is still to be seen
there, and the names have influence (ours)."""
STEPS = 5
"""Steps of the whole schedule, of which `STRENGTH` are taken (ours)."""
GRID = 32
"""Cells along the side of a map, at most; SD's finest layers have 64, and their attention follows texture (ours)."""
COARSEST = 8
"""Layers with fewer cells along their side are left out, unless there are no others (ours)."""
PEAK = 0.05
"""Share of the cells, those with the highest attention to a class, that decide how sure the witness is (ours)."""
KEPT_FROM = 0.1
"""Score from which the map of a class is kept; below, the class is denied (`agreement.LEVELS`)."""
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "LatentConsistencyModelPipeline")
REMEDY = "Set witnesses.attention = 'off', or images.model to Stable Diffusion 1, 2 or XL."


@dataclass(frozen=True)
class ClassPrompt:
    """A prompt of class names that compete for attention, and where the tokens of each name are in it."""

    text: str
    tokens: Mapping[str, range]
    """Class -> positions, the start token included."""


class AttentionWitness:
    """A `Witness` around the image model of a run.

    A class's score is its share of the attention in its best cells, compared with that of the other names of a
    prompt: 0 for an even share, 1 for all of it. Maps are kept of classes with at least `KEPT_FROM`. Without other
    classes there is nothing to compare with, and no answer.
    """

    def __init__(self, backend: DiffusionBackend, classes: Sequence[str], images: ImagesConfig) -> None:
        self.name = f"attention:{backend.name}@{STRENGTH:g}"
        self._backend = backend
        self._classes = tuple(classes)
        self._size = images.size
        self._batches = Batches(images.batch_size, "the attention to one image", REMEDY)

    def release(self) -> None:
        """Free the pipeline; the next image loads it again."""
        self._backend.close()

    def testify(self, images: Sequence[Image], ids: Sequence[str]) -> list[Testimony | None]:
        """See `Witness.testify`. The noise added to an image depends on its id alone."""
        if len(self._classes) == 1:
            return [None] * len(images)
        pipe = self._backend.pipeline()
        prompts = class_prompts(pipe.tokenizer, self._classes)

        def of_batch(start: int, stop: int) -> list[Testimony]:
            shares: list[dict[str, NDArray[np.float32]]] = [{} for _ in range(start, stop)]
            scores: list[dict[str, float]] = [{} for _ in range(start, stop)]
            for prompt in prompts:
                found = attention_shares(pipe, images[start:stop], ids[start:stop], prompt, self._size)
                for row, maps in enumerate(found):
                    shares[row].update(zip(prompt.tokens, maps, strict=True))
                    scores[row].update(
                        {n: peak_score(m, len(maps)) for n, m in zip(prompt.tokens, maps, strict=True)}
                    )
            return [testimony(*said) for said in zip(scores, shares, strict=True)]

        return [said for batch in self._batches.run(len(images), of_batch) for said in batch]


def open_attention(config: Config) -> AttentionWitness:
    """The image model of section images as a witness; it is loaded for the first image.

    Raises `SegsmithError` unless it is a Stable Diffusion model with a UNet.
    """
    check_attention(config)
    # Hooks do not see into a compiled network, and the filter belongs to drawing.
    images = config.images.model_copy(
        update={"compile": False, "filter": config.images.filter.model_copy(update={"enabled": False})}
    )
    return AttentionWitness(DiffusionBackend(images, offline=config.offline), config.classes, images)


def check_attention(config: Config) -> None:
    """Raise `SegsmithError` unless the image model's attention can be read. Its files must be on this machine."""
    from segsmith.tools.images.diffusion_files import pipeline_files

    images = config.images
    if images.backend != "diffusion":
        raise SegsmithError(
            f"witnesses.attention needs a local diffusion model, and images.backend is {images.backend!r}.",
            REMEDY,
        )
    if images.models:
        raise SegsmithError(
            "witnesses.attention needs one image model, and images.models names several.", REMEDY
        )
    kind = pipeline_files(images, offline=config.offline).index.pipeline
    if kind not in PIPELINES:
        raise SegsmithError(f"witnesses.attention cannot read the attention of {kind}.", REMEDY)


# -- scores and maps ----------------------------------------------------------------------------------


def peak_score(shares: NDArray[np.float32], rivals: int) -> float:
    """How far a class's (h, w) shares exceed an even share among `rivals` names in its best cells, in [0, 1]."""
    cells = max(1, round(PEAK * shares.size))
    peak = float(np.sort(shares, axis=None)[-cells:].mean())
    return min(1.0, max(0.0, (peak * rivals - 1) / (rivals - 1)))


def testimony(scores: Mapping[str, float], shares: Mapping[str, NDArray[np.float32]]) -> Testimony:
    """The scores of all classes, and the maps of those that are not denied, divided by their maximum."""
    return Testimony(
        scores,
        maps={
            name: np.round(255 * of_class / max(float(of_class.max()), 1e-6)).astype(np.uint8)
            for name, of_class in shares.items()
            if scores[name] >= KEPT_FROM
        },
    )


# -- the network --------------------------------------------------------------------------------------


def class_prompts(tokenizer: Any, classes: Sequence[str]) -> list[ClassPrompt]:
    """Lists of class names, separated by commas, each short enough for the tokenizer and with at least two names."""
    room = tokenizer.model_max_length - 2
    groups: list[list[str]] = [[]]
    for name in classes:
        if groups[-1] and _tokens(tokenizer, [*groups[-1], name]) > room:
            groups.append([])
        groups[-1].append(name)
    if len(groups[-1]) == 1 and len(groups) > 1 and len(groups[-2]) > 2:
        groups[-1].insert(0, groups[-2].pop())
    for number, names in enumerate(groups):
        if len(names) == 1 and len(groups) > 1:  # a long name competes with one that is in another list, too
            names.append(groups[number - 1][0])
    prompts = []
    for names in groups:
        ends = [_tokens(tokenizer, names[: k + 1]) for k in range(len(names))]
        starts = [0, *(_tokens(tokenizer, [*names[:k], ""]) for k in range(1, len(names)))]
        tokens = {n: range(a + 1, b + 1) for n, a, b in zip(names, starts, ends, strict=True)}
        prompts.append(ClassPrompt(", ".join(names), tokens))
    return prompts


def _tokens(tokenizer: Any, names: Sequence[str]) -> int:
    return len(tokenizer(", ".join(names), add_special_tokens=False).input_ids)


@torch.inference_mode()
def attention_shares(
    pipe: Any, images: Sequence[Image], ids: Sequence[str], prompt: ClassPrompt, size: int
) -> NDArray[np.float32]:
    """(N, K, h, w): how the attention of each cell is divided among the K names of a prompt; sums to 1 over K."""
    import diffusers

    redrawing = diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    redrawing.set_progress_bar_config(disable=True)
    record = _Record(prompt)
    try:
        with _recorded(pipe.unet, record):
            redrawing(
                prompt=[prompt.text] * len(images),
                image=torch.stack([_pixels(image, size) for image in images]),
                strength=STRENGTH,
                num_inference_steps=STEPS,
                guidance_scale=1.0,  # off: only the prompt is evaluated
                generator=[torch.Generator("cpu").manual_seed(seed_of(0, i) % 2**63) for i in ids],
                output_type="latent",
            )
    finally:
        pipe.maybe_free_model_hooks()
    return record.shares()


def _pixels(image: Image, size: int) -> torch.Tensor:
    """(3, size, size) float32 in [0, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return resized[0].clamp(0, 1)


@dataclass
class _Record:
    """Sums, over layers and steps, the attention of each cell to the names of a prompt."""

    prompt: ClassPrompt
    sums: dict[int, torch.Tensor] = field(default_factory=dict)
    """Cells along the side of a layer -> (N, K, side, side)."""

    def __call__(self, layer: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """A hook that runs before an attention layer of the UNet."""
        hidden = arguments[0] if arguments else named["hidden_states"]
        text = named.get("encoder_hidden_states")
        if text is None:
            return
        if layer.norm_cross:
            text = layer.norm_encoder_hidden_states(text)
        query, key = layer.head_to_batch_dim(layer.to_q(hidden)), layer.head_to_batch_dim(layer.to_k(text))
        attention = layer.get_attention_scores(query, key)  # (N * heads, cells, tokens)
        of_names = torch.stack(
            [attention[..., list(where)].float().mean(-1) for where in self.prompt.tokens.values()], 1
        )
        per_image = of_names.reshape(len(text), layer.heads, *of_names.shape[1:]).mean(1)  # (N, K, cells)
        side = math.isqrt(per_image.shape[-1])
        maps = per_image.reshape(*per_image.shape[:2], side, side).cpu()
        self.sums[side] = self.sums[side] + maps if side in self.sums else maps

    def shares(self) -> NDArray[np.float32]:
        fine = {side: maps for side, maps in self.sums.items() if side >= COARSEST} or self.sums
        side = min(GRID, max(fine))
        total = sum(
            torch.nn.functional.interpolate(maps, (side, side), mode="bilinear", antialias=True)
            for maps in fine.values()
        )
        assert isinstance(total, torch.Tensor)
        return np.asarray((total / total.sum(1, keepdim=True).clamp_min(1e-12)).numpy(), np.float32)


@contextmanager
def _recorded(unet: torch.nn.Module, record: _Record) -> Iterator[None]:
    """Call `record` before each cross-attention layer of a UNet, which diffusers names attn2."""
    layers = [layer for name, layer in unet.named_modules() if name.endswith("attn2")]
    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
