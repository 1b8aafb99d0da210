"""The last stages of a run: write the dataset, train the segmenter on it, and score the segmenter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segsmith.events import EpochFinished, Event, Notice
from segsmith.files import sha256_of, write_atomic
from segsmith.types import Evaluation

if TYPE_CHECKING:
    from segsmith.config import TrainerConfig
    from segsmith.graph.context import RunContext

REAL_ONLY = "real-only"
"""Folder below ``checkpoints`` of the segmenter that is trained on real images alone, for comparison."""
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

        context = self._context
        # The working folder of a run in an object store is one that workers do not see.
        alone = context.is_alone or context.run.remote is not None
        elsewhere = None if alone else context.write_records
        summary = export_dataset(context.run, context.ledger, context.config, elsewhere=elsewhere)
        write_provenance(self._context.run, self._context.ledger, self._context.ledger.versions)
        self._context.ledger.log("exported", path=str(self._context.run.voc), splits=dict(summary.splits))

    def _make_dataset(self) -> None:
        """Write the dataset where it is not yet: another machine may have resumed a run in an object store."""
        if self._context.run.remote is not None and not self._context.run.voc.exists():
            self.export()

    def train(self, emit: Callable[[Event], None]) -> None:
        """Train on ``dataset/voc``; every epoch is logged in the ledger and passed to `emit`.

        Beside real images, generated ones may do harm. If ``augment.choose_share`` is on, a second segmenter is
        trained on the real images alone, and kept unless the first one is better on the real split val beyond chance.
        """
        ledger, run = self._context.ledger, self._context.run
        self._make_dataset()
        logged = {(d["epoch"], d["loss"]) for _, _, d in ledger.events("epoch")}

        def log_epoch(report: Mapping[str, Any]) -> None:
            ledger.log("epoch", **report, val_miou=report["miou"])
            logged.add((report["epoch"], report["loss"]))
            emit(EpochFinished(**report))

        config = self._context.config.trainer
        result = self._train(config, run.checkpoints, log_epoch)
        for report in result["epochs"]:  # an epoch that was saved just before a crash has not been logged yet
            if (report["epoch"], report["loss"]) not in logged:
                log_epoch(report)
        if self._generated_images_may_harm():
            emit(Notice("training on the real images alone, for comparison"))
            alone = run.checkpoints / REAL_ONLY
            self._train(config.model_copy(update={"real_share": 1.0}), alone, lambda _: None)
            self._keep_the_better(alone, emit)
        ledger.log("trained", sha256=sha256_of(run.segmenter))

    def _generated_images_may_harm(self) -> bool:
        """Whether generated images take part in the training, and real images with their own masks can tell."""
        from segsmith.datasets.voc_folder import VocFolder
        from segsmith.segmentation.recipe import real_share

        if self._context.real is None or not self._context.config.augment.choose_share:
            return False
        if self._held_out() != "real_val" or not any(i.split == "val" for i in self._context.real.images):
            return False
        real = VocFolder(self._context.run.voc, "train", keep=False).real
        return not all(real) and real_share(self._context.config.trainer, real) < 1

    def _keep_the_better(self, alone: Path, emit: Callable[[Event], None]) -> None:
        """Replace the segmenter by the one in the folder `alone`, unless it is better on split val beyond chance."""
        from segsmith.segmentation.checkpoint import META, WEIGHTS
        from segsmith.segmentation.comparison import compare

        run = self._context.run
        found = compare(run.checkpoints, alone, run.voc, "val")
        if math.isnan(found.gain):  # no pixel of split val is labelled
            return
        if not found.first_is_better:
            for name in (META, WEIGHTS):
                write_atomic(run.checkpoints / name, (alone / name).read_bytes())
        kept = "with" if found.first_is_better else "without"
        error = found.error if math.isfinite(found.error) else None  # JSON has no infinity
        said = "unknown with one image" if error is None else f"{error:.3f}"
        self._context.ledger.log(
            "share_chosen", mixed=found.first, real_only=found.second, error=error, kept=kept
        )
        emit(
            Notice(
                f"mIoU on the real split val: {found.first:.3f} with generated images, {found.second:.3f} without "
                f"(standard error of the difference: {said}); the segmenter {kept} them is kept"
            )
        )

    def _train(
        self, config: TrainerConfig, out: Path, on_epoch: Callable[[Mapping[str, Any]], None]
    ) -> dict[str, Any]:
        """The reply of the tool that trains."""
        from segsmith.tools.training import trainer_tool

        # The judge's encoder is opened only where the segmenter starts from its image tower.
        tower = (lambda: self._context.encoder.tower) if config.encoder_init == "clip" else None
        trainer = trainer_tool(clip_tower=tower, directions=self._directions, on_epoch=on_epoch)
        reply: dict[str, Any] = trainer.invoke(
            {
                "dataset": str(self._context.run.voc),
                "out": str(out),
                "settings": config.model_dump(),
                "seed": self._context.config.seed,
            }
        )
        return reply

    def _directions(self, names: Sequence[str]) -> Any:
        from segsmith.tools.vision.clip_to_timm import class_directions

        return class_directions(self._context.encoder, names)

    def evaluate(self) -> dict[str, Evaluation]:
        """Score the segmenter on held-out images of the dataset and, with the simulator, on its test set.

        The masks of held-out generated images are the labeler's, so that score says how well the segmenter has
        learned them. So it is with held-out real images that came without masks; others have their own, and those of
        the test set are exact.
        """
        from segsmith.tools.images.simulator import write_test_set
        from segsmith.tools.training import evaluate_segmenter

        self._make_dataset()
        checkpoint = str(self._context.run.checkpoints)
        scores: dict[str, Evaluation] = {}
        if (self._context.run.voc / "ImageSets" / "Segmentation" / "val.txt").read_text().strip():
            name = self._held_out()
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

    def _held_out(self) -> str:
        """The key of the score on split val: it says where the masks come from that it is measured against."""
        if self._context.real is None:
            return "synthetic_val"
        masked = all(image.masked for image in self._context.real.images if image.split == "val")
        return "real_val" if masked else "real_val_guessed"

    def _evaluation(self, score: Mapping[str, Any], examples: Sequence[str] = ()) -> Evaluation:
        return Evaluation(
            miou=math.nan if score["miou"] is None else score["miou"],
            iou=score["iou_per_class"],
            pixel_accuracy=math.nan if score["pixel_accuracy"] is None else score["pixel_accuracy"],
            classes=tuple(score["iou_per_class"]),
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
