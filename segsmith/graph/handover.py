"""What the tool nodes hand over: the dataset to its files, the files to the trainer, the weights to the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from segsmith.graph.deps import Deps


def export_dataset(deps: Deps) -> None:
    """Write ``dataset/`` in PASCAL VOC's layout."""
    from segsmith.exports.voc import export_voc

    summary = export_voc(deps.run, deps.ledger, deps.config)
    deps.ledger.log("exported", path=str(deps.run.voc), splits=dict(summary.splits))


def train_segmenter(deps: Deps, on_epoch: Callable[[Mapping[str, Any]], None]) -> None:
    """Train on ``dataset/``; epochs go to the ledger and to `on_epoch`."""
    from segsmith.tools.training import trainer_tool

    def told(report: Mapping[str, Any]) -> None:
        epoch = {**report, "val_miou": report["miou"]}
        deps.ledger.log("epoch", **epoch)
        on_epoch(epoch)

    config = deps.config.trainer
    # The judge's encoder is opened only where the segmenter starts from its image tower.
    tower = (lambda: deps.encoder.tower) if config.encoder_init == "clip" else None  # type: ignore[attr-defined]
    trainer_tool(clip_tower=tower, on_epoch=told).invoke(
        {
            "dataset": str(deps.run.voc),
            "out": str(deps.run.checkpoints),
            "settings": config.model_dump(),
            "seed": deps.config.seed,
        }
    )


def evaluate_segmenter(deps: Deps) -> dict[str, Any]:
    """Score the segmenter on the dataset's own held-out images and on the simulator's test world.

    The held-out masks are the labeler's, so that score says how well the segmenter learnt them; the test
    world's are exact.
    """
    from segsmith.tools.test_world import write_test_world
    from segsmith.tools.training import evaluate_segmenter as tool

    checkpoint = str(deps.run.checkpoints)
    scores: dict[str, dict[str, Any]] = {}
    if (deps.run.voc / "ImageSets" / "Segmentation" / "val.txt").read_text().strip():
        scores["synthetic_val"] = tool.invoke(
            {"checkpoint": checkpoint, "dataset": str(deps.run.voc), "split": "val"}
        )
    settings = deps.config.evaluation
    if settings.images:
        world = write_test_world(
            deps.run.evaluation / "real",
            deps.config.classes,
            settings.images,
            settings.seed,
            deps.config.images.size,
        )
        scores["real"] = tool.invoke({"checkpoint": checkpoint, "dataset": str(world), "split": "test"})
    classes = ["background", *deps.config.classes]
    return {world: {**score, "iou": score["iou_per_class"], "classes": classes} for world, score in scores.items()}
