"""Add generated images to a real dataset (IAA): find what it lacks, turn that into quotas, and build.

The graph is that of a build. What differs follows from the config and from ``real/`` in the run folder: label sets
for the prompts, a second judge, real training images for the relabelling ViT, and real images beside the generated
ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from segsmith.agents.prompt.label_sets import count_classes, rare_pairs, share_out
from segsmith.config import Config, merged_config
from segsmith.engine.options import EngineOptions, engine_options
from segsmith.errors import SegsmithError
from segsmith.events import Notice, RealImagesRead
from segsmith.memory.real_images import RealSet
from segsmith.memory.run_folder import RunFolder
from segsmith.workflows.build import Parts, run_with_display
from segsmith.workflows.preflight import check_classes
from segsmith.workflows.progress import Callback, Screen, open_display
from segsmith.workflows.resume import check_folder
from segsmith.workflows.reviewing import Reviewer, terminal_reviewer
from segsmith.workflows.run import Run
from segsmith.workflows.settings import Settings, check_used, check_used_with, overrides, resolve

CARTOONS = (
    "The simulator draws the images to add: cartoons, labelled by models that know cartoons. Masks and scores that "
    "these models make for photographs are guesses."
)
ENOUGH = 0.75
"""Share of real images in training that the warning about too few epochs aims at."""


@dataclass(frozen=True)
class Enlargement:
    """What is to be added to a real dataset."""

    config: Config
    real: RealSet
    have: Mapping[str, int]
    """Class -> real images of split train that show it."""
    rare: list[tuple[str, str, int]]
    """Pairs of classes and the number of real images that show both, rarest first."""
    prepare: Callable[[], object]
    """Copies the real images; `build_run` calls it when this process holds the folder."""


def augment(
    dataset: str | Path,
    out: str | Path,
    *,
    add_per_class: int,
    allow_simulator: bool = False,
    preset: str | None = None,
    config: str | Path | Config | None = None,
    settings: Settings | None = None,
    seed: int | None = None,
    memory: str | Path | None = None,
    max_images: int | None = None,
    max_hours: float | None = None,
    max_usd: float | None = None,
    offline: bool = False,
    step: bool = False,
    reviewer: Reviewer | None = None,
    engine: str | EngineOptions = "local",
    address: str | None = None,
    workers: int | None = None,
    unit_timeout_s: float | None = None,
    on_event: Callback | None = None,
    progress: bool = True,
    screen: Screen | None = None,
    parts: Parts | None = None,
    command: str = "",
) -> Run:
    """Find what a real dataset lacks, add generated images, and train on both. The same call resumes.

    Real images keep their labels and masks, and their splits; every generated image goes to split train.

    Args:
        dataset: folder of the real dataset: VOC, COCO, one sub-folder of images per class, and others.
        out: run folder.
        add_per_class: generated images to add per class, on average; rare classes get more.
        allow_simulator: let the simulator draw the images, although the dataset is not the simulator's. They are
            cartoons, which seldom help with photographs.

    All other arguments are those of `build`. Raises `SegsmithError` for everything that a user can fix.
    """
    if add_per_class < 1:
        raise SegsmithError(
            f"--add-per-class {add_per_class} adds nothing.", "Type a number of at least 1, e.g. 40."
        )
    check_used("augment", settings)
    where = engine_options(engine, address, workers, unit_timeout_s)
    changes = overrides(
        settings,
        per_class=add_per_class,
        seed=seed,
        memory=memory,
        offline=offline,
        max_images=max_images,
        max_hours=max_hours,
        max_usd=max_usd,
    )
    from segsmith.datasets.voc_folder import drawn_by_simulator

    root, out = Path(dataset), Path(out)
    check_folder(RunFolder(out))
    with open_display(on_event, progress, screen) as display:
        settled, choice = resolve(preset=preset, config=config, changes=changes, run=out, labelled=True)
        check_used_with(settled, settings, parts or ())
        plan = plan_enlargement(settled, root, out)
        check_classes(plan.config)
        resumed = RunFolder(out).config.exists()
        if plan.config.images.backend == "simulator" and "backend" not in (parts or {}):
            if not (allow_simulator or resumed or drawn_by_simulator(root)):
                raise SegsmithError(
                    f"The simulator would add cartoons to the images of {root}.",
                    "Type --preset gpu or hosted for an image model, or --allow-simulator to add them anyway.",
                )
            display.show(Notice(CARTOONS, warning=True))
        display.show(_summary(plan))
        display.show(training_share(plan))
        if choice.why:
            display.show(Notice(f"preset {choice.preset}: {choice.why}"))
        return run_with_display(
            plan.config,
            out,
            display,
            reviewer=reviewer or (terminal_reviewer((screen or Screen()).out) if step else None),
            parts=parts,
            command=command,
            engine=where,
            prepare=plan.prepare,
        )


def plan_enlargement(settings: Config, dataset: Path, out: Path) -> Enlargement:
    """Survey `dataset`, or the copy of it that the run folder `out` holds already. Nothing is written.

    ``settings.per_class`` images are added for each class on average, distributed by `share_out`; a class in
    ``settings.quotas`` gets the number given there. Raises `SegsmithError` for a dataset that cannot be used.
    """
    from segsmith.datasets.survey import keep, survey

    run = RunFolder(out)
    kept = RealSet.open(run.real)
    if kept is None:
        found = survey(dataset, out, settings.splits, settings.seed)
        real, prepare = found.real, lambda: keep(found)
    else:
        real, prepare = kept, lambda: kept
    have = count_classes(real.label_sets, real.classes)
    config = merged_config(
        settings,
        {
            "classes": real.classes,
            "quotas": {**share_out(have, settings.per_class, settings.augment.balance), **settings.quotas},
            "augment": {"dataset": str(dataset.resolve())},
        },
        str(dataset),
    )
    return Enlargement(config, real, have, rare_pairs(real.label_sets, real.classes), prepare)


def _summary(plan: Enlargement) -> RealImagesRead:
    splits = [image.split for image in plan.real.images]
    return RealImagesRead(
        splits={split: splits.count(split) for split in dict.fromkeys(splits)},
        masked=any(image.masked for image in plan.real.images),
        in_training=dict(plan.have),
        to_add=dict(plan.config.wanted),
        never_together=tuple((one, other) for one, other, count in plan.rare if not count),
        skipped=plan.real.skipped,
    )


def training_share(plan: Enlargement) -> Notice:
    """How much of the training is real images; a warning where generated images would get no time at all."""
    from segsmith.segmentation.recipe import real_share

    n_real = sum(image.split == "train" for image in plan.real.images)
    n_added = sum(plan.config.wanted.values())
    trainer = plan.config.trainer
    share = real_share(trainer, [True] * n_real + [False] * n_added)
    if share < 1:
        return Notice(f"training: at least {share:.0%} of the images shown are real")
    shown = trainer.real_passes * n_real / ENOUGH
    if trainer.epochs is None:
        enough = f"trainer.steps={math.ceil(shown / trainer.batch_size)}"
    else:
        enough = f"trainer.epochs={math.ceil(shown / (n_real + n_added))}"
    return Notice(
        f"In {trainer.length} each real image is shown fewer than {trainer.real_passes} times, so the "
        f"segmenter is trained on real images only. With --set {enough}, "
        f"{1 - ENOUGH:.0%} of the images shown are generated.",
        warning=True,
    )
