"""The relabelling ViT: a timm VisionTransformer or Eva whose patches are scored per class.

SynthSeg-Agents relabels the whole synthetic set with a light ViT (Fig. 4) and does not state its pooling;
ours is the mean of the top-k patches with a multi-label loss, after TKP-PCL (arXiv 2310.09828). The lower
half of the network is frozen, so its output is computed once per image and view, and training the upper half
takes seconds.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from segsmith.config import Config, LabelerConfig
from segsmith.device_memory import Batches
from segsmith.devices import autocast, choose_device, choose_dtype, training_dtype
from segsmith.errors import SegsmithError
from segsmith.model_loading import READ_ERRORS, cached_first
from segsmith.protocols import OnMaps
from segsmith.segmentation.folds import plan_folds
from segsmith.segmentation.seeds import top_k_pool
from segsmith.terminal_text import first_line
from segsmith.tools.vision.clip import OpenClipEncoder
from segsmith.tools.vision.clip_to_timm import class_directions, is_vit, tower_as_timm
from segsmith.tools.vision.patch_head import PatchHead
from segsmith.types import Image, PatchScores

WEIGHT_DECAY = 0.05
MAX_FEATURES_IN_MEMORY = 2 << 30
"""Maximum bytes of frozen features in memory; more (ViT-L, thousands of images) go to an unlinked file."""
JITTER = 0.15
"""Largest change of brightness and tint in the jittered views, as a share of the value range."""


class TimmPatchClassifier:
    """Trains and applies the patch classifier; see `PatchClassifier`.

    The same seed, images and labels give the same scores on the CPU.
    """

    def __init__(
        self,
        trunk: VisionTransformer | Eva,
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
        precision: str = "auto",
    ) -> None:
        """`start` is (C, D), the initial weights of the head; without it they are random and near 0.

        `map_scale` s makes the maps s times finer than the patch grid: the model is applied to s * s copies of
        the image, each shifted by a fraction of a patch, and the scores are interleaved.
        """
        self.device = torch.device(choose_device(device))
        self.dtype = choose_dtype(str(self.device), precision)
        self.trunk = trunk.to(self.device).eval().requires_grad_(False)
        self.n_classes = n_classes
        self.settings = settings
        self.seed = seed
        self.name = name
        self.size = size
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)
        self.start = start
        self.map_scale = map_scale
        self.frozen = max(1, len(trunk.blocks) // 2)
        remedy = "Stop other programs on the GPU, or set labeler.vit to a smaller ViT."
        self._inference = Batches(settings.batch_size, f"one image in {name}", remedy)
        self._training = Batches(settings.batch_size, f"training {name} on one image", remedy)

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
        """Start from a copy of the CLIP image tower and, with `class_names`, from its zero-shot classifier.

        A head of ``text embedding @ projection`` scores a patch by its cosine with the class, minus its cosine
        with background texts. Raises `SegsmithError` for a tower that is not a ViT.
        """
        trunk, projection = tower_as_timm(encoder)
        config: dict[str, Any] = encoder.preprocess_config
        start = None
        if class_names is not None and projection is not None:
            start = class_directions(encoder, class_names, projection)
        size = config["size"]
        return cls(trunk, n_classes, settings, seed, name=f"vit:{encoder.name}", start=start,
                   size=size if isinstance(size, int) else size[0], mean=config["mean"],
                   std=config["std"], map_scale=map_scale, device=str(encoder.device),
                   precision=encoder.precision)  # fmt: skip

    @classmethod
    def from_timm(
        cls,
        spec: str,
        n_classes: int,
        settings: LabelerConfig,
        seed: int,
        *,
        pretrained: bool = False,
        map_scale: int = 2,
        device: str = "auto",
        precision: str = "auto",
    ) -> TimmPatchClassifier:
        """Start from a timm ViT: ``name``, or ``name:file`` with weights of that name in a local file.

        With `pretrained`, the weights of a name without a file come from the hub or its cache. Files are read as
        safetensors or with ``weights_only``. Raises `SegsmithError` if there is no such model or file, the
        weights do not fit, or the model is not a plain ViT.
        """
        name, _, file = spec.partition(":")
        if not timm.is_model(name):
            raise SegsmithError(f"timm has no model {name!r}.", "List them with timm.list_models('vit*').")
        trunk = _timm_vit(name, Path(file).expanduser() if file else None, pretrained)
        cfg: Any = trunk.pretrained_cfg
        return cls(trunk, n_classes, settings, seed, name=f"vit:{spec}", size=cfg["input_size"][-1],
                   mean=cfg["mean"], std=cfg["std"], map_scale=map_scale, device=device,
                   precision=precision)  # fmt: skip

    def out_of_fold(
        self,
        images: Sequence[Image],
        labels: NDArray[np.float32],
        groups: Sequence[str],
        on_maps: OnMaps | None = None,
    ) -> PatchScores:
        """One new model per fold; with a single group, one model is trained on all images, with a warning.

        Of more than `folds.MAX_TAUGHT` images, the models are trained on a sample with equal numbers of all classes.
        """
        if not len(images) == len(labels) == len(groups) or labels.shape[1:] != (self.n_classes,):
            raise ValueError(
                f"{len(images)} images, labels {labels.shape}, {len(groups)} groups do not match"
            )
        if not images:
            return PatchScores(np.zeros((0, self.n_classes, 1, 1), np.float32), np.zeros_like(labels))
        folds = plan_folds(labels, groups, self.settings.folds, self.settings.batch_size, self.seed)
        order = folds.order
        views = self.features(([images[int(i)] for i in batch] for batch in folds.taught), len(order))
        place = np.full(len(images), -1)
        place[order] = np.arange(len(order))
        maps: NDArray[np.float32] | None = None
        probabilities = np.zeros_like(labels, np.float32)
        for fold, batches in enumerate(folds.held_out):
            model = self._train(views, folds.kept(fold), labels[order], fold)
            for where in batches:
                batch = [images[int(i)] for i in where]
                known = views[:2, torch.from_numpy(place[where])] if folds.all_taught else None
                found = self._scored(model, batch, known)
                probabilities[where] = found.probabilities
                if maps is None:
                    shape = found.maps.shape[1:]
                    maps = np.zeros((len(images) if on_maps is None else 0, *shape), np.float32)
                if on_maps is None:
                    maps[where] = found.maps
                else:
                    on_maps(where, found.maps)
        assert maps is not None
        return PatchScores(maps, probabilities)

    def features(self, batches: Iterable[Sequence[Image]], count: int) -> torch.Tensor:
        """Frozen features (4, N, L, D) of four views: the image, its mirror image, and both in jittered colours.

        They are half-precision numbers in main memory, or in a file if they are large.
        """
        generator = torch.Generator().manual_seed(self.seed)
        views: torch.Tensor | None = None
        done = 0
        for batch in (pixels for images in batches for pixels in self._batches(images)):
            tint = (torch.rand(len(batch), 3, 1, 1, generator=generator) * 2 - 1) * JITTER
            gain = 1 + (torch.rand(len(batch), 1, 1, 1, generator=generator) * 2 - 1) * JITTER
            tinted = batch * gain + tint
            for number, pixels in enumerate((batch, batch.flip(-1), tinted, tinted.flip(-1))):
                features = self._frozen(pixels).half().cpu()
                if views is None:
                    views = _half_store((4, count, *features.shape[1:]))
                views[number, done : done + len(batch)] = features
            done += len(batch)
        assert views is not None
        return views

    def teach(
        self, features: torch.Tensor, labels: NDArray[np.float32], kept: NDArray[np.int64], fold: int
    ) -> bytes:
        """The weights of a `PatchHead` as safetensors."""
        model = self._train(features, kept, labels, fold)
        return save({name: value.cpu().contiguous() for name, value in model.state_dict().items()})

    def scorer(self, weights: bytes) -> Callable[[Sequence[Image]], PatchScores]:
        """Raises `SegsmithError` for weights of another model."""
        model = PatchHead(self.trunk, self.frozen, self.n_classes, None, torch.Generator())
        try:
            model.load_state_dict(load(weights))
        except (SafetensorError, RuntimeError) as error:
            raise SegsmithError(
                f"{self.name} cannot use weights: {first_line(error):.160}.",
                "Run the same command again; the model is trained again.",
            ) from None
        model = model.to(self.device).eval()
        return lambda images: self._scored(model, images, None)

    def taught(
        self, images: Sequence[Image], labels: NDArray[np.float32]
    ) -> Callable[[Sequence[Image]], NDArray[np.float32]]:
        """One model trained on all images; it scores others by averaging over each image and its mirror image."""
        views = self.features([images], len(images))
        model = self._train(views, np.arange(len(images)), labels, fold=0)

        def score(others: Sequence[Image]) -> NDArray[np.float32]:
            found = [np.zeros((0, self.n_classes), np.float32)]
            for batch in self._batches(others):
                ways = [self._scores(model, self._frozen(pixels)) for pixels in (batch, batch.flip(-1))]
                pooled = top_k_pool((ways[0] + ways[1].flip(-1)) / 2, self.settings.top_k)
                found.append(pooled.sigmoid().detach().cpu().numpy())
            return np.concatenate(found)

        return score

    # -- views and features -----------------------------------------------------------------------

    def _plain_and_mirrored(self, images: Sequence[Image]) -> torch.Tensor:
        """The first two views of `features`, (2, B, L, D)."""
        pixels = torch.cat(list(self._batches(images)))
        return torch.stack([self._frozen(p).half().cpu() for p in (pixels, pixels.flip(-1))])

    def _batches(self, images: Iterable[Image]) -> Iterator[torch.Tensor]:
        """(B, 3, size, size) in [0, 1]."""
        left = iter(images)
        while batch := list(islice(left, self.settings.batch_size)):
            if len({image.shape for image in batch}) == 1:  # as image models draw them: resized together
                pixels = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float() / 255
                yield self._resized(pixels, self.size)
                continue
            each = [torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255 for image in batch]
            yield torch.cat([self._resized(image, self.size) for image in each])

    @staticmethod
    def _resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
        if pixels.shape[-2:] == (size, size):
            return pixels
        return functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)

    def _frozen(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens after the frozen blocks, (B, P + h * w, D), of images in [0, 1]; P prefix tokens."""
        parts = self._inference.run(len(pixels), lambda start, stop: self._tokens(pixels[start:stop]))
        return torch.cat(list(parts))

    @torch.no_grad()
    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        x = ((pixels - self.mean) / self.std).to(self.device, memory_format=torch.channels_last)
        trunk: Any = self.trunk
        with autocast(str(self.device), self.dtype):
            (tokens,) = trunk.forward_intermediates(
                x, indices=[self.frozen - 1], return_prefix_tokens=True, stop_early=True,
                output_fmt="NLC", intermediates_only=True,
            )  # fmt: skip
        if isinstance(tokens, tuple):
            tokens = torch.cat([tokens[1], tokens[0]], dim=1)
        return tokens

    # -- one fold ---------------------------------------------------------------------------------

    def _train(
        self, views: torch.Tensor, rows: NDArray[np.int64], labels: NDArray[np.float32], fold: int
    ) -> PatchHead:
        """A new upper half, trained on some rows of (V, N, L, D) features and (N, C) labels in [0, 1]."""
        settings = self.settings
        kept, target = torch.from_numpy(rows), torch.from_numpy(np.asarray(labels, np.float32))
        generator = torch.Generator().manual_seed(self.seed * 1000 + fold)
        model = PatchHead(self.trunk, self.frozen, self.n_classes, self.start, generator).to(self.device)
        model.calibrate(views[0], kept, target[kept].to(self.device), settings.top_k)
        optimizer = torch.optim.AdamW(
            model.parameter_groups(settings.learning_rate), weight_decay=WEIGHT_DECAY
        )
        steps = settings.epochs * math.ceil(len(kept) / settings.batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_cosine, steps=steps))
        for _ in range(settings.epochs):
            for picked in torch.randperm(len(kept), generator=generator).split(settings.batch_size):
                batch = kept[picked]
                view = torch.randint(len(views), (len(batch),), generator=generator)
                self._training.whole(
                    len(batch), partial(self._add_gradients, model, views, view, batch, target)
                )
                optimizer.step()
                schedule.step()
        return model.eval()

    def _add_gradients(
        self,
        model: PatchHead,
        views: torch.Tensor,
        view: torch.Tensor,
        rows: torch.Tensor,
        target: torch.Tensor,
        size: int,
    ) -> None:
        """The gradients of one training step, from `size` images at a time."""
        model.zero_grad(set_to_none=True)
        for picked in torch.arange(len(rows)).split(size):
            with autocast(str(self.device), training_dtype(self.dtype)):
                logits = model(views[view[picked], rows[picked]].to(self.device).float())
            pooled = top_k_pool(logits.float(), self.settings.top_k)
            loss = functional.binary_cross_entropy_with_logits(pooled, target[rows[picked]].to(self.device))
            (loss * (len(picked) / len(rows))).backward()

    def _scored(self, model: PatchHead, images: Sequence[Image], known: torch.Tensor | None) -> PatchScores:
        """Scores of a batch; `known` are its `_plain_and_mirrored` features where they were computed before."""
        features = self._plain_and_mirrored(images) if known is None else known
        fine, pooled = self._predict(model, images, *features)
        return PatchScores(fine.sigmoid().cpu().numpy(), pooled.sigmoid().cpu().numpy())

    @torch.no_grad()
    def _predict(
        self, model: PatchHead, images: Sequence[Image], plain: torch.Tensor, mirrored: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Patch logits (B, C, s * h, s * w) and pooled logits (B, C), s being `map_scale`.

        `plain` and `mirrored` are the frozen features of `images` and of their mirror images.
        """
        ways = [self._scores(model, features) for features in (plain, mirrored)]
        coarse = (ways[0] + ways[1].flip(-1)) / 2
        pooled = top_k_pool(coarse, self.settings.top_k)
        if self.map_scale == 1:
            return coarse, pooled
        pixels = torch.cat(list(self._batches(images)))
        scale, side = self.map_scale, coarse.shape[-1]
        starts, margin = shifts(self.size // side, scale)
        padded = functional.pad(pixels, (margin,) * 4, mode="reflect")
        fine = coarse.new_zeros(*coarse.shape[:2], scale * side, scale * side)
        for row, y in enumerate(starts):
            for column, x in enumerate(starts):
                window = padded[..., y : y + self.size, x : x + self.size]
                fine[..., row::scale, column::scale] = self._scores(model, self._frozen(window))
        return fine, pooled

    def _scores(self, model: PatchHead, features: torch.Tensor) -> torch.Tensor:
        def score(start: int, stop: int) -> torch.Tensor:
            with autocast(str(self.device), self.dtype):
                return model(features[start:stop].to(self.device).float()).float()

        return torch.cat(list(self._inference.run(len(features), score)))


def _timm_vit(name: str, file: Path | None, pretrained: bool) -> VisionTransformer | Eva:
    """The trunk without a classifier, for images of any size."""
    options: dict[str, Any] = {"pretrained": pretrained}
    if file is not None:
        if not file.is_file():
            raise SegsmithError(f"The ViT weights {file} do not exist.", _VIT_REMEDY)
        # Loaded this way, the file gets timm's own conversions (CLIP towers, other input sizes).
        options = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    try:
        trunk = cached_first(lambda: timm.create_model(name, num_classes=0, dynamic_img_size=True, **options))
    except TypeError:  # not a ViT: the model does not accept dynamic_img_size
        trunk = None
    except READ_ERRORS as error:
        reason = first_line(error)
        raise SegsmithError(
            f"Cannot load the ViT {name} from {file or 'the hub'}: {reason:.160}.", _VIT_REMEDY
        ) from None
    if not is_vit(trunk):
        raise SegsmithError(
            f"The timm model {name!r} is not a VisionTransformer or Eva.", "Name a vit_* or eva02_* model."
        )
    return trunk


_VIT_REMEDY = "Set labeler.vit to 'judge', a timm ViT, or name:file with weights of that name."


def _half_store(shape: tuple[int, ...]) -> torch.Tensor:
    """An empty half-precision tensor; a large one is backed by a file that is deleted with the process."""
    count = math.prod(shape)
    if count * 2 <= MAX_FEATURES_IN_MEMORY:
        return torch.empty(shape, dtype=torch.half)
    with tempfile.NamedTemporaryFile(prefix="segsmith-features-") as file:
        return torch.from_file(file.name, shared=True, size=count, dtype=torch.half).view(shape)


def shifts(patch: int, scale: int) -> tuple[list[int], int]:
    """Starts of `scale` windows in an image padded by a margin, so that their patches interleave; and the margin.

    All in pixels. The centres of the interleaved patches are `patch / scale` apart and symmetric about the
    image's centre.
    """
    offsets = [round(patch * (k / scale - (scale - 1) / (2 * scale))) for k in range(scale)]
    margin = max(map(abs, offsets))
    return [margin + offset for offset in offsets], margin


def _cosine(step: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))


def open_classifier(
    config: Config, classes: Sequence[str], seed: int, encoder: Callable[[], OpenClipEncoder]
) -> TimmPatchClassifier:
    """The labeler's ViT: a timm model, or the image tower of the judge's `encoder`, which is opened only then."""
    labeler, compute = config.labeler, config.compute
    if labeler.vit == "judge":
        return TimmPatchClassifier.from_encoder(encoder(), len(classes), labeler, seed, class_names=classes)
    return TimmPatchClassifier.from_timm(
        labeler.vit,
        len(classes),
        labeler,
        seed,
        pretrained=":" not in labeler.vit,
        device=compute.device,
        precision=compute.precision,
    )
