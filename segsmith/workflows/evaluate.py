"""Score a trained segmenter on a labelled dataset."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from segsmith.events import Notice
from segsmith.types import Evaluation
from segsmith.workflows.progress import Callback, Screen, open_display

if TYPE_CHECKING:
    from segsmith.datasets.imports import ImportedSplit
    from segsmith.segmentation.checkpoint import SegmenterMeta
    from segsmith.segmentation.metrics import SegmentationScore


def evaluate(
    checkpoint: str | Path,
    dataset: str | Path,
    *,
    split: str = "val",
    on_event: Callback | None = None,
    progress: bool = True,
    screen: Screen | None = None,
) -> Evaluation:
    """Intersection over union of a segmenter on one split of a dataset, class by class.

    Classes are matched by name, whatever their order; a class that the segmenter does not know counts as background.
    For a segmenter without background (its training split held no 0), pixels of background are not counted.

    Args:
        checkpoint: a ``segmenter.safetensors`` or the folder that holds it.
        dataset: folder of a dataset with masks: VOC, COCO, Ultralytics, CVAT or Hugging Face.
        split: name of the split.
        on_event: called with a `Notice` for each file that was skipped, in place of printing it.
        progress: print these notices.

    Raises `SegsmithError` for a checkpoint or a dataset that cannot be used.
    """
    from segsmith.datasets.imports import ImportedSplit
    from segsmith.files import conversion_notes
    from segsmith.segmentation.inference import evaluate_on

    with open_display(on_event, progress, screen) as display:

        def open_split(segmenter: SegmenterMeta) -> ImportedSplit:
            data = ImportedSplit(Path(dataset), split, segmenter.classes)
            for problem in data.source.skipped:
                display.show(Notice(f"skipped {problem}", warning=True))
            for note in conversion_notes(data.source.conversions):
                display.show(Notice(note))
            if data.ignored_classes:
                how = "counted as background" if segmenter.background else "not counted, like background"
                display.show(Notice(f"{how}: {', '.join(data.ignored_classes)}"))
            return data

        return evaluation_of(evaluate_on(Path(checkpoint), open_split))


def evaluation_of(score: SegmentationScore) -> Evaluation:
    """A score as the public type, without arrays and NaN."""
    return Evaluation(
        miou=score.miou,
        iou={name: None if math.isnan(iou) else iou for name, iou in score.iou_per_class.items()},
        pixel_accuracy=score.pixel_accuracy,
        classes=tuple(score.iou_per_class),
        confusion=tuple(tuple(int(n) for n in row) for row in score.confusion.tolist()),
    )
