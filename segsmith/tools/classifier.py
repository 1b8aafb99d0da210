"""Which patch classifier the config names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from segsmith.config import Config
from segsmith.tools.clip import OpenClipEncoder
from segsmith.tools.vit import TimmPatchClassifier


def open_classifier(
    config: Config, classes: Sequence[str], seed: int, encoder: Callable[[], OpenClipEncoder]
) -> TimmPatchClassifier:
    """The labeler's ViT: a timm model by name, or the image tower of the judge's `encoder`, opened if needed."""
    labeler, compute = config.labeler, config.compute
    if labeler.vit == "judge":
        return TimmPatchClassifier.from_encoder(encoder(), len(classes), labeler, seed, class_names=classes)
    return TimmPatchClassifier.from_timm(
        labeler.vit,
        len(classes),
        labeler,
        seed,
        pretrained=":" not in labeler.vit,
        device=compute.device,
        precision=compute.precision,
    )
