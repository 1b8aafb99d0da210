"""The relabelling ViT: a timm VisionTransformer whose patches are scored per class.

SynthSeg-Agents relabels the whole synthetic set with a light ViT (Fig. 4) and does not state its pooling;
ours is the mean of the top-k patches with a multi-label loss, after TKP-PCL (arXiv 2310.09828). The lower
half of the network stays as CLIP left it, so its output is computed once per image and view, and training
the upper half takes seconds.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from segsmith.config import LabelerConfig
from segsmith.errors import SegsmithError
from segsmith.segmentation.seeds import top_k_pool
from segsmith.tools.clip import OpenClipEncoder, choose_device
from segsmith.tools.protocols import Image, PatchScores

logger = logging.getLogger(__name__)

LAYER_DECAY = 0.7
"""Each block learns this much slower than the one above it, so that CLIP's features survive."""
HEAD_RATE = 10.0
"""The head learns this much faster than the top block."""
LOCAL_BLOCKS = 2
"""In that many of the top blocks a token attends to itself alone, in training and after.

Attention spreads the class over all patches, so that the background scores too. Without it in the last
blocks patches answer for themselves (MaskCLIP, Zhou et al. 2022, section 3.2, does so in the last one).
"""
WEIGHT_DECAY = 0.05
BACKGROUND_TEXTS = ("an empty scene", "a photo of nothing", "background", "a photo of an empty place")
START_SCALE = 10.0
"""Logits per unit of cosine before training: sure enough to rank, soft enough to learn."""
JITTER = 0.15
"""Largest change of brightness and tint of the jittered views, as a share of the value range."""


class TimmPatchClassifier:
    """Trains and applies the patch classifier; see `PatchClassifier`.

    The same seed, images and labels give the same scores on the CPU.
    """

    def __init__(
        self,
        trunk: VisionTransformer,
        n_classes: int,
        settings: LabelerConfig,
        seed: int,
        *,
        name: str,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        start: torch.Tensor | None = None,
        map_scale: int = 2,
        device: str = "auto",
    ) -> None:
        """`start` is (C, D): where the head's weights begin; without it they begin near 0.

        `map_scale` makes the maps that much finer than the patch grid, by enlarging the image; it needs a
        trunk with `dynamic_img_size`, others stay at 1.
        """
        self.device = torch.device(choose_device(device))
        self.trunk = trunk.to(self.device).eval().requires_grad_(False)
        self.n_classes = n_classes
        self.settings = settings
        self.seed = seed
        self.name = name
        self.size = size
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)
        self.start = start
        self.map_scale = map_scale if trunk.dynamic_img_size else 1
        self.frozen = max(1, len(trunk.blocks) // 2)

    @classmethod
    def from_encoder(
        cls,
        encoder: OpenClipEncoder,
        n_classes: int,
        settings: LabelerConfig,
        seed: int,
        *,
        class_names: Sequence[str] | None = None,
        map_scale: int = 2,
    ) -> TimmPatchClassifier:
        """Start from a copy of the CLIP image tower, and with `class_names` from its zero-shot classifier.

        A head of ``text embedding @ projection`` scores a patch by its cosine with the class, less that
        with texts for background. Raises `SegsmithError` for a tower that is not a ViT.
        """
        trunk, projection = tower_as_timm(encoder)
        config: dict[str, Any] = encoder.preprocess_config
        start = None
        if class_names is not None and projection is not None:
            texts = torch.from_numpy(encoder.embed_texts([f"a photo of a {name}" for name in class_names]))
            nothing = torch.from_numpy(encoder.embed_texts(BACKGROUND_TEXTS)).mean(0)
            start = (texts - nothing) @ projection
        size = config["size"]
        return cls(trunk, n_classes, settings, seed, name=f"vit:{encoder.name}", start=start,
                   size=size if isinstance(size, int) else size[0], mean=config["mean"],
                   std=config["std"], map_scale=map_scale, device=str(encoder.device))  # fmt: skip

    @classmethod
    def from_timm(
        cls,
        name: str,
        n_classes: int,
        settings: LabelerConfig,
        seed: int,
        *,
        pretrained: bool = False,
        map_scale: int = 2,
        device: str = "auto",
    ) -> TimmPatchClassifier:
        """Start from a timm model by name; `pretrained` weights are downloaded by timm.

        Raises `SegsmithError` when there is no such model, or it is not a plain ViT.
        """
        if not timm.is_model(name):
            raise SegsmithError(f"timm has no model {name!r}.", "List them with timm.list_models('vit*').")
        try:
            trunk = timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
        except TypeError:  # only ViTs and their kin take a dynamic size
            trunk = None
        if not isinstance(trunk, VisionTransformer):
            raise SegsmithError(f"The timm model {name!r} is not a VisionTransformer.", "Name a vit_* model.")
        cfg: Any = trunk.pretrained_cfg
        return cls(trunk, n_classes, settings, seed, name=f"vit:{name}", size=cfg["input_size"][-1],
                   mean=cfg["mean"], std=cfg["std"], map_scale=map_scale, device=device)  # fmt: skip

    def out_of_fold(
        self, images: Sequence[Image], labels: NDArray[np.float32], groups: Sequence[str]
    ) -> PatchScores:
        """One fresh model per fold; with a single group one model trains on all, and a warning says so."""
        if not len(images) == len(labels) == len(groups) or labels.shape[1:] != (self.n_classes,):
            raise ValueError(f"{len(images)} images, labels {labels.shape}, {len(groups)} groups do not match")
        if not images:
            return PatchScores(np.zeros((0, self.n_classes, 1, 1), np.float32), np.zeros_like(labels))
        folds = group_folds(groups, self.settings.folds, self.seed)
        target = torch.from_numpy(np.asarray(labels, np.float32))
        views = self._training_views(images)
        maps: NDArray[np.float32] | None = None
        probabilities = np.zeros_like(labels, np.float32)
        for number, held_out in enumerate(folds):
            kept = np.setdiff1d(np.arange(len(images)), held_out)
            if not len(kept):
                logger.warning("One group only: the relabelling model sees the images that it relabels.")
                kept = held_out
            model = self._train([view[kept] for view in views], target[kept], number)
            for where in np.array_split(held_out, math.ceil(len(held_out) / self.settings.batch_size)):
                logits, pooled = self._predict(model, [images[i] for i in where])
                if maps is None:
                    maps = np.zeros((len(images), *logits.shape[1:]), np.float32)
                maps[where], probabilities[where] = logits.sigmoid().cpu(), pooled.sigmoid().cpu()
        assert maps is not None
        return PatchScores(maps, probabilities)

    # -- views and features -----------------------------------------------------------------------

    def _training_views(self, images: Sequence[Image]) -> list[torch.Tensor]:
        """Frozen features of four views: the image, its mirror, and both in other colours."""
        generator = torch.Generator().manual_seed(self.seed)
        views: list[list[torch.Tensor]] = [[], [], [], []]
        for batch in self._batches(images):
            tint = (torch.rand(len(batch), 3, 1, 1, generator=generator) * 2 - 1) * JITTER
            gain = 1 + (torch.rand(len(batch), 1, 1, 1, generator=generator) * 2 - 1) * JITTER
            for view, pixels in zip(
                views,
                (batch, batch.flip(-1), batch * gain + tint, batch.flip(-1) * gain + tint),
                strict=True,
            ):
                view.append(self._frozen(pixels, self.size).half().cpu())
        return [torch.cat(view) for view in views]

    def _batches(self, images: Sequence[Image]) -> Iterator[torch.Tensor]:
        """(B, 3, size, size) in [0, 1]."""
        for start in range(0, len(images), self.settings.batch_size):
            pictures = [
                torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
                for image in images[start : start + self.settings.batch_size]
            ]
            yield torch.stack([self._resized(picture.unsqueeze(0), self.size)[0] for picture in pictures])

    @staticmethod
    def _resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
        if pixels.shape[-2:] == (size, size):
            return pixels
        return functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)

    @torch.no_grad()
    def _frozen(self, pixels: torch.Tensor, size: int) -> torch.Tensor:
        """Tokens after the frozen blocks, (B, P + h * w, D), of pictures in [0, 1]; P prefix tokens."""
        x = ((self._resized(pixels, size) - self.mean) / self.std).to(self.device)
        trunk: Any = self.trunk
        (tokens,) = trunk.forward_intermediates(
            x, indices=[self.frozen - 1], return_prefix_tokens=True, stop_early=True,
            output_fmt="NLC", intermediates_only=True,
        )  # fmt: skip
        if isinstance(tokens, tuple):
            tokens = torch.cat([tokens[1], tokens[0]], dim=1)
        return tokens

    # -- one fold ---------------------------------------------------------------------------------

    def _train(self, views: Sequence[torch.Tensor], target: torch.Tensor, fold: int) -> _Upper:
        """A fresh upper half trained on (N, L, D) features with (N, C) labels in [0, 1]."""
        settings = self.settings
        generator = torch.Generator().manual_seed(self.seed * 1000 + fold)
        model = _Upper(self.trunk, self.frozen, self.n_classes, self.start, generator).to(self.device)
        model.calibrate(views[0].float().to(self.device), target.to(self.device), settings.top_k)
        optimizer = torch.optim.AdamW(model.parameter_groups(settings.learning_rate), weight_decay=WEIGHT_DECAY)
        steps = settings.epochs * math.ceil(len(target) / settings.batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_cosine, steps=steps))
        stacked = torch.stack(list(views))
        for _ in range(settings.epochs):
            for rows in torch.randperm(len(target), generator=generator).split(settings.batch_size):
                view = torch.randint(len(views), (len(rows),), generator=generator)
                logits = model(stacked[view, rows].float().to(self.device))
                pooled = top_k_pool(logits, settings.top_k)
                loss = functional.binary_cross_entropy_with_logits(pooled, target[rows].to(self.device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
        return model.eval()

    @torch.no_grad()
    def _predict(self, model: _Upper, images: Sequence[Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """Patch logits (B, C, h, w) at the finer scale and pooled logits (B, C), mirrored views averaged."""
        pixels = torch.cat(list(self._batches(images)))
        coarse = self._both_ways(model, pixels, self.size)
        pooled = top_k_pool(coarse, self.settings.top_k)
        if self.map_scale == 1:
            return coarse, pooled
        return self._both_ways(model, pixels, self.size * self.map_scale), pooled

    def _both_ways(self, model: _Upper, pixels: torch.Tensor, size: int) -> torch.Tensor:
        plain, mirrored = (model(self._frozen(p, size)) for p in (pixels, pixels.flip(-1)))
        return (plain + mirrored.flip(-1)) / 2


class _Upper(nn.Module):
    """The blocks above the frozen ones, the norms, and a linear score per class for every patch."""

    def __init__(
        self,
        trunk: Any,
        frozen: int,
        n_classes: int,
        start: torch.Tensor | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.prefix = trunk.num_prefix_tokens
        self.blocks = copy.deepcopy(trunk.blocks[frozen:])
        # A norm that timm applies after pooling is applied to each patch here.
        self.norm = nn.Sequential(copy.deepcopy(trunk.norm), copy.deepcopy(trunk.fc_norm))
        self.head = nn.Linear(trunk.embed_dim, n_classes)
        weight = torch.randn(n_classes, trunk.embed_dim, generator=generator) * 0.02
        self.has_start = start is not None
        with torch.no_grad():
            self.head.weight.copy_(weight if start is None else start)
            self.head.bias.zero_()
        self.requires_grad_(True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, P + h * w, D) -> (B, C, h, w) logits."""
        alone = torch.full((tokens.shape[1],) * 2, -math.inf, device=tokens.device).fill_diagonal_(0)
        for below_top, block in zip(range(len(self.blocks), 0, -1), self.blocks, strict=True):
            tokens = block(tokens, attn_mask=alone) if below_top <= LOCAL_BLOCKS else block(tokens)
        patches = self.norm(tokens)[:, self.prefix :]
        side = math.isqrt(patches.shape[1])
        return self.head(patches).transpose(1, 2).unflatten(2, (side, side))

    @torch.no_grad()
    def calibrate(self, tokens: torch.Tensor, target: torch.Tensor, top_k: int) -> None:
        """Set scale and bias so that, before training, 0 lies between what a class's pictures score and
        what others do; a class without pictures starts above all that others score."""
        pooled = torch.cat([top_k_pool(self(part), top_k) for part in tokens.split(256)])
        if self.has_start:
            scale = START_SCALE / 3 / pooled.std(0).mean().clamp_min(1e-6) if len(pooled) > 1 else 1.0
            self.head.weight.mul_(scale)
            pooled = pooled * scale
        positive = (target > 0.5).float()
        above = (pooled * positive).sum(0) / positive.sum(0).clamp_min(1)
        below = (pooled * (1 - positive)).sum(0) / (1 - positive).sum(0).clamp_min(1)
        top = pooled.max(0).values
        middle = torch.where(positive.sum(0) > 0, (above + below) / 2, top)
        self.head.bias.copy_(-middle)

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """AdamW groups: each lower block slower by `LAYER_DECAY`, the head faster."""
        depth = len(self.blocks)
        groups = [
            {"params": list(block.parameters()), "lr": rate * LAYER_DECAY ** (depth - 1 - i)}
            for i, block in enumerate(self.blocks)
        ]
        groups.append({"params": list(self.norm.parameters()), "lr": rate})
        groups.append({"params": list(self.head.parameters()), "lr": rate * HEAD_RATE, "weight_decay": 0.0})
        return [group for group in groups if group["params"]]


def group_folds(groups: Sequence[str], folds: int, seed: int) -> list[NDArray[np.int64]]:
    """Indices held out by each fold: every index once, a group never in two folds, sizes near equal.

    At most as many folds as there are groups.
    """
    names, inverse, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]
    load = np.zeros(min(folds, len(names)))
    fold_of = np.zeros(len(names), int)
    for name in order:
        fold_of[name] = int(load.argmin())
        load[fold_of[name]] += counts[name]
    return [np.flatnonzero(fold_of[inverse] == fold) for fold in range(len(load))]


def tower_as_timm(encoder: OpenClipEncoder) -> tuple[VisionTransformer, torch.Tensor | None]:
    """A copy of the CLIP image tower as a timm ViT, and its (E, D) projection of tokens, if linear.

    open_clip's own ViT is rebuilt as timm's through timm's checkpoint filter.
    """
    tower: Any = encoder.tower
    trunk = getattr(tower, "trunk", None)
    if isinstance(trunk, VisionTransformer):
        projection = getattr(tower.head, "proj", None)
        weight = projection.weight if isinstance(projection, nn.Linear) else None
        return copy.deepcopy(trunk), None if weight is None else weight.detach().cpu().float()
    if not hasattr(tower, "class_embedding") or not hasattr(tower, "conv1"):
        raise SegsmithError(
            f"The image tower of {encoder.name} is not a ViT, so the labeler cannot start from it.",
            "Name a CLIP with a ViT in --set judge.clip, such as 'mini' or ViT-B-16:openai.",
        )
    block = tower.transformer.resblocks[0]
    rebuilt = VisionTransformer(
        img_size=tower.image_size,
        patch_size=tower.patch_size,
        embed_dim=tower.conv1.out_channels,
        depth=len(tower.transformer.resblocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.c_fc.out_features / block.mlp.c_fc.in_features,
        pre_norm=True,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=block.ln_1.eps),
        act_layer="quick_gelu" if type(block.mlp.gelu).__name__ == "QuickGELU" else "gelu",
        dynamic_img_size=True,
    )
    state = {f"visual.{key}": value.detach().cpu() for key, value in tower.state_dict().items()}
    converted = checkpoint_filter_fn(state, rebuilt)
    rebuilt.load_state_dict({k: v for k, v in converted.items() if not k.startswith("head.")})
    return rebuilt, tower.proj.detach().cpu().float().T


def _cosine(step: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))
