"""Opens the models that a config names; each is loaded when it is first used, or by these functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from segsmith.config import Config, api_key
from segsmith.protocols import ImageBackend, PatchClassifier, PointSegmenter

if TYPE_CHECKING:
    from segsmith.tools.vision.clip import OpenClipEncoder


def open_image_backend(config: Config) -> ImageBackend:
    """The image model that a config names; it is loaded by its first `draw`."""
    images = config.images
    if images.backend == "diffusion":
        from segsmith.tools.images.diffusion import DiffusionBackend
        from segsmith.tools.images.mixture import ImageMixture

        if images.models:
            return ImageMixture(images, lambda part: DiffusionBackend(part, offline=config.offline))
        return DiffusionBackend(images, offline=config.offline)
    if images.backend == "hosted":
        from segsmith.tools.images.hosted import HostedImages

        return HostedImages(images, api_key=api_key())
    from segsmith.tools.images.simulator import Simulator

    return Simulator(images.faults, config.classes, images.size)


def open_encoder(config: Config, *, parked: bool = False) -> OpenClipEncoder:
    """The CLIP of the judge, loaded; `parked` in main memory until it is used."""
    from segsmith.tools.vision.clip import OpenClipEncoder

    return OpenClipEncoder.load(
        config.judge.clip, config.compute.device, config.compute.precision, parked=parked
    )


def open_classifier(config: Config, encoder: Callable[[], Any]) -> PatchClassifier:
    """The ViT that relabels images; `encoder` opens the CLIP that it may start from, an `OpenClipEncoder`."""
    from segsmith.tools.vision import vit

    return vit.open_classifier(config, config.classes, config.seed, encoder)


def open_segmenter(config: Config) -> PointSegmenter:
    """SAM, loaded."""
    from segsmith.tools.vision import sam_views

    return sam_views.open_segmenter(config.labeler, config.compute)


def synonyms_for(config: Config) -> Callable[[str], tuple[str, ...]]:
    """Other words for a class: the simulator's, which draws only its own nouns; else only the name.

    Any noun may be a class of another image model, where a synonym of the simulator could mean another thing.
    """
    if config.images.backend == "simulator":
        from segsmith.tools.images.simulator import synonyms

        return synonyms
    return lambda class_name: (class_name,)
