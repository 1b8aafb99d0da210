"""What the tool nodes hand over: the dataset to its files, the files to the trainer, the weights to the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segsmith.graph.deps import Deps

EXAMPLES = 12
"""Pictures of the test world whose predictions are kept for the report."""


def export_dataset(deps: Deps) -> None:
    """Write ``dataset/`` in PASCAL VOC's layout, and where every picture comes from."""
    from segsmith.exports.export import export_dataset as export
    from segsmith.exports.provenance import write_provenance

    summary = export(deps.run, deps.ledger, deps.config)
    write_provenance(deps.run, deps.ledger, deps.ledger.get_meta("versions") or {})
    deps.ledger.log("exported", path=str(deps.run.voc), splits=dict(summary.splits))


def train_segmenter(deps: Deps, on_epoch: Callable[[Mapping[str, Any]], None]) -> None:
    """Train on ``dataset/``; epochs go to the ledger and to `on_epoch`."""
    from segsmith.tools.training import trainer_tool

    heard = {(d["epoch"], d["loss"]) for _, _, d in deps.ledger.events("epoch")}

    def told(report: Mapping[str, Any]) -> None:
        epoch = {**report, "val_miou": report["miou"]}
        deps.ledger.log("epoch", **epoch)
        heard.add((report["epoch"], report["loss"]))
        on_epoch(epoch)

    config = deps.config.trainer
    # The judge's encoder is opened only where the segmenter starts from its image tower.
    tower = (lambda: deps.encoder.tower) if config.encoder_init == "clip" else None
    result = trainer_tool(clip_tower=tower, on_epoch=told).invoke(
        {
            "dataset": str(deps.run.voc),
            "out": str(deps.run.checkpoints),
            "settings": config.model_dump(),
            "seed": deps.config.seed,
        }
    )
    for report in result["epochs"]:  # one whose state was saved just before a crash was never told
        if (report["epoch"], report["loss"]) not in heard:
            told(report)


def evaluate_segmenter(deps: Deps) -> dict[str, Any]:
    """Score the segmenter on the dataset's own held-out images, and with the simulator on its test world.

    The held-out masks are the labeler's, so that score says how well the segmenter learnt them, unless they are
    those of real images; the test world's are exact.
    """
    from segsmith.tools.test_world import write_test_world
    from segsmith.tools.training import evaluate_segmenter as tool

    checkpoint = str(deps.run.checkpoints)
    scores: dict[str, dict[str, Any]] = {}
    if (deps.run.voc / "ImageSets" / "Segmentation" / "val.txt").read_text().strip():
        name = "synthetic_val" if deps.real is None else "real_val"
        scores[name] = tool.invoke({"checkpoint": checkpoint, "dataset": str(deps.run.voc), "split": "val"})
    settings = deps.config.evaluation
    if settings.images and deps.config.images.backend == "simulator":
        world = write_test_world(
            deps.run.evaluation / "real",
            deps.config.classes,
            settings.images,
            settings.seed,
            deps.config.images.size,
        )
        scores["real"] = tool.invoke({"checkpoint": checkpoint, "dataset": str(world), "split": "test"})
        scores["real"]["examples"] = _save_predictions(deps, world)
    classes = ["background", *deps.config.classes]
    return {
        world: {**score, "iou": score["iou_per_class"], "classes": classes} for world, score in scores.items()
    }


def _save_predictions(deps: Deps, world: Path) -> list[str]:
    """Label maps of the first test pictures, for the report to show beside the truth; returns their ids."""
    from segsmith.memory.store import png_bytes, read_image, write_atomic
    from segsmith.segmentation.checkpoint import load_segmenter
    from segsmith.segmentation.inference import predict
    from segsmith.segmentation.palette import voc_palette

    names = (world / "ImageSets" / "Segmentation" / "test.txt").read_text().split()[:EXAMPLES]
    model, _ = load_segmenter(deps.run.checkpoints)
    folder = world / "Predictions"
    folder.mkdir(exist_ok=True)
    images = [read_image(world / "JPEGImages" / f"{name}.png") for name in names]
    for name, label_map in zip(names, predict(model, images), strict=True):
        write_atomic(folder / f"{name}.png", png_bytes(label_map, voc_palette()))
    return names
