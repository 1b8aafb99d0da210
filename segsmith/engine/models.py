"""Opens the models that a config names; each is loaded when it is first used, or by these functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from segsmith.config import Config, api_key
from segsmith.memory.ledger import WitnessKind
from segsmith.protocols import ImageBackend, PatchClassifier, PointSegmenter, Witness
from segsmith.types import ImageRequest

if TYPE_CHECKING:
    from segsmith.tools.images.simulator import Drawing
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


def computes_here(kind: WitnessKind, config: Config) -> bool:
    """Whether a witness computes in the process that asks it. A VLM does so on a server, except for its stand-in."""
    return kind != "vlm" or is_stand_in(kind, config)


def is_stand_in(kind: WitnessKind, config: Config) -> bool:
    """Whether a witness is the simulator's, which needs no model."""
    return bool(getattr(config.witnesses, kind) == "simulated")


def open_witness(
    kind: WitnessKind, config: Config, request_of: Callable[[str], ImageRequest] | None = None
) -> Witness:
    """A witness that computes here (`computes_here`); the image model is loaded by its first `testify`.

    `request_of` returns what an image was drawn from, by its id, for the simulator's stand-ins.
    """
    if is_stand_in(kind, config):
        from segsmith.tools.images.simulated_witnesses import STAND_INS

        assert request_of is not None
        return STAND_INS[kind](config.classes, _truth_of(config, request_of), config.seed)
    if kind == "detector":
        from segsmith.tools.vision.detector import open_detector

        return open_detector(config)
    from segsmith.tools.images.attention import open_attention

    return open_attention(config)


def witness_name(kind: WitnessKind, config: Config) -> str:
    """`Witness.name` of a witness that computes here, without loading it."""
    if is_stand_in(kind, config):
        from segsmith.tools.images.simulated_witnesses import STAND_INS

        return STAND_INS[kind].name
    if kind == "detector":
        from segsmith.tools.vision import detector

        return detector.witness_name(config.witnesses.detector, config.witnesses.detector_score)
    return open_witness(kind, config).name


def _truth_of(config: Config, request_of: Callable[[str], ImageRequest]) -> Callable[[str], Drawing]:
    """What the simulator drew, by image id; for its stand-ins of witnesses, which no agent can look behind."""
    from segsmith.tools.images.simulator import Simulator

    images = config.images
    simulator = Simulator(images.faults, config.classes, images.size)
    return lru_cache(maxsize=64)(lambda image_id: simulator.truth(request_of(image_id)))


def synonyms_for(config: Config) -> Callable[[str], tuple[str, ...]]:
    """Other words for a class: the simulator's, which draws only its own nouns; else only the name.

    Any noun may be a class of another image model, where a synonym of the simulator could mean another thing.
    """
    if config.images.backend == "simulator":
        from segsmith.tools.images.simulator import synonyms

        return synonyms
    return lambda class_name: (class_name,)
