"""Which models are on the GPU in each stage, how large batches may be, and whether a card is large enough.

`plan_gpu` is a pure function of a config and a card. The run context follows it: it starts the language model's
server before anything else allocates, and releases the models that a stage does not need. ``gpu_figures.json`` holds
the models' sizes, which ``benchmarks/gpu_memory.py`` computes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from segsmith.config import Config, ImagesConfig
from segsmith.device_memory import GIB
from segsmith.tools.weights.catalogue import ModelRequirement
from segsmith.tools.weights.model_requirements import detector, image_model, requirements_of
from segsmith.tools.weights.store import find
from segsmith.types import MEASURED_TOGETHER

FIGURES = Path(__file__).parent / "gpu_figures.json"
USABLE = 0.94
"""Share of a card's memory that tensors can use; fragmentation and libraries' workspaces take the rest (ours)."""
CONTEXT = GIB // 2
"""Memory of a process's CUDA context (ours)."""
SERVER_OVERHEAD = 3 * GIB // 2
"""What vLLM needs beside weights and cache: its context, activations of the profiling run, CUDA graphs (ours)."""
CACHE_BYTES_PER_TOKEN = {"Qwen/Qwen2.5-7B-Instruct-AWQ": 2 * 28 * 4 * 128 * 2}
"""Keys and values: 2 x layers x heads x head size x bytes, from the model's config.json."""
UNKNOWN_CACHE = 1 << 17
MEASURED_SIDE = {"stabilityai/sd-turbo": 512}
"""Image size, in pixels, of the figures that are not for 1024 px."""
UNKNOWN_IMAGE = 3 * GIB // 2
"""Activations per 1024 px image of a pipeline that was not measured (ours)."""
USEFUL_BATCH = 4
"""A language model stays beside the image model only if that leaves room for batches of this size (ours)."""
TRAINED_CLASSES = (6, 81)
"""Numbers of outputs for which the segmenter was measured."""
SEQUENTIAL_SHARE = 0.05
"""Share of a pipeline's weights on the GPU when its layers are moved there one by one (ours)."""


class Part(StrEnum):
    """A model that takes GPU memory."""

    LLM = "LLM"
    IMAGES = "images"
    JUDGE = "CLIP"
    DETECTOR = "detector"
    LABELER = "ViT"
    MASKS = "SAM"
    SEGMENTER = "segmenter"


class GpuStage(StrEnum):
    """A part of a run with its own set of models, in the order of a run."""

    WRITE = "write prompts"
    DRAW = "draw"
    JUDGE = "judge"
    HEAR = "ask witnesses"
    LABEL = "relabel"
    SEGMENT = "make masks"
    TRAIN = "train"


@dataclass(frozen=True)
class Figure:
    """Memory of a model, in bytes."""

    weights: int
    fixed: int
    """Activations that do not depend on the batch."""
    per_item: int
    """Activations of each image in a batch."""

    def needs(self, batch: int) -> int:
        """Activations of a batch."""
        return self.fixed + batch * self.per_item

    def batch(self, room: int, largest: int) -> int:
        """The largest batch whose activations fit into `room`; 0 if not even one image does."""
        if self.needs(largest) <= room:
            return largest
        return max(0, min(largest, (room - self.fixed) // max(self.per_item, 1)))

    def scaled(self, factor: float) -> Figure:
        """With activations for another number of pixels."""
        return Figure(self.weights, round(self.fixed * factor), round(self.per_item * factor))


@dataclass(frozen=True)
class StagePlan:
    """What is on the GPU in one stage."""

    stage: GpuStage
    loads: tuple[tuple[Part, int], ...]
    """Models in the order in which they load, with their bytes, activations included."""
    batch: int | None = None
    """Images at once; None where nothing is batched."""

    @property
    def size(self) -> int:
        """Peak memory in bytes."""
        return sum(size for _, size in self.loads)


@dataclass(frozen=True)
class GpuPlan:
    """How a run uses one GPU. Without a GPU there are no stages, and every model may stay in main memory."""

    stages: tuple[StagePlan, ...] = ()
    offload: str = "none"
    """`images.offload` in effect."""
    llm_share: float | None = None
    """vLLM's share of the GPU."""
    judges_while_drawing: bool = True
    """Whether CLIP measures images while others are drawn; if not, it has no room beside the image model."""
    problem: str = ""
    """Why the card is too small; "" if it is large enough."""
    remedy: str = ""

    @property
    def alternates(self) -> bool:
        """Whether the language model and the image model take turns, because they do not fit together."""
        return bool(self.stages) and (
            self.keeps(GpuStage.WRITE, Part.LLM) and not self.keeps(GpuStage.DRAW, Part.LLM)
        )

    def releases_images(self, stage: GpuStage) -> bool:
        """Whether the image model is released when a stage starts."""
        if stage is GpuStage.WRITE:
            return self.alternates
        if stage is GpuStage.JUDGE:
            return self.keeps(GpuStage.DRAW, Part.IMAGES) and not self.keeps(stage, Part.IMAGES)
        return stage is not GpuStage.DRAW

    def of(self, stage: GpuStage) -> StagePlan | None:
        """The plan of one stage."""
        return next((plan for plan in self.stages if plan.stage is stage), None)

    def keeps(self, stage: GpuStage, part: Part) -> bool:
        """Whether a model stays loaded in a stage."""
        plan = self.of(stage)
        if plan is None:  # main memory: only a language model that is not asked again is stopped
            return part is not Part.LLM or stage in (GpuStage.WRITE, GpuStage.DRAW, GpuStage.JUDGE)
        return any(loaded is part for loaded, _ in plan.loads)


@cache
def read_figures() -> dict[str, Figure]:
    """The stored figures, by role and model."""
    return {name: Figure(*values) for name, values in json.loads(FIGURES.read_text("utf-8")).items()}


def usable(card: int) -> int:
    """Bytes of a card that one process's tensors can use."""
    return int(USABLE * card) - CONTEXT


def plan_gpu(config: Config, card: int | None, free: int | None = None) -> GpuPlan:
    """Plan a config on a card of `card` bytes, of which `free` are not used by other programs; None is no GPU."""
    if not card:
        return GpuPlan()
    return _Planner(config, card, min(card, free or card)).plan()


@dataclass(frozen=True)
class _Pipeline:
    """Memory of an image model with one kind of offloading, in bytes."""

    model: str
    held: int
    """Weights on the GPU."""
    denoising: Figure
    decoding: int
    """Of one image."""

    def batch(self, room: int, largest: int) -> int:
        """The largest batch that fits into `room`, weights included; 0 if not even one image does."""
        left = room - self.held
        return self.denoising.batch(left, largest) if self.decoding <= left else 0

    def peak(self, batch: int) -> int:
        """Weights and activations of a batch."""
        return self.held + max(self.denoising.needs(batch), self.decoding)


class _Planner:
    def __init__(self, config: Config, card: int, free: int) -> None:
        self.config, self.card, self.room = config, card, usable(free)
        self.sizes = {need.role: _size(need) for need in requirements_of(config)}
        self.image_sizes = [_size(image_model(part)) for part in config.images.parts]
        self.stages: list[StagePlan] = []

    def plan(self) -> GpuPlan:
        config = self.config
        llm = config.llm.server == "vllm"
        smallest, wanted = self._server() if llm else (0, 0)
        drawing = self._drawing(smallest, wanted)
        if llm and smallest > self.room:
            return self._too_small(f"the language model {config.llm.model}", smallest, "llm.model")
        if drawing is None:
            least, what = self._least_to_draw()
            setting = "images.models" if config.images.models else "images.model"
            return self._too_small(f"one {config.images.size} px image of {what}", least, setting)
        draw, offload, beside = drawing
        server = min(wanted, self.room - draw.size if beside else self.room)
        writing = self._writing(server, draw, beside) if llm else draw.loads
        judging = self._judging(draw, offload)
        if beside:
            draw = StagePlan(draw.stage, ((Part.LLM, server), *draw.loads), draw.batch)
            judging = StagePlan(judging.stage, ((Part.LLM, server), *judging.loads))
        if judging.size > self.room:
            return self._too_small(f"CLIP {config.judge.clip}", judging.size, "judge.clip")
        self.stages = [StagePlan(GpuStage.WRITE, writing), draw, judging]
        hears = detector(config.witnesses.detector) is not None or self._attends
        ending = (*((self._hearing,) if hears else ()), self._labelling, self._masks, self._training)
        for make in ending:
            stage, least, what, setting = make()
            if stage is None:
                return self._too_small(what, least, setting)
            self.stages.append(stage)
        given = config.llm.gpu_memory_share
        share = given or math.floor(1000 * server / self.card) / 1000
        judges = self._judge() is None or Part.JUDGE in dict(draw.loads)
        return GpuPlan(tuple(self.stages), offload, share if llm else None, judges)

    def _writing(self, server: int, draw: StagePlan, beside: bool) -> tuple[tuple[Part, int], ...]:
        """The server first; CLIP embeds texts in main memory where it does not fit beside it."""
        if beside:
            return ((Part.LLM, server), *draw.loads)
        judge = self._judge()
        fits = judge is not None and server + judge.weights <= self.room
        return ((Part.LLM, server), *([(Part.JUDGE, judge.weights)] if judge and fits else []))

    def _judging(self, draw: StagePlan, offload: str) -> StagePlan:
        """CLIP, and the image model's weights where they can stay."""
        judge, loads = self._judge(), []
        drawn = dict(draw.loads)
        if Part.IMAGES in drawn and (Part.JUDGE in drawn or offload != "none"):
            held = max(pipeline.held for pipeline in self._pipelines("none"))
            loads.append((Part.IMAGES, held if offload == "none" else 0))
        if judge:
            loads.append((Part.JUDGE, judge.weights + judge.needs(MEASURED_TOGETHER)))
        return StagePlan(GpuStage.JUDGE, tuple(loads))

    def _too_small(self, what: str, least: int, setting: str) -> GpuPlan:
        return GpuPlan(
            problem=f"{what[0].upper()}{what[1:]} needs {least / GIB:.1f} GiB of GPU memory, and of the GPU's "
            f"{self.card / GIB:.0f} GiB only {max(0, self.room) / GIB:.1f} can be used.",
            remedy=f"Set {setting} to a smaller model (docs/models.md), or use --preset cpu or sim.",
        )

    # -- the stages -------------------------------------------------------------------------------

    def _server(self) -> tuple[int, int]:
        """The smallest and the wanted size of vLLM: a cache for one request, and for all concurrent ones."""
        llm = self.config.llm
        if llm.gpu_memory_share:
            fixed = int(llm.gpu_memory_share * self.card)
            return fixed, fixed
        cache = CACHE_BYTES_PER_TOKEN.get(llm.model, UNKNOWN_CACHE) * llm.context_tokens
        size = self.sizes.get("llm") or self.card // 4
        return size + SERVER_OVERHEAD + cache, size + SERVER_OVERHEAD + cache * llm.concurrency

    def _drawing(self, smallest: int, wanted: int) -> tuple[StagePlan, str, bool] | None:
        """The first arrangement that fits: its plan without the server, offloading, and whether the server stays."""
        images, judge = self.config.images, self._judge()
        # CLIP measures images of the batches before while this one is drawn.
        judging = (Part.JUDGE, judge.weights + judge.needs(MEASURED_TOGETHER)) if judge else None
        for beside in (True, False) if smallest else (False,):
            for with_judge, offload in self._arrangements():
                if beside and (not with_judge or offload != "none"):
                    continue
                others = (smallest if beside else 0) + (judging[1] if judging and with_judge else 0)
                loads: list[tuple[Part, int]] = []
                batch = None
                if images.backend == "diffusion":
                    pipelines = self._pipelines(offload)
                    batch = min(p.batch(self.room - others, images.batch_size) for p in pipelines)
                    if batch < (min(USEFUL_BATCH, images.batch_size) if beside else 1):
                        continue
                    loads.append((Part.IMAGES, max(p.peak(batch) for p in pipelines)))
                elif others > self.room:
                    continue
                if judging and with_judge:
                    loads.append(judging)
                return StagePlan(GpuStage.DRAW, tuple(loads), batch), offload, beside
        return None

    def _arrangements(self) -> Iterator[tuple[bool, str]]:
        """(CLIP stays loaded, offloading), the fastest first."""
        asked = self.config.images.offload
        for offload in ("none", "model", "sequential"):
            if asked in ("auto", offload):
                yield True, offload
                if not self.config.images.filter.enabled:
                    yield False, offload

    def _least_to_draw(self) -> tuple[int, str]:
        """Bytes for one image, and the model of a mixture that needs the most."""
        asked = self.config.images.offload
        pipelines = self._pipelines("sequential" if asked == "auto" else asked)
        return max((p.peak(1), str(p.model)) for p in pipelines)

    def _pipelines(self, offload: str) -> list[_Pipeline]:
        """The image model, or those of a mixture, of which one is loaded at a time."""
        parts = self.config.images.parts
        return [self._pipeline(p, n, offload) for p, n in zip(parts, self.image_sizes, strict=True)]

    def _pipeline(self, images: ImagesConfig, size: int, offload: str) -> _Pipeline:
        figures = read_figures()
        name = f"images:{images.model}"
        factor = (images.size / MEASURED_SIDE.get(str(images.model), 1024)) ** 2
        known = figures.get(name) or Figure(size, 0, UNKNOWN_IMAGE)
        largest = figures.get(f"{name}:largest part")
        decoding = figures.get(f"{name}:decoding", Figure(0, 0, UNKNOWN_IMAGE)).scaled(factor).needs(1)
        held = {
            "none": known.weights,
            "model": largest.weights if largest else round(0.7 * known.weights),
            "sequential": round(SEQUENTIAL_SHARE * known.weights),
        }
        return _Pipeline(str(images.model), held[offload], known.scaled(factor), decoding)

    def _judge(self) -> Figure | None:
        if self.config.compute.device == "cpu":
            return None
        name = self.config.judge.clip.partition(":")[0]
        return read_figures().get(f"judge:{name}") or _guess(2 * self.sizes.get("judge", 0))

    @property
    def _attends(self) -> bool:
        return self.config.witnesses.attention == "generator"

    def _hearing(self) -> tuple[StagePlan | None, int, str, str]:
        """The detector or the image model's attention, whichever is larger.

        Each leaves the GPU when it has spoken. A local VLM's server is started after that. What draws an image has
        room to attend to one.
        """
        witnesses = self.config.witnesses
        detecting = attending = StagePlan(GpuStage.HEAR, ())
        if detector(witnesses.detector) is not None:
            figure = _guess(self.sizes.get("detector", 0) or GIB)
            detecting = StagePlan(GpuStage.HEAR, ((Part.DETECTOR, figure.weights + figure.needs(1)),))
        if detecting.size > self.room:
            return None, detecting.size, f"the detector {witnesses.detector}", "witnesses.detector"
        if self._attends:
            drawing = next(stage for stage in self.stages if stage.stage is GpuStage.DRAW)
            images = dict(drawing.loads)[Part.IMAGES]
            attending = StagePlan(GpuStage.HEAR, ((Part.IMAGES, images),), drawing.batch)
        return max(detecting, attending, key=lambda plan: plan.size), 0, "", ""

    def _labelling(self) -> tuple[StagePlan | None, int, str, str]:
        judge, labeler = self._judge(), self.config.labeler
        name = self.config.judge.clip.partition(":")[0]
        key = f"labeler:{name}" if labeler.vit == "judge" else ""
        figure = read_figures().get(key) or _guess(4 * self.sizes.get("labeler", self.sizes.get("judge", 0)))
        clip = judge.weights if judge and labeler.vit == "judge" else 0
        batch = figure.batch(self.room - clip - figure.weights, labeler.batch_size)
        loads = [(Part.LABELER, figure.weights + figure.needs(batch))]
        if clip:
            loads.insert(0, (Part.JUDGE, clip))
        plan = StagePlan(GpuStage.LABEL, tuple(loads) if judge else (), batch or None)
        if judge and not batch:
            return None, clip + figure.weights + figure.needs(1), "training the labeler's ViT", "judge.clip"
        return plan, 0, "", ""

    def _masks(self) -> tuple[StagePlan | None, int, str, str]:
        judge, labeler = self._judge(), self.config.labeler
        if judge is None:
            return StagePlan(GpuStage.SEGMENT, ()), 0, "", ""
        crops = judge.needs(1) if labeler.region_doubt else 0
        loads: list[tuple[Part, int]] = []
        if labeler.use_sam:  # CLIP looks at the regions when SAM has finished them
            figure = read_figures().get(f"masks:{labeler.sam}") or _guess(self.sizes.get("masks", 0))
            loads.append((Part.MASKS, figure.weights + max(figure.needs(1), crops)))
        if labeler.region_doubt:
            loads.append((Part.JUDGE, judge.weights + (0 if labeler.use_sam else crops)))
        plan = StagePlan(GpuStage.SEGMENT, tuple(loads))
        if plan.size > self.room:
            return None, plan.size, f"making masks with {labeler.sam}", "labeler.sam"
        return plan, 0, "", ""

    def _training(self) -> tuple[StagePlan | None, int, str, str]:
        """accelerate chooses the trainer's device, so it uses the GPU whatever `compute.device` says."""
        config = self.config
        encoder = config.trainer.encoder.partition(".")[0]
        few, many = (read_figures().get(f"segmenter:{encoder}:{n} classes") for n in TRAINED_CLASSES)
        if few and many:
            share = (len(config.classes) + 1 - TRAINED_CLASSES[0]) / (TRAINED_CLASSES[1] - TRAINED_CLASSES[0])
            item = few.per_item + share * (many.per_item - few.per_item)
            figure = Figure(few.weights, few.fixed, round(item)).scaled((config.images.size / 1024) ** 2)
        else:
            figure = _guess(self.sizes.get("segmenter", 0) or GIB // 4).scaled(
                (config.images.size / 1024) ** 2
            )
        batch = figure.batch(self.room - figure.weights, config.trainer.batch_size)
        if batch < min(2, config.trainer.batch_size):
            needs = figure.weights + figure.needs(2)
            return None, needs, "training the segmenter on two images", "trainer.encoder"
        loads = ((Part.SEGMENTER, figure.weights + figure.needs(batch)),)
        return StagePlan(GpuStage.TRAIN, loads, batch), 0, "", ""


def _guess(weights: int) -> Figure:
    """The figure of a model that was not measured: activations of an eighth of its weights per image (ours)."""
    return Figure(weights, 0, weights // 8)


def _size(need: ModelRequirement) -> int:
    if need.facts and need.facts.size:
        return need.facts.size
    found = find(need)
    return found.size if found else 0
