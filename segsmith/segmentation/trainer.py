"""Training of the segmenter, on the devices that accelerate finds.

There are up to three sources of labels (SeSAM): the dataset's, SAM's if the caller passes a `SamLabels`, and those of
the teacher, which is the network with averaged weights.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.data_loader import prepare_data_loader
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import DataLoader

from segsmith.config import TrainerConfig
from segsmith.datasets.voc_folder import VocFolder
from segsmith.device_memory import Batches
from segsmith.errors import SegsmithError
from segsmith.files import remove_leftovers
from segsmith.ids import seed_of
from segsmith.segmentation import tracking
from segsmith.segmentation.checkpoint import (
    EpochReport,
    SegmenterMeta,
    TrainingState,
    first_problem,
    load_segmenter,
    load_state,
    save_segmenter,
    save_state,
    saved_fingerprint,
)
from segsmith.segmentation.inference import evaluate, predict, predicted_pairs, teacher_predictions
from segsmith.segmentation.metrics import SegmentationScore, score_pairs
from segsmith.segmentation.network import (
    JUDGE,
    build_segmenter,
    decoder_of,
    encoder_module_of,
    encoder_of,
    normalisation,
    normalise,
    padded_size,
    resized,
    without_background,
)
from segsmith.segmentation.recipe import (
    Ema,
    class_weights,
    epoch_steps,
    joint_loss,
    learning_rate,
    real_share,
    teacher_labels,
)
from segsmith.segmentation.sampler import EpochSampler
from segsmith.segmentation.shared_batch_norm import share_batch_norm
from segsmith.segmentation.sources import LabelSources, SamLabels, Sample, save_maps, stack
from segsmith.segmentation.tracking import check_tracker
from segsmith.segmentation.transforms import BatchPart, Random, place, restyle
from segsmith.types import IGNORE

__all__ = ["EpochReport", "TrainResult", "evaluate", "load_segmenter", "predict", "train"]

log = logging.getLogger(__name__)

WEIGHT_DECAY = 0.02
MAX_GRADIENT = 1.0
WORKERS = 4
"""Number of processes that read a dataset which is too large for memory."""


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    `validation` is the checkpoint's score on split val, None without such a split. There are fewer reports than
    `EpochReport.epochs` if `TrainerConfig.patience` stopped the training; the checkpoint is that of the last epoch.
    """

    checkpoint: Path
    classes: tuple[str, ...]
    reports: tuple[EpochReport, ...]
    validation: SegmentationScore | None


def train(
    dataset_root: Path,
    out: Path,
    config: TrainerConfig,
    seed: int,
    *,
    clip_tower: nn.Module | None = None,
    directions: Callable[[Sequence[str]], Tensor] | None = None,
    sam: SamLabels | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> TrainResult:
    """Train on split train of a dataset in VOC layout; write ``segmenter.safetensors`` and ``.json`` to `out`.

    Every `config.save_every` epochs the state is saved to ``out/training``. The same call resumes from there and
    ends with the same weights as an uninterrupted one, because (seed, epoch) determine all randomness of an epoch. A
    state made with other data or settings is replaced. `clip_tower` is only needed for ``encoder_init = "clip"``;
    `directions` makes those of `build_segmenter` from the names of the classes, for the encoder ``judge``.
    Where no label of split train is 0, background is no class: it is never predicted, and `validation` leaves it out.
    `sam` is a second source of labels: it runs before the first epoch and again every `config.refresh_every` epochs,
    then with the teacher's predictions. `on_epoch` is called after each epoch. Under ``accelerate launch`` every
    process calls this with the same arguments and trains on its part of each batch.

    Raises `SegsmithError` for an unusable dataset, setting or saved state, and if the loss becomes infinite or nan.
    """
    check_tracker(config)
    data, validation = VocFolder(dataset_root, "train"), _optional_split(dataset_root, "val")
    if not len(data):
        raise SegsmithError(f"Split train of {dataset_root} is empty.", "Add images to that split.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SegsmithError(f"Cannot write to {out}: {error.strerror}.", "Choose another folder.") from None
    with torch.random.fork_rng():
        try:
            used = sam if config.sam_weight else None
            run = _Run(data, validation, out, config, seed, clip_tower, directions, used)
            try:
                while not run.done():
                    report = run.one_epoch()
                    if on_epoch is not None:
                        on_epoch(report)
                return run.finish()
            finally:
                tracking.finish(run.accelerator, config)
        except SegsmithError as error:
            raise _without_traceback(error) from None


def processes() -> PartialState:
    """The processes that ``accelerate launch`` or torchrun started together; the first call joins their group."""
    Accelerator()  # PartialState alone ignores ACCELERATE_USE_CPU
    return PartialState()


class _Run:
    """A training in progress: network, averaged weights, optimizer, and the epoch."""

    def __init__(
        self,
        data: VocFolder,
        validation: VocFolder | None,
        out: Path,
        config: TrainerConfig,
        seed: int,
        clip_tower: nn.Module | None,
        directions: Callable[[Sequence[str]], Tensor] | None,
        sam: SamLabels | None,
    ) -> None:
        self.data, self.validation, self.out, self.config, self.seed = data, validation, out, config, seed
        self.state = out / "training"
        # accelerate keeps one precision per process; a second training in this process may need another.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision=_precision(config.precision),
            log_with=config.tracker,
            project_dir=tracking.tracking_folder(out) if config.tracker else None,
        )
        self.sources, self.sam = LabelSources(data, config.drawn_classes_only), sam
        self.size = resized(_common_size(data.sizes), config.size)
        self.window = padded_size(self.size, config.crop)
        torch.manual_seed(seed_of("weights", seed))
        towards = directions(data.classes) if directions is not None and config.encoder == JUDGE else None
        model = build_segmenter(config, len(data.classes), clip_tower, towards)
        model = model.to(memory_format=torch.channels_last)
        self.encoder = encoder_of(config, clip_tower)
        if config.freeze_encoder:
            encoder_module_of(model).requires_grad_(False)
        self.view = _view(config, data)
        self.background = bool(data.class_pixels()[0]) or (sam is not None and sam.background)
        if not self.background:
            without_background(model)
        self.meta = self._description(model)
        if self.accelerator.num_processes > 1:
            model = share_batch_norm(model, self.accelerator.device)
        batch = min(config.batch_size, max(len(data), 2))
        if batch % self.accelerator.num_processes:
            raise SegsmithError(
                f"A batch of {batch} images cannot be split between {self.accelerator.num_processes} processes.",
                "Set trainer.batch_size to a multiple of their number.",
            )
        labels = () if all(data.real) else [data.present(i) for i in range(len(data))]
        self.steps = epoch_steps(config, len(data))
        share = real_share(config, data.real)
        self.sampler = EpochSampler(len(data), batch, seed, self.steps, data.real, share, labels)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=WEIGHT_DECAY)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.loader = self._open_loader()
        self.ema = Ema(self._bare(), config.ema)
        self.reports: list[EpochReport] = []
        self.epoch = 0
        # Batch normalisation needs two images.
        self.memory = Batches(
            batch,
            "training on two images",
            "Set trainer.encoder to a smaller one, or train on smaller images.",
            smallest=min(batch, 2) if self.accelerator.num_processes == 1 else batch,
        )
        self.sam_round: int | None = None
        sources = ("" if sam is None else sam.name) + ("" if self.background else " no background")
        self.fingerprint = _fingerprint(data, config, seed, sources)
        if self.accelerator.is_main_process:
            for folder in (self.out, self.state):
                remove_leftovers(folder)
        self.accelerator.wait_for_everyone()
        self._resume()
        self.weights = self._class_weights()
        if not self.done():
            tracking.start(self.accelerator, config, seed)

    def done(self) -> bool:
        """Whether all epochs are trained, or the mIoU on split val has not improved for `patience` epochs."""
        if self.epoch >= len(self.steps):
            return True
        scores = [report.miou for report in self.reports if report.miou is not None]
        best = scores.index(max(scores)) if scores else 0
        return bool(self.config.patience and len(scores) - best > self.config.patience)

    def one_epoch(self) -> EpochReport:
        """Train, validate, save and report the next epoch."""
        started, epoch = time.perf_counter(), self.epoch
        if self._sam_is_due(epoch):
            self._run_sam(epoch)
        sam_done = time.perf_counter()
        torch.manual_seed(seed_of("epoch", self.seed, epoch))
        whole = torch.Generator().manual_seed(seed_of("augment", self.seed, epoch, 0))
        generator: Random = whole
        if self.accelerator.num_processes > 1:
            generator = BatchPart(whole, self.accelerator.num_processes, self.accelerator.process_index)
        self.sampler.epoch = epoch
        self.model.train()
        if self.config.freeze_encoder:
            encoder_module_of(self._bare()).eval()  # its batch normalisation keeps its statistics
        losses, seen = [], 0
        for step, (images, labels, allowed) in enumerate(self.loader, start=sum(self.steps[:epoch])):
            rate = learning_rate(step, sum(self.steps), self.config.learning_rate)
            batch = Sample(*place(images, labels, self.window, generator), allowed)
            view = batch.image
            if self.view != "off":
                view, holes = restyle(batch.image, self.view, generator)
                batch = batch._replace(labels=batch.labels.masked_fill(holes[:, None], IGNORE))
            losses.append(self._step(batch, view, rate, epoch))
            seen += len(images) * self.accelerator.num_processes
        loss = float(self.accelerator.reduce(torch.stack(losses).mean(), "mean"))
        if not math.isfinite(loss):
            raise SegsmithError(
                f"The training diverged in epoch {epoch + 1} (loss {loss}).", "Lower trainer.learning_rate."
            )
        trained = time.perf_counter() - sam_done
        miou = self._agreed(self._score().miou) if self.validation is not None else None
        report = EpochReport(
            epoch + 1,
            len(self.steps),
            loss,
            rate,
            miou,
            sum(self.steps[: epoch + 1]),
            sum(self.steps),
            time.perf_counter() - started,
            seen / trained,
        )
        self.reports.append(report)
        tracking.report(self.accelerator, self.config, report)
        self.epoch = epoch + 1
        if self.epoch % self.config.save_every == 0 or self.done():
            self._save()
        log.info("epoch %d of %d: loss %.3f, val mIoU %s", epoch + 1, len(self.steps), loss, miou)
        return report

    def finish(self) -> TrainResult:
        """Write the averaged weights as the finished segmenter, and score them."""
        if self.accelerator.is_main_process:
            meta = self.meta.model_copy(update={"epochs": self.epoch})
            save_segmenter(self.out, self.ema.model.state_dict(), meta)
        self.accelerator.wait_for_everyone()
        checkpoint = self.out / "segmenter.safetensors"
        score = self._score() if self.validation is not None else None
        return TrainResult(checkpoint, self.data.classes, tuple(self.reports), score)

    def _step(self, batch: Sample, view: Tensor, rate: float, epoch: int) -> Tensor:
        """One update on `view`, which is `batch.image` with photometric changes; the teacher sees `batch.image`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.memory.whole(len(view), partial(self._gradients, batch, view, epoch))
        self.accelerator.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT)
        self.optimizer.step()
        self.ema.update(self._bare())
        return loss

    def _gradients(self, batch: Sample, view: Tensor, epoch: int, size: int) -> Tensor:
        """Compute the gradients of one update from about `size` images at a time; returns the mean loss.

        With several processes a batch is never split, because all of them must take part in each backward pass.
        """
        self.optimizer.zero_grad()
        total = torch.zeros((), device=view.device)
        for rows in torch.arange(len(view), device=view.device).tensor_split(len(view) // size):
            whole = len(rows) == len(view)
            part = batch if whole else Sample(*(values[rows] for values in batch))
            loss = self._loss(part, view if whole else view[rows], epoch) * (len(rows) / len(view))
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _loss(self, batch: Sample, view: Tensor, epoch: int) -> Tensor:
        logits = self._logits(self.model, view)
        weighed = zip(
            batch.labels.unbind(1), (self.config.given_weight, self.config.sam_weight), strict=False
        )
        sources = [(labels, weight) for labels, weight in weighed if weight]
        if self.config.teacher_weight and epoch >= self.config.teacher_from * len(self.steps):
            with torch.no_grad():
                taught = self._logits(self.ema.model, batch.image)
            known = (batch.labels != IGNORE).any(1)
            guesses = teacher_labels(taught, known, batch.allowed, self.config.teacher_threshold)
            sources.append((guesses, self.config.teacher_weight))
        return joint_loss(logits, sources, self.weights, self.config.balance, self._averaged)

    def _averaged(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.accelerator.num_processes == 1:
            return value
        mean: Tensor = self.accelerator.reduce(value.detach(), "mean")
        return mean

    def _description(self, model: nn.Module) -> SegmenterMeta:
        mean, std = normalisation(model)
        try:
            return SegmenterMeta(
                classes=self.data.classes,
                background=self.background,
                architecture=self.config.architecture,
                encoder=self.encoder,
                decoder=decoder_of(self.config.architecture),
                size=self.size,
                mean=mean,
                std=std,
                epochs=0,
                seed=self.seed,
                trainer=self.config,
            )
        except ValidationError as error:
            raise SegsmithError(
                f"No segmenter can be trained on {self.data.root}: {first_problem(error)}.",
                "Fix the dataset.",
            ) from None

    def _logits(self, model: nn.Module, images: Tensor) -> Tensor:
        with self.accelerator.autocast():
            logits: Tensor = model(normalise(self._bare(), images).to(memory_format=torch.channels_last))
        return logits.float()

    def _open_loader(self) -> DataLoader[Sample]:
        """What reads and batches an epoch's images; above `RAM_BYTES` with processes that live as long as it does.

        These have a copy of `sources`, so new labels need a new loader. It draws from a generator of its own when its
        processes start: with torch's, from which dropout draws, a resumed training would differ from a whole one.
        Each batch is split between the processes of a training, so that their number does not change it.
        """
        loader = DataLoader(
            self.sources,
            batch_size=self.sampler.batch_size,
            sampler=self.sampler,
            collate_fn=partial(stack, size=self.size),
            num_workers=0 if self.data.in_memory else WORKERS,
            persistent_workers=not self.data.in_memory,
            generator=torch.Generator(),
        )
        # The accelerator's own `prepare` would keep every loader, and with it the processes of a replaced one.
        return prepare_data_loader(loader, self.accelerator.device, split_batches=True, put_on_device=True)

    def _sam_is_due(self, epoch: int) -> bool:
        every = self.config.refresh_every
        return self.sam is not None and (epoch == 0 or (every > 0 and epoch % every == 0))

    def _run_sam(self, epoch: int) -> None:
        """Make new labels with SAM: the main process writes them to a file that all processes read."""
        assert self.sam is not None
        if self.accelerator.is_main_process:
            taught = teacher_predictions(self.ema.model, self.sources) if epoch else None
            self._sam_file(epoch).parent.mkdir(parents=True, exist_ok=True)
            save_maps(self._sam_file(epoch), self.data.ids, self.sam.label_maps(self.data, taught, epoch))
        self.accelerator.wait_for_everyone()
        self._use_sam(epoch)

    def _use_sam(self, round_: int) -> None:
        self.sources.use(self._sam_file(round_))
        if not self.data.in_memory:
            self.loader = self._open_loader()
        self.sam_round = round_
        self.weights = self._class_weights()

    def _sam_file(self, round_: int) -> Path:
        return self.state / f"sam-{round_}.zip"

    def _class_weights(self) -> Tensor:
        return class_weights(self.sources.class_pixels(self.sampler.rates)).to(self.accelerator.device)

    def _agreed(self, value: float) -> float:
        """The main process's value; scores differ slightly between processes because buffers do."""
        shared = broadcast(torch.tensor(value, device=self.accelerator.device))
        assert isinstance(shared, Tensor)
        return float(shared)

    def _score(self) -> SegmentationScore:
        assert self.validation is not None
        pairs = predicted_pairs(self.ema.model, self.validation, self.config.precision)
        return score_pairs(pairs, self.data.classes, self.background)

    def _bare(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    def _resume(self) -> None:
        before = saved_fingerprint(self.state)
        if before is not None and before != self.fingerprint:
            log.warning("the state in %s was made with different data or settings; starting over", self.state)
            return
        state = load_state(self.state, self._bare())
        if state is None:
            return
        self._bare().load_state_dict(state.model)
        self.ema.model.load_state_dict(state.ema)
        self.ema.updates = state.ema_updates
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state.optimizer, "param_groups": groups})
        self.reports = list(state.reports)
        self.epoch = state.epoch
        if state.sam_round is not None:
            self._use_sam(state.sam_round)
        log.info("resuming after epoch %d of %d", self.epoch, len(self.steps))

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            state = TrainingState(
                epoch=self.epoch,
                sam_round=self.sam_round,
                fingerprint=self.fingerprint,
                model=self._bare().state_dict(),
                ema=self.ema.model.state_dict(),
                ema_updates=self.ema.updates,
                optimizer=self.optimizer.state_dict()["state"],
                reports=tuple(self.reports),
            )
            save_state(self.state, state)
        self.accelerator.wait_for_everyone()


def _without_traceback(error: SegsmithError) -> SegsmithError:
    """`error`, or its last line if torch has put the traceback of a reading process into its message."""
    lines = error.message.splitlines()
    if len(lines) < 2:
        return error
    return SegsmithError(lines[-1].rpartition(f"{SegsmithError.__name__}: ")[2], "Fix that file.")


def _view(config: TrainerConfig, data: VocFolder) -> Literal["photographs", "sprites", "off"]:
    """What the student sees; ``auto`` follows what the data is."""
    if config.strong_view != "auto":
        return config.strong_view
    return "sprites" if data.simulated else "off"


def _common_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The most common (H, W), to which images of other sizes are resized."""
    return Counter(sizes).most_common(1)[0][0]


def _optional_split(root: Path, split: str) -> VocFolder | None:
    if not (root / "ImageSets" / "Segmentation" / f"{split}.txt").exists():
        return None
    data = VocFolder(root, split)
    return data if len(data) else None


def _fingerprint(data: VocFolder, config: TrainerConfig, seed: int, sources: str) -> str:
    # Settings that were added later count only where they are used, so that older states stay valid.
    later = {
        name
        for name in ("size", "crop", "freeze_encoder")
        if getattr(config, name) == TrainerConfig.model_fields[name].default
    }
    if config.epochs is not None:
        later.add("steps")
    settings = config.model_dump_json(exclude={"save_every", "tracker", *later})
    return hashlib.sha256(f"{data.fingerprint()} {settings} {seed} {sources}".encode()).hexdigest()


def _precision(wanted: str) -> str:
    """accelerate's name of a precision; `SegsmithError` if this machine cannot train with it."""
    on_gpu = torch.cuda.is_available()
    if wanted == "auto":
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "no"
    if wanted == "float16" and not on_gpu:
        raise SegsmithError(
            "trainer.precision is 'float16', which needs a GPU.", "Set it to auto, float32 or bfloat16."
        )
    return {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[wanted]
