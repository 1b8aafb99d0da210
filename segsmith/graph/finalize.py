"""The last stages of a run: write the dataset, train the segmenter on it, and score the segmenter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segsmith.events import EpochFinished
from segsmith.files import sha256_of
from segsmith.types import Evaluation

if TYPE_CHECKING:
    from segsmith.graph.context import RunContext

EXAMPLES = 12
"""Images of the test set whose predictions are kept for the report."""


class Finalizer:
    """Exports the dataset of a run, and trains and evaluates its segmenter."""

    def __init__(self, context: RunContext) -> None:
        self._context = context

    def export(self) -> None:
        """Write ``dataset/voc`` in PASCAL VOC's layout, and the provenance of every image."""
        from segsmith.datasets.export import export_dataset
        from segsmith.datasets.provenance import write_provenance

        summary = export_dataset(self._context.run, self._context.ledger, self._context.config)
        write_provenance(self._context.run, self._context.ledger, self._context.ledger.versions)
        self._context.ledger.log("exported", path=str(self._context.run.voc), splits=dict(summary.splits))

    def train(self, on_epoch: Callable[[EpochFinished], None]) -> None:
        """Train on ``dataset/voc``; every epoch is logged in the ledger and passed to `on_epoch`."""
        from segsmith.tools.training import trainer_tool

        ledger = self._context.ledger
        logged = {(d["epoch"], d["loss"]) for _, _, d in ledger.events("epoch")}

        def log_epoch(report: Mapping[str, Any]) -> None:
            ledger.log("epoch", **report, val_miou=report["miou"])
            logged.add((report["epoch"], report["loss"]))
            on_epoch(EpochFinished(**report))

        config = self._context.config.trainer
        # The judge's encoder is opened only where the segmenter starts from its image tower.
        tower = (lambda: self._context.encoder.tower) if config.encoder_init == "clip" else None
        result = trainer_tool(clip_tower=tower, on_epoch=log_epoch).invoke(
            {
                "dataset": str(self._context.run.voc),
                "out": str(self._context.run.checkpoints),
                "settings": config.model_dump(),
                "seed": self._context.config.seed,
            }
        )
        for report in result["epochs"]:  # an epoch that was saved just before a crash has not been logged yet
            if (report["epoch"], report["loss"]) not in logged:
                log_epoch(report)
        ledger.log("trained", sha256=sha256_of(Path(result["checkpoint"])))

    def evaluate(self) -> dict[str, Evaluation]:
        """Score the segmenter on held-out images of the dataset and, with the simulator, on its test set.

        The masks of held-out generated images are the labeler's, so that score says how well the segmenter has
        learned them. Held-out real images have their own masks, and those of the test set are exact.
        """
        from segsmith.tools.images.simulator import write_test_set
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
            test_set = write_test_set(
                self._context.run.evaluation / "real",
                self._context.config.classes,
                settings.images,
                settings.seed,
                self._context.config.images.size,
            )
            score = evaluate_segmenter.invoke(
                {"checkpoint": checkpoint, "dataset": str(test_set), "split": "test"}
            )
            scores["test_set"] = self._evaluation(score, self._save_predictions(test_set))
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

    def _save_predictions(self, test_set: Path) -> list[str]:
        """Write the predicted label maps of the first test images, which the report shows; returns their ids."""
        from segsmith.datasets.palette import voc_palette
        from segsmith.files import png_bytes, read_image, write_atomic
        from segsmith.segmentation.checkpoint import load_segmenter
        from segsmith.segmentation.inference import predict

        names = (test_set / "ImageSets" / "Segmentation" / "test.txt").read_text().split()[:EXAMPLES]
        model, _ = load_segmenter(self._context.run.checkpoints)
        folder = test_set / "Predictions"
        folder.mkdir(exist_ok=True)
        images = [read_image(test_set / "JPEGImages" / f"{name}.png") for name in names]
        for name, label_map in zip(names, predict(model, images), strict=True):
            write_atomic(folder / f"{name}.png", png_bytes(label_map, voc_palette()))
        return names
