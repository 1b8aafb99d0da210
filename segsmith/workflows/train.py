"""Train a segmenter on a labelled dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from segsmith.config import Config
from segsmith.engine.options import EngineOptions, engine_options
from segsmith.errors import SegsmithError
from segsmith.events import EpochFinished, Event, Notice, Stage, StageStarted
from segsmith.files import local_folder
from segsmith.locks import lock_mode, set_lock_mode
from segsmith.memory.run_folder import RunFolder
from segsmith.types import Evaluation
from segsmith.workflows.evaluate import evaluation_of
from segsmith.workflows.progress import Callback, Screen, open_display
from segsmith.workflows.settings import Settings, segmenter_config

if TYPE_CHECKING:
    from segsmith.segmentation.sources import SamLabels


@dataclass(frozen=True)
class Training:
    """A finished training.

    It has fewer epochs than were asked for where ``trainer.patience`` stopped it early.
    """

    segmenter: Path
    """``segmenter.safetensors``; its description is beside it in ``segmenter.json``."""
    epochs: tuple[EpochFinished, ...]
    validation: Evaluation | None
    """The finished segmenter on split val; None without such a split."""

    @property
    def stopped_early(self) -> bool:
        """Whether split val showed no progress any more."""
        return self.epochs[-1].epoch < self.epochs[-1].epochs


def train(
    dataset: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    settings: Settings | None = None,
    engine: str | EngineOptions = "local",
    address: str | None = None,
    workers: int | None = None,
    on_event: Callback | None = None,
    progress: bool = True,
    screen: Screen | None = None,
) -> Training:
    """Train a segmenter on split train of a dataset in PASCAL VOC's layout; the same call resumes an interrupted one.

    Args:
        dataset: folder with ``JPEGImages``, ``SegmentationClass``, ``ImageSets/Segmentation`` and ``classes.txt``.
        out: folder for ``segmenter.safetensors`` and for the state to resume from.
        seed: equal seeds, settings and data give equal segmenters on one machine.
        settings: settings of section ``trainer``, e.g. ``{"trainer.epochs": 40}``. One that has no effect here is an
            error.
        engine: ``local`` trains in this process, or in those of ``accelerate launch``; ``ray`` in one process for
            each GPU of this machine or a cluster, which sees dataset and `out` under the same paths. Each batch is
            split between them, so the loss curve is that of one process but for rounding and dropout.
        address: of a running Ray cluster; None starts Ray on this machine.
        workers: number of processes of ``ray``; it must divide ``trainer.batch_size``.
        on_event: called with every event, in place of the progress display.
        progress: show a progress display in a terminal or notebook.

    Raises `SegsmithError` for a dataset or a setting that cannot be used, and when the loss is no longer finite.
    """
    from segsmith.datasets.voc_folder import VocFolder
    from segsmith.files import conversion_notes

    where = engine_options(engine, address, workers)
    out = local_folder(out)
    config = segmenter_config("train", settings, {})
    data = VocFolder(Path(dataset), "train", keep=False)  # an unusable dataset leaves no folder behind
    with open_display(on_event, progress and is_main_process(), screen) as display:
        for note in conversion_notes(data.conversions):
            display.show(Notice(note))
        if where.name == "local":
            return _train_alone(Path(dataset), out, config, seed, lock_mode.get(), show=display.show)
        from segsmith.engine.ray_group import run_group

        work = partial(_train_alone, Path(dataset).resolve(), out.resolve(), config, seed, lock_mode.get())
        return run_group(where, work, config.trainer.batch_size, display.show)


def _train_alone(
    dataset: Path, out: Path, config: Config, seed: int, lock: str, *, show: Callable[[Event], None]
) -> Training:
    """What one process does; where several train together, the main one holds the folder."""
    set_lock_mode(lock)
    with locked(out):
        return train_segmenter(dataset, out, config, seed, show=show)


def train_segmenter(
    dataset: Path,
    out: Path,
    config: Config,
    seed: int,
    *,
    show: Callable[[Event], None],
    sam: SamLabels | None = None,
) -> Training:
    """Train by section ``trainer`` of `config`; `sam` is a second source of labels (SeSAM)."""
    from segsmith.segmentation.trainer import EpochReport
    from segsmith.segmentation.trainer import train as run
    from segsmith.tools.vision.clip import OpenClipEncoder
    from segsmith.tools.vision.clip_to_timm import class_directions

    tower, directions = None, None
    if config.trainer.encoder_init == "clip":
        encoder = OpenClipEncoder.load(config.judge.clip, "cpu")
        tower, directions = encoder.tower, partial(class_directions, encoder)
    show(StageStarted(Stage.TRAINING))

    def on_epoch(report: EpochReport) -> None:
        show(EpochFinished(**asdict(report)))

    result = run(
        dataset,
        out,
        config.trainer,
        seed,
        clip_tower=tower,
        directions=directions,
        sam=sam,
        on_epoch=on_epoch,
    )
    return Training(
        result.checkpoint,
        tuple(EpochFinished(**asdict(report)) for report in result.reports),
        None if result.validation is None else evaluation_of(result.validation),
    )


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Create `out`, lock it for this command and remove what a killed one left half-written.

    Of the processes that ``accelerate launch`` started, only the main one does this. Raises `SegsmithError` where
    another command has locked it, or it cannot be written.
    """
    if not is_main_process():
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SegsmithError(f"Cannot write to {out}: {error.strerror}.", "Name another folder.") from None
    with RunFolder(out).held():
        yield


def is_main_process() -> bool:
    """Whether this is the process that reports, of those that ``accelerate launch`` started together."""
    from segsmith.segmentation.trainer import processes

    return bool(processes().is_main_process)
