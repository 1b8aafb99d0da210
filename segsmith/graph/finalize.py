"""What the tool nodes hand over: the dataset to its files, the files to the trainer, the weights to the test."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segsmith.types import Evaluation

if TYPE_CHECKING:
    from segsmith.graph.context import RunContext

EXAMPLES = 12
"""Pictures of the test world whose predictions are kept for the report."""


class Finalizer:
    """Exports a run's dataset, trains the segmenter on it and evaluates that."""

    def __init__(self, context: RunContext) -> None:
        self._context = context

    def export(self) -> None:
        """Write ``dataset/`` in PASCAL VOC's layout, and where every picture comes from."""
        from segsmith.datasets.export import export_dataset
        from segsmith.datasets.provenance import write_provenance

        summary = export_dataset(self._context.run, self._context.ledger, self._context.config)
        write_provenance(self._context.run, self._context.ledger, self._context.ledger.versions)
        self._context.ledger.log("exported", path=str(self._context.run.voc), splits=dict(summary.splits))

    def train(self, on_epoch: Callable[[Mapping[str, Any]], None]) -> None:
        """Train on ``dataset/``; epochs go to the ledger and to `on_epoch`."""
        from segsmith.tools.training import trainer_tool

        heard = {(d["epoch"], d["loss"]) for _, _, d in self._context.ledger.events("epoch")}

        def told(report: Mapping[str, Any]) -> None:
            epoch = {**report, "val_miou": report["miou"]}
            self._context.ledger.log("epoch", **epoch)
            heard.add((report["epoch"], report["loss"]))
            on_epoch(epoch)

        config = self._context.config.trainer
        # The judge's encoder is opened only where the segmenter starts from its image tower.
        tower = (lambda: self._context.encoder.tower) if config.encoder_init == "clip" else None
        result = trainer_tool(clip_tower=tower, on_epoch=told).invoke(
            {
                "dataset": str(self._context.run.voc),
                "out": str(self._context.run.checkpoints),
                "settings": config.model_dump(),
                "seed": self._context.config.seed,
            }
        )
        for report in result["epochs"]:  # one whose state was saved just before a crash was never told
            if (report["epoch"], report["loss"]) not in heard:
                told(report)

    def evaluate(self) -> dict[str, Evaluation]:
        """Score the segmenter on the dataset's own held-out images, and with the simulator on its test world.

        The held-out masks are the labeler's, so that score says how well the segmenter learnt them, unless they are
        those of real images; the test world's are exact.
        """
        from segsmith.tools.images.test_set import write_test_world
        from segsmith.tools.training import evaluate_segmenter

        checkpoint = str(self._context.run.checkpoints)
        scores: dict[str, Evaluation] = {}
        if (self._context.run.voc / "ImageSets" / "Segmentation" / "val.txt").read_text().strip():
            name = "synthetic_val" if self._context.real is None else "real_val"
            scores[name] = self._evaluation(
                evaluate_segmenter.invoke(
                    {"checkpoint": checkpoint, "dataset": str(self._context.run.voc), "split": "val"}
                )
            )
        settings = self._context.config.evaluation
        if settings.images and self._context.config.images.backend == "simulator":
            world = write_test_world(
                self._context.run.evaluation / "real",
                self._context.config.classes,
                settings.images,
                settings.seed,
                self._context.config.images.size,
            )
            score = evaluate_segmenter.invoke(
                {"checkpoint": checkpoint, "dataset": str(world), "split": "test"}
            )
            scores["test_set"] = self._evaluation(score, self._save_predictions(world))
        return scores

    def _evaluation(self, score: Mapping[str, Any], examples: Sequence[str] = ()) -> Evaluation:
        return Evaluation(
            miou=math.nan if score["miou"] is None else score["miou"],
            iou=score["iou_per_class"],
            pixel_accuracy=math.nan if score["pixel_accuracy"] is None else score["pixel_accuracy"],
            classes=("background", *self._context.config.classes),
            examples=tuple(examples),
            confusion=tuple(map(tuple, score["confusion"])),
        )

    def _save_predictions(self, world: Path) -> list[str]:
        """Label maps of the first test pictures, for the report to show beside the truth; returns their ids."""
        from segsmith.datasets.palette import voc_palette
        from segsmith.files import png_bytes, read_image, write_atomic
        from segsmith.segmentation.checkpoint import load_segmenter
        from segsmith.segmentation.inference import predict

        names = (world / "ImageSets" / "Segmentation" / "test.txt").read_text().split()[:EXAMPLES]
        model, _ = load_segmenter(self._context.run.checkpoints)
        folder = world / "Predictions"
        folder.mkdir(exist_ok=True)
        images = [read_image(world / "JPEGImages" / f"{name}.png") for name in names]
        for name, label_map in zip(names, predict(model, images), strict=True):
            write_atomic(folder / f"{name}.png", png_bytes(label_map, voc_palette()))
        return names
