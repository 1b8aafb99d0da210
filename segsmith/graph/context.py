"""The runtime context of the nodes: config, ledger, and agents whose models are opened on first use."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from segsmith.agents.image import ImageAgent
from segsmith.agents.judge.agent import JudgeAgent
from segsmith.agents.judge.real_classifier import RealClassifier
from segsmith.agents.labeler import LabelerAgent
from segsmith.agents.prompt.agent import PromptAgent
from segsmith.agents.prompt.label_sets import LabelSets
from segsmith.agents.region_check import RegionCheck
from segsmith.agents.witnesses.agent import WitnessAgent
from segsmith.config import Config, ImagesConfig, LLMConfig, api_key
from segsmith.device_memory import DeviceUse
from segsmith.engine.models import (
    computes_here,
    open_encoder,
    open_image_backend,
    open_segmenter,
    open_witness,
    synonyms_for,
    witness_name,
)
from segsmith.engine.options import EngineOptions
from segsmith.engine.plane import DataPlane, adopt
from segsmith.engine.scheduler import Limits
from segsmith.engine.work import Setup
from segsmith.errors import SegsmithError
from segsmith.events import Event, Notice
from segsmith.graph.finalize import Finalizer
from segsmith.memory.ledger import Ledger, UsageRow, WitnessKind
from segsmith.memory.real_images import RealSet
from segsmith.memory.run_config import added_classes, check_fixed_settings, record_of
from segsmith.memory.run_folder import RunFolder
from segsmith.protocols import ImageBackend, LocalService, Releasable, Witness
from segsmith.tools.gpu_plan import GpuPlan, GpuStage, Part, plan_gpu
from segsmith.tools.machine import this_gpu
from segsmith.types import ImageRequest

if TYPE_CHECKING:
    from segsmith.datasets.run_dataset import RunDataset
    from segsmith.datasets.staging import Sink
    from segsmith.engine.dispatch import Pool
    from segsmith.tools.llm.chat import OpenAIChat
    from segsmith.tools.llm.usage import Spent

Made = TypeVar("Made")
REMOTE_PARTS = ("backend", "encoder", "classifier", "segmenter", "detector", "attention")
"""Models that workers use."""

VLM_TOKENS = 256
"""Least length of a VLM's reply, in tokens."""


class once(Generic[Made]):
    """A property that is computed on first use, by one thread only: nodes of one step run side by side."""

    def __init__(self, make: Callable[[Any], Made]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __get__(self, owner: Any, _: type | None = None) -> Made:
        with owner._opening:
            name = self._make.__name__
            if name not in owner._made:
                owner._made[name] = self._make(owner)
            made: Made = owner._made[name]
            return made


@dataclass(eq=False)
class RunContext:
    """Everything the nodes of one run need, opened on first use and closed together.

    LangGraph passes it to each node as ``runtime.context``. A run that has all its prompts starts no LLM, and one
    that only exports loads no CLIP. `parts` (``{"chat": ...}``, by the names of the properties below) replaces what
    the config would open; tests and benchmarks pass fakes.
    """

    config: Config
    run: RunFolder
    step: bool = False
    """Pause at prompts, verdicts, labels and masks for a reviewer."""
    parts: Mapping[str, Any] = field(default_factory=dict)

    engine: EngineOptions = field(default_factory=EngineOptions)
    """Where images are drawn, relabelled and masked."""
    read_only: bool = False
    """Change nothing in the run folder, so that it need not be writable."""
    growing: bool = False
    """Classes may have been added since the last session; the caller then calls `measure_added_classes`."""

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.run.ledger, read_only=self.read_only)
        self._stack = ExitStack()
        self._stack.callback(self.ledger.close)
        try:
            check_fixed_settings(self.ledger, self.config, self.run.root, growing=self.growing)
        except SegsmithError:
            self._stack.close()
            raise
        self._opening = threading.RLock()
        self._made: dict[str, Any] = dict(self.parts)
        self.device_use = DeviceUse()
        """Held while images are drawn and measured, so that an LLM server that died restarts between two batches."""
        self.show: Callable[[Event], None] = lambda event: None
        """Where the progress and the warnings of workers go; each node sets it."""
        self.told = SimpleQueue[str]()
        """What happened to servers, for the user; `build_run` passes it on."""
        self.stopping = threading.Event()
        """Set when the user stops the run; nodes then return as soon as they can."""

    @classmethod
    def open(cls, root: Path) -> RunContext:
        """The context of an existing run folder, with the settings in its ``run.toml``.

        Raises `SegsmithError` for a folder without a run.
        """
        folder = RunFolder(root)
        return cls(record_of(folder).config, folder)

    def __enter__(self) -> RunContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def use(self, **parts: Any) -> RunContext:
        """Use these parts in place of what the config names; for parts that need the context themselves."""
        self._made.update(parts)
        return self

    def enter(self, stage: GpuStage, *, asks: bool = False) -> None:
        """Make room for a stage: release the models that the plan does not keep on the GPU.

        With `asks`, the language model's server is started as well, before the caller loads anything: a server
        measures the GPU's memory when it starts, and nothing else may allocate meanwhile.
        """
        with self._opening:
            takes_turns = stage is GpuStage.WRITE and self.gpu_plan.alternates
            if takes_turns or stage is GpuStage.TRAIN:
                self._end_workers()  # they hold the GPUs that this process or its LLM is about to use
            keeps = self.gpu_plan.keeps
            chat = self._made.get("chat")
            if not keeps(stage, Part.LLM) and isinstance(chat, Releasable):
                chat.release()
            if self.gpu_plan.releases_images(stage):
                self.release_images()
            encoder = self._made.get("encoder")
            if not keeps(stage, Part.JUDGE) and isinstance(encoder, Releasable):
                encoder.release()
            if asks and keeps(stage, Part.LLM) and isinstance(self.chat, LocalService):
                self.chat.start()

    def release_images(self) -> None:
        """Release the image model from the device; it is opened again if more images must be drawn."""
        if "backend" in self._made:
            self._made["backend"].close()

    def _end_workers(self) -> None:
        """End the workers; they are started again when there is work for them."""
        if "data_plane" in self._made and not self.is_alone:
            unfinished = self._made["data_plane"].unfinished
            if "pool" not in self.parts:
                self._made.pop("data_plane", None)
                self._made.pop("pool").close()
            # A unit that was attempted twice may have been committed again after its results were folded.
            adopt(self.run, self.ledger, keep=unfinished)

    def close(self) -> None:
        """Stop the workers and servers that this run started, release the image model and close its files."""
        self._end_workers()
        if "chat" in self._made:
            self._log_llm_trouble(self._made["chat"])
        self.release_images()
        self._stack.close()

    def measure_added_classes(self) -> tuple[str, ...]:
        """Prepare the run for classes that its data was made without; returns them.

        What was made with fewer classes and is not in the ledger, such as the simulator's test set, is deleted.
        """
        added = added_classes(self.ledger, self.config)
        if added:
            from segsmith.agents.judge.added_classes import measure_added_classes

            shutil.rmtree(self.run.evaluation, ignore_errors=True)
            with self.ledger.transaction():
                if self.ledger.has_images:
                    measure_added_classes(
                        self.ledger, self.encoder, self.config.classes, len(added), synonyms_for(self.config)
                    )
                self.ledger.evaluation = {}
                self.ledger.fixed_settings = {
                    **self.ledger.fixed_settings,
                    "classes": list(self.config.classes),
                }
        return added

    # -- outside models ---------------------------------------------------------------------------

    @once
    def gpu_plan(self) -> GpuPlan:
        """Which models are on the GPU in each stage."""
        gpu = this_gpu()
        if gpu is None:
            return GpuPlan()
        return plan_gpu(self.config, gpu.total, gpu.free)

    @once
    def chat(self) -> OpenAIChat:
        """The LLM; the first request starts a local server, and `close` stops it."""
        return self._open_chat(self._llm_settings())

    def _open_chat(self, settings: LLMConfig) -> OpenAIChat:
        from segsmith.tools.llm.chat import open_chat

        limit = self.config.budget.max_usd
        return self._stack.enter_context(
            open_chat(
                settings,
                api_key(),
                log=self.run.llm_log,
                note=lambda spent: self._note_llm(settings.model, spent),
                restarting=self.device_use.alone,
                usd_left=None if limit is None else lambda: limit - self.usd_spent(),
                tell=self.told.put,
            )
        )

    def usd_spent(self) -> float:
        """US dollars spent so far, over all sessions, by the prices in the config."""
        return sum(row.usd for row in self.ledger.usage().values())

    def _note_llm(self, model: str, spent: Spent) -> None:
        row = UsageRow(
            "llm",
            model,
            calls=spent.calls,
            tokens_in=spent.prompt_tokens,
            tokens_out=spent.completion_tokens,
            usd=spent.usd,
        )
        self.ledger.add_usage(row)

    def _log_llm_trouble(self, chat: OpenAIChat) -> None:
        """Log what went wrong in this session; calls, tokens and costs are in the ledger already."""
        usage = chat.usage.snapshot()
        trouble = {key: usage[key] for key in ("retries", "bad_replies")} | {"restarts": chat.restarts}
        if any(trouble.values()):
            self.ledger.log("llm_trouble", **trouble)

    @once
    def encoder(self) -> Any:
        """The CLIP of the judge. ViT and segmenter start from its image tower."""
        plan = self.gpu_plan
        parked = bool(plan.stages) and not plan.keeps(GpuStage.WRITE, Part.JUDGE)
        return open_encoder(self.config, parked=parked)

    @once
    def backend(self) -> ImageBackend:
        """The image model; a local pipeline is loaded for the first image."""
        return open_image_backend(self.config)

    @once
    def real(self) -> RealSet | None:
        """The real images that the run adds to; None in a build from a class list."""
        return RealSet.open(self.run.real)

    # -- agents -----------------------------------------------------------------------------------

    @once
    def prompt_agent(self) -> PromptAgent:
        from segsmith.memory.prompt_memory import PromptMemory

        folder = Path(self.config.memory) if self.config.memory else self.run.memory
        is_lost = not folder.exists()
        memory = self._stack.enter_context(closing(PromptMemory(folder, self.encoder)))
        agent = PromptAgent(
            chat=self.chat,
            encoder=self.encoder,
            memory=memory,
            ledger=self.ledger,
            config=self.config.prompts,
            classes=self.config.classes,
            synonyms=synonyms_for(self.config),
            writes_sentences=self.config.llm.writes_sentences,
            seed=self.config.seed,
            workers=self.config.llm.concurrency,
            label_sets=self._label_sets(),
            stopped=self.stopping.is_set,
        )
        if not self.config.memory and (is_lost or self.run.remote is not None):
            agent.remember_again()
        return agent

    @once
    def image_agent(self) -> ImageAgent:
        config = self.config
        return ImageAgent(
            self.backend,
            self.ledger,
            self.run,
            self._images_settings(),
            config.seed,
            max_usd=config.budget.max_usd,
            look=self.judge_agent.look if config.images.filter.enabled else None,
            stopped=self.stopping.is_set,
            drawing=self.device_use.shared,
        )

    @once
    def judge_agent(self) -> JudgeAgent:
        return JudgeAgent(
            self.encoder,
            self.ledger,
            self.run,
            self.config.judge,
            self.config.classes,
            synonyms_for(self.config),
            quota=self.config.wanted,
            real_classifier=self._real_classifier(),
        )

    @once
    def labeler_agent(self) -> LabelerAgent:
        return LabelerAgent(
            lambda: self.classifier,
            lambda: self.segmenter,
            self.ledger,
            self.run,
            self.config.labeler,
            self.config.classes,
            self.config.seed,
            self.real,
            check=lambda: RegionCheck(
                self.encoder, self.ledger, self.config.classes, synonyms_for(self.config)
            ),
            witnesses=self.config.witnesses,
            out_of_fold=None if self.is_alone else lambda *asked: self._workers.out_of_fold(*asked),
        )

    @property
    def is_alone(self) -> bool:
        """Whether all work is done in this process."""
        return self.engine.name == "local" and "pool" not in self.parts

    @once
    def pool(self) -> Pool:
        """Workers of a Ray cluster."""
        from segsmith.engine.ray import RayPool

        replaced = {name: self.parts[name] for name in REMOTE_PARTS if name in self.parts}
        url = self.run.remote.store.url if self.run.remote is not None else ""
        return RayPool(self.engine, Setup(self.config, self.run.root.resolve(), replaced, url))

    @once
    def data_plane(self) -> DataPlane | None:
        """What does the work on images in place of the agents; None where all is done in this process."""
        if self.is_alone:
            return None
        return DataPlane(
            self.pool,
            self.run,
            self.ledger,
            self.config,
            limits=Limits(timeout_s=self.engine.unit_timeout_s),
            stopped=self.stopping.is_set,
            tell=lambda progress: self.show(progress),
            warn=lambda line: self.show(Notice(line, warning=True)),
        )

    @property
    def _workers(self) -> DataPlane:
        plane = self.data_plane
        assert plane is not None
        return plane

    def write_records(self, sink: Sink, data: RunDataset, form: str) -> Iterator[Any]:
        """Let workers write the files of an export (`WriteElsewhere`); they are started if they are not there yet."""
        return self._workers.write_records(sink, data, form)

    @once
    def witness_agent(self) -> WitnessAgent:
        settings = self.config.witnesses
        opened: dict[WitnessKind, Callable[[], Witness]] = {}
        if settings.detector != "off":
            opened["detector"] = lambda: self.detector
        if settings.attention != "off":
            opened["attention"] = lambda: self.attention
        if settings.vlm != "off":  # the last one: workers end before its server starts
            opened["vlm"] = self._vlm_alone
        return WitnessAgent(
            opened,
            self.ledger,
            self.run,
            self.config.classes,
            elsewhere=None if self.is_alone else lambda *asked: self._workers.hear(*asked),
            names={
                kind: partial(self._witness_name, kind) for kind in opened if computes_here(kind, self.config)
            },
        )

    def _witness_name(self, kind: WitnessKind) -> str:
        part: Witness | None = self.parts.get(kind)
        return witness_name(kind, self.config) if part is None else part.name

    def _vlm_alone(self) -> Witness:
        """The VLM, for which workers are ended if its server is started here: they hold the GPUs that it needs."""
        if self.config.witnesses.vlm == "llm" and self.config.llm.server == "vllm":
            self._end_workers()
        return self.vlm

    @once
    def finalizer(self) -> Finalizer:
        """Export, training and evaluation, once labels and masks are final."""
        return Finalizer(self)

    def _llm_settings(self) -> LLMConfig:
        llm, share = self.config.llm, self.gpu_plan.llm_share
        return llm if share is None else llm.model_copy(update={"gpu_memory_share": share})

    def _images_settings(self) -> ImagesConfig:
        """With the batch that fits beside the other models of the stage."""
        images, plan = self.config.images, self.gpu_plan.of(GpuStage.DRAW)
        if plan is None or not plan.batch:
            return images
        return images.model_copy(update={"batch_size": min(images.batch_size, plan.batch)})

    def _label_sets(self) -> LabelSets | None:
        if self.real is None:
            return None
        return LabelSets(self.real.label_sets, self.config.classes, self.config.augment)

    def _real_classifier(self) -> RealClassifier | None:
        settings = self.config.augment
        if self.real is None or not settings.classifier:
            return None
        return RealClassifier(lambda: self.classifier, self.ledger, self.run, self.real, settings.min_skill)

    @once
    def classifier(self) -> Any:
        """The ViT that relabels images and scores their patches."""
        from segsmith.tools.vision.vit import open_classifier

        return open_classifier(self.config, self.config.classes, self.config.seed, lambda: self.encoder)

    @once
    def segmenter(self) -> Any:
        """SAM."""
        return open_segmenter(self.config)

    @once
    def detector(self) -> Witness:
        """The open-vocabulary detector of `witnesses.detector`."""
        return open_witness("detector", self.config, self._request_of)

    @once
    def vlm(self) -> Witness:
        """The vision-language model of `witnesses.vlm`."""
        config = self.config
        if computes_here("vlm", config):
            return open_witness("vlm", config, self._request_of)
        from segsmith.tools.llm.image_questions import VlmWitness

        chat = self.chat if config.witnesses.vlm == "llm" else self._vlm_chat
        settings = self._llm_settings() if config.witnesses.vlm == "llm" else vlm_settings(config)
        return VlmWitness(chat, config.classes, config.seed, settings.max_tokens, settings.concurrency)

    @once
    def attention(self) -> Witness:
        """The image model's attention."""
        config = self.config.model_copy(update={"images": self._images_settings()})
        return open_witness("attention", config, self._request_of)

    @once
    def _vlm_chat(self) -> OpenAIChat:
        return self._open_chat(vlm_settings(self.config))

    def _request_of(self, image_id: str) -> ImageRequest:
        """What an image was drawn from."""
        row = self.ledger.image(image_id)
        return ImageRequest(self.ledger.prompt(row.prompt_id).text, row.seed)


def vlm_settings(config: Config) -> LLMConfig:
    """How the VLM of `witnesses.vlm` is called: as a hosted model, with what section llm says about requests."""
    witnesses, llm = config.witnesses, config.llm
    changes = {
        "server": "openai",
        "model": witnesses.vlm,
        "base_url": witnesses.vlm_base_url,
        "temperature": 0.0,
        "max_tokens": max(llm.max_tokens, VLM_TOKENS),
        "usd_per_million_in": witnesses.vlm_usd_per_million_in,
        "usd_per_million_out": witnesses.vlm_usd_per_million_out,
    }
    return LLMConfig.model_validate({**llm.model_dump(), **changes})
