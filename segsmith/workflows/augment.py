"""`segsmith augment` before its graph runs: the real dataset is looked through, and what it lacks becomes quotas.

The rest is the very graph of a build. What differs follows from the config and from ``real/`` in the run folder:
label sets for the prompts, a second judge, teachers for the relabelling ViT, and real images beside the drawn ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from segsmith.agents.prompt.label_sets import count_classes, rare_pairs, share_out
from segsmith.config import Config, merged_config
from segsmith.memory.real_images import RealSet
from segsmith.memory.run_folder import RunFolder


@dataclass(frozen=True)
class Enlargement:
    """What is to be done. `prepare` copies the real images; `build_run` calls it when the folder is its own."""

    config: Config
    real: RealSet
    have: Mapping[str, int]
    """Class -> real images of split train that show it."""
    rare: list[tuple[str, str, int]]
    """Pairs of classes and the real images that show both, rarest first."""
    prepare: Callable[[], object]


def plan_enlargement(settings: Config, dataset: Path, out: Path) -> Enlargement:
    """Survey `dataset`, or take the copy in the run folder `out` where there is one; nothing is written.

    ``settings.per_class`` images are added for each class on average, divided by `share_out`; for a class that
    ``settings.quotas`` names, as many as it says.
    Raises `SegsmithError` for a dataset that cannot be used.
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
