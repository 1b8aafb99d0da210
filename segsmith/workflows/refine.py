"""Weak labels (points, scribbles, coarse polygons, image labels) refined to dense masks and a segmenter (SeSAM)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segsmith.config import Config, equals_stored, merged_config
from segsmith.engine.options import EngineOptions, engine_options
from segsmith.errors import SegsmithError
from segsmith.events import Event, Notice, SamTried, Stage, StageStarted, WeakLabelsRead
from segsmith.files import PART, local_folder, remove_leftovers, write_atomic
from segsmith.locks import lock_mode, set_lock_mode
from segsmith.workflows.dense_labels import MaskQuality
from segsmith.workflows.progress import Callback, Screen, open_display
from segsmith.workflows.settings import Settings, check_used, segmenter_config
from segsmith.workflows.train import Training, locked, train_segmenter
from segsmith.workflows.weaken import weak_kind

if TYPE_CHECKING:
    from segsmith.datasets.weak_labels import WeakKind
    from segsmith.datasets.weak_source import WeakSource
    from segsmith.protocols import PointSegmenter
    from segsmith.segmentation.spread import SpreadLabels
    from segsmith.segmentation.weak_refiner import WeakRefiner

DEFAULTS: Settings = {"trainer.teacher_weight": 1, "labeler.border_px": 0}
"""Settings of `refine` that differ from those of its preset; environment and caller come after them."""

CLASSIFIER = ("judge.clip", "labeler.vit", "labeler.folds", "labeler.epochs", "labeler.batch_size",
              "labeler.learning_rate", "labeler.top_k", "labeler.seed_level")  # fmt: skip
"""Settings of the classifier that finds seeds for image labels."""
SAM = (
    "labeler.sam",
    "labeler.sam_views",
    "labeler.mask_refiner",
    "labeler.points",
    "labeler.tau1",
    "labeler.tau2",
    "labeler.selection",
    "labeler.points_from",
)
"""Settings of SAM, of the points for it, and of the choice among its masks."""
MINI_SAM = (
    "The mini SAM was trained on sprites. On photographs its masks are often wrong; type --preset cpu or gpu for a "
    "SAM that was trained on photographs, or --set labeler.use_sam=false."
)

Show = Callable[[Event], None]


@dataclass(frozen=True)
class Refinement:
    """What `refine` made."""

    dataset: Path
    """The dataset with dense masks in split train, in PASCAL VOC's layout."""
    label_kind: WeakKind
    training: Training | None
    """None where no segmenter was trained."""
    components: Mapping[str, int] = field(default_factory=dict)
    """How the labelled components were resolved -> their number; ``ok`` are those that SAM outlined. Empty when an
    earlier call had made the masks."""
    quality: Mapping[str, MaskQuality] = field(default_factory=dict)
    """Stage -> quality of its label maps, where the truth is known."""

    @property
    def segmenter(self) -> Path | None:
        """The trained ``segmenter.safetensors``."""
        return None if self.training is None else self.training.segmenter


def refine(
    dataset: str | Path,
    out: str | Path,
    *,
    preset: str | None = None,
    weak: str | None = None,
    zero_is_undrawn: bool = False,
    background: bool | None = None,
    truth: str | Path | None = None,
    seed: int = 0,
    train: bool = True,
    settings: Settings | None = None,
    engine: str | EngineOptions = "local",
    address: str | None = None,
    workers: int | None = None,
    on_event: Callback | None = None,
    progress: bool = True,
    screen: Screen | None = None,
) -> Refinement:
    """Turn weak labels into dense masks with SAM, and train a segmenter on both; the same call resumes.

    SAM is first tried on drawn labels that it is not shown. Where fewer than ``labeler.min_sam_agreement`` of
    its masks agree with them, drawn labels are spread along colours instead. Drawn pixels keep their label; pixels
    that nothing decides stay 255.

    Args:
        dataset: folder in VOC or COCO format, or with one sub-folder of images per class. In VOC masks, 255 marks
            pixels where nothing was drawn.
        out: folder for ``voc/`` (the dense masks), ``checkpoints/`` (the segmenter) and the state to resume from.
        preset: which SAM, CLIP and encoder to use: ``sim`` (the mini models, which know sprites only; the default),
            ``cpu``, ``gpu``, ``hosted``, or ``auto``.
        weak: ``points``, ``scribbles``, ``coarse`` or ``image``; None detects it.
        zero_is_undrawn: index 0 in a mask means that nothing was drawn there, not background.
        background: whether pixels outside every mask become background. False: they stay 255, and the segmenter never
            predicts background. None: False only if masks that mark undrawn pixels as 255 hold no 0.
        truth: the same images with full labels; the result then states the quality of the masks.
        seed: another seed places other points for SAM.
        train: train a segmenter, and use it to improve the masks.
        settings: settings of sections ``labeler``, ``trainer`` and ``compute``, e.g. ``{"trainer.epochs": 40}``. A
            setting that has no effect here is an error.
        engine: ``ray`` trains in one process for each GPU, as `train` does; the first of them runs SAM.
        address: of a running Ray cluster; None starts Ray on this machine.
        workers: number of processes of ``ray``; it must divide ``trainer.batch_size``.
        on_event: called with every event, in place of the progress display.
        progress: show a progress display in a terminal or notebook.

    Raises `SegsmithError` for a dataset or a setting that cannot be used, and for an `out` made with others.
    """
    from segsmith.datasets.voc_folder import drawn_by_simulator
    from segsmith.segmentation.inference import checkpoint_predictions
    from segsmith.segmentation.trainer import processes
    from segsmith.workflows.dense_labels import write_dense

    root, out = Path(dataset), local_folder(out)
    where = engine_options(engine, address, workers)
    if where.name == "ray":
        from segsmith.engine.ray_group import run_group

        call = {
            "preset": preset, "weak": weak, "zero_is_undrawn": zero_is_undrawn, "background": background,
            "truth": None if truth is None else Path(truth).resolve(), "seed": seed, "train": train,
            "settings": settings,
        }  # fmt: skip
        work = partial(_refine_in_group, root.resolve(), out.resolve(), call, lock_mode.get())
        batch_size = refine_config(settings, preset).trainer.batch_size
        with open_display(on_event, progress, screen) as display:
            return run_group(where, work, batch_size, display.show)
    kind = None if weak is None else weak_kind(weak, "--weak")
    config = refine_config(settings, preset)
    arguments = _Arguments(root, kind, zero_is_undrawn, background, seed, config)
    sprites = drawn_by_simulator(root)
    if config.trainer.strong_view == "auto":
        view = "sprites" if sprites else "off"
        config = merged_config(config, {"trainer": {"strong_view": view}}, "refine")
    segmenter = _segmenter(config)

    def check(source: WeakSource) -> None:
        check_used("refine", settings, _unused(source.kind, train, config))
        if segmenter is not None and config.labeler.sam == "mini" and not sprites:
            display.show(Notice(MINI_SAM, warning=True))

    group = processes()
    with ExitStack() as stack:
        display = stack.enter_context(open_display(on_event, progress and group.is_main_process, screen))
        with group.main_process_first():  # the other processes then find the files that it wrote
            given, source = _given(arguments, out, display.show, stack, check)
            kind, background = source.kind, source.background
            if group.is_main_process:
                remove_leftovers(out)
            seeds = _seeds(given, out / "seeds.zip", config, seed, display.show) if kind == "image" else None
            if segmenter is not None and kind != "image" and config.labeler.min_sam_agreement:
                tried = _tried(given, out / "sam.json", segmenter, config, seed, display.show)
                display.show(tried)
                segmenter = segmenter if tried.used else None
        refiner = _refiner(segmenter, config, seed, seeds, background)
        training, opinions = None, None
        if train:
            checkpoints = out / "checkpoints"
            training = train_segmenter(given, checkpoints, config, seed, show=display.show, sam=refiner)
            opinions = checkpoint_predictions(checkpoints, given, config.trainer.drawn_classes_only)
        voc = out / "voc"
        if group.is_main_process and not voc.exists():
            display.show(StageStarted(Stage.REFINING))
            write_dense(given, voc, refiner, opinions, config.trainer.teacher_threshold)
        group.wait_for_everyone()
        quality: Mapping[str, MaskQuality] = {}
        if truth is not None and group.is_main_process:
            quality = _quality(Path(truth), given, out)
        components = {reason.removeprefix("sam:"): n for reason, n in refiner.how.items()}
        return Refinement(voc, kind, training, components, quality)


def _refine_in_group(dataset: Path, out: Path, call: dict[str, Any], lock: str, *, show: Show) -> Refinement:
    """What each process of a group does."""
    set_lock_mode(lock)
    return refine(dataset, out, **call, on_event=show)


def refine_config(settings: Settings | None = None, preset: str | None = None) -> Config:
    """The config of `refine` with these settings on top."""
    return segmenter_config("refine", settings, DEFAULTS, preset)


def _segmenter(config: Config) -> PointSegmenter | None:
    """SAM, or None where the settings say that it is not used."""
    from segsmith.tools.vision.sam_views import open_segmenter

    if not config.labeler.use_sam:
        return None
    return open_segmenter(config.labeler, config.compute)


def _unused(kind: WeakKind, train: bool, config: Config) -> dict[str, str]:
    """Pattern of settings -> why they have no effect on this data and with these other settings."""
    unused = {}
    if not train:
        unused["trainer"] = "with --no-train"
    if kind != "image":
        unused |= dict.fromkeys(CLASSIFIER, f"on {kind}, only on image labels")
    if kind == "image" or not config.labeler.use_sam:
        why = "on image labels" if kind == "image" else "without SAM"
        unused["labeler.min_sam_agreement"] = why
    if not config.labeler.use_sam:
        unused |= dict.fromkeys(SAM, "without SAM")
    if config.labeler.points_from == "confidence" and not train:
        unused["labeler.points_from"] = "with --no-train"
    return unused


def _tried(
    given: Path, path: Path, segmenter: PointSegmenter, config: Config, seed: int, show: Show
) -> SamTried:
    """Try SAM on drawn labels that it is not shown; the result is kept in ``sam.json``."""
    from segsmith.datasets.voc_folder import VocFolder
    from segsmith.segmentation.masks import MaskSettings
    from segsmith.segmentation.sam_trial import SamTrial, try_sam

    level, trial = config.labeler.min_sam_agreement, None
    if path.exists():
        try:
            trial = SamTrial(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            raise SegsmithError(
                f"{path} is damaged.", f"Type rm {shlex.quote(str(path))} to try SAM again."
            ) from None
    if trial is None:
        show(StageStarted(Stage.TRYING_SAM))
        data = VocFolder(given, "train")
        trial = try_sam(data, segmenter, MaskSettings.of(config.labeler), level, seed)
        write_atomic(path, json.dumps(asdict(trial)).encode())
    return SamTried(trial.masks, trial.crossing, trial.partial, level, trial.helps(level))


@dataclass(frozen=True)
class _Arguments:
    """What the content of ``OUT`` depends on; see `refine`."""

    dataset: Path
    kind: WeakKind | None
    zero_is_undrawn: bool
    background: bool | None
    seed: int
    config: Config


def _given(
    asked: _Arguments, out: Path, show: Show, stack: ExitStack, check: Callable[[WeakSource], None]
) -> tuple[Path, WeakSource]:
    """The dataset that is trained on, ``OUT/given`` in VOC's layout, and where it comes from.

    `out` is locked until `stack` closes, once the dataset is known to be usable. `check` may raise before that.
    """
    from segsmith.datasets.voc_layout import write_voc
    from segsmith.datasets.weak_source import open_weak

    source = open_weak(asked.dataset, asked.kind, not asked.zero_is_undrawn)
    if asked.background is not None:
        source = replace(source, background=asked.background)
    check(source)
    zero = f"{asked.zero_is_undrawn}{'' if source.background else ', no background'}"
    record = (
        f"{asked.dataset.resolve()}\n{source.kind}\n{zero}\n{asked.seed}\n{asked.config.model_dump_json()}\n"
    )
    given = out / "given"
    stack.enter_context(locked(out))
    if not _is_ours(out, record) or not given.exists():
        show(_summary(source))
        pairs = {split: source.pairs(split) for split in source.splits}
        write_voc(given, source.classes, pairs, source.image_labels)
    return given, source


def _summary(source: WeakSource) -> WeakLabelsRead:
    from segsmith.files import conversion_notes

    return WeakLabelsRead(
        label_kind=source.kind,
        splits={split: len(items) for split, items in source.splits.items()},
        zero_is_drawn=source.zero_is_drawn,
        background=source.background,
        problems=(*map(str, source.skipped), *conversion_notes(source.conversions)),
        unlabelled=source.empty,
        never_shown=source.never,
    )


def _is_ours(out: Path, record: str) -> bool:
    """Whether `out` was made with the same arguments. A new folder is marked with them.

    Raises `SegsmithError` for a folder that was made with other arguments, or that holds something else.
    """
    note = out / "refine.txt"
    if note.exists() and _same(note.read_text("utf-8", errors="replace"), record):
        return True
    if any(not path.name.startswith((".lock", PART)) for path in out.iterdir()):
        raise SegsmithError(
            f"{out} exists already and was not made with this dataset and these settings.",
            "Name a new folder with --out.",
        )
    try:
        write_atomic(note, record.encode())
    except OSError as error:
        raise SegsmithError(f"Cannot write to {out}: {error.strerror}.", "Name another folder.") from None
    return False


def _same(stored: str, record: str) -> bool:
    """Whether two records are equal; the settings in the stored one may have the names of an earlier version."""
    arguments, _, config = record.rstrip("\n").rpartition("\n")
    stored_arguments, _, stored_config = stored.rstrip("\n").rpartition("\n")
    if stored_arguments != arguments:
        return False
    return stored_config == config or equals_stored(Config.model_validate_json(config), stored_config)


def _seeds(given: Path, path: Path, config: Config, seed: int, show: Show) -> Path:
    """Seeds from patch scores, for image labels."""
    from segsmith.datasets.voc_folder import read_classes
    from segsmith.segmentation.masks import MaskSettings
    from segsmith.tools.vision.clip import OpenClipEncoder
    from segsmith.tools.vision.vit import open_classifier
    from segsmith.workflows.dense_labels import find_seeds

    if not path.exists():
        compute = config.compute
        classifier = open_classifier(
            config,
            read_classes(given),
            seed,
            lambda: OpenClipEncoder.load(config.judge.clip, compute.device, compute.precision),
        )
        show(StageStarted(Stage.SEEDING))
        find_seeds(given, path, classifier, MaskSettings.of(config.labeler), seed)
    return path


def _refiner(
    segmenter: PointSegmenter | None, config: Config, seed: int, seeds: Path | None, background: bool
) -> WeakRefiner | SpreadLabels:
    from segsmith.segmentation.masks import MaskSettings
    from segsmith.segmentation.sources import read_map
    from segsmith.segmentation.spread import SpreadLabels
    from segsmith.segmentation.weak_refiner import WeakRefiner

    if segmenter is None and seeds is None:
        return SpreadLabels(config.trainer.teacher_threshold, config.trainer.step0)
    return WeakRefiner(
        segmenter,
        MaskSettings.of(config.labeler),
        seed,
        threshold=config.trainer.teacher_threshold,
        step0=config.trainer.step0,
        seeds=None if seeds is None else lambda name: read_map(seeds, name),
        background=background,
    )


def _quality(truth: Path, given: Path, out: Path) -> Mapping[str, MaskQuality]:
    """Quality of the label maps of each stage, as far as the truth is known."""
    from segsmith.datasets.imports import ImportedSplit
    from segsmith.datasets.voc_folder import VocFolder
    from segsmith.workflows.dense_labels import maps_of_file, maps_of_split, quality

    data = VocFolder(given, "train")
    exact = ImportedSplit(truth, "train", data.classes)
    true_maps = {item.id: exact.raw(i)[1] for i, item in enumerate(exact.source.records)}
    seeds, first = out / "seeds.zip", out / "checkpoints" / "training" / "sam-0.zip"
    stages = {
        "patch scores, before SAM": maps_of_file(seeds, data.ids) if seeds.exists() else None,
        "weak labels, before SAM": None if seeds.exists() else maps_of_split(given),
        "first asked: SAM, or spread labels": maps_of_file(first, data.ids) if first.exists() else None,
        "final masks": maps_of_split(out / "voc"),
    }
    return {
        stage: quality(maps, true_maps, data.classes) for stage, maps in stages.items() if maps is not None
    }
