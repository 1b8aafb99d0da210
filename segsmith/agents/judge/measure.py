"""What the judge measures of an image with CLIP: pure functions of images and texts, without the ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from segsmith.agents.prompt.space import with_article
from segsmith.protocols import ImageTextEncoder
from segsmith.segmentation.image_ops import grey, is_blank, sharpness
from segsmith.types import Image, Vectors

TEMPLATES = ("a photo of {}", "a picture of {}")
THUMBNAIL = 16


@dataclass(frozen=True)
class Measured:
    """What is measured of one image on its own; likeness to other images comes later (`JudgeAgent.add`)."""

    cosines: tuple[float, ...]
    """CLIP cosine with each class of the list, then with each background prompt."""
    text_shares: tuple[float, ...]
    """The prompt's own probability of each class."""
    sharpness: float
    blank: bool
    signature: Vectors
    """(D + THUMBNAIL**2,) float32: CLIP's vector, then a thumbnail, both unit vectors."""


def measure_images(
    encoder: ImageTextEncoder,
    texts: Vectors,
    n_classes: int,
    images: Sequence[Image],
    prompts: Sequence[str],
) -> list[Measured]:
    """Measure a chunk of images, each drawn from the prompt of the same index.

    `texts` are the (C + B, D) vectors of `directions`, classes first. The last bits of CLIP's vectors depend on the
    chunk, so the same chunks must be formed wherever the same evidence is wanted.
    """
    vectors = encoder.embed_images(images)
    cosines = vectors @ texts.T
    distinct = sorted(set(prompts))
    shares_of = dict(zip(distinct, text_shares(encoder, distinct, texts[:n_classes]), strict=True))
    return [
        Measured(
            tuple(map(float, of_image)),
            tuple(map(float, shares_of[prompt])),
            float(sharpness(image)),
            bool(is_blank(image)),
            np.concatenate([vector, _thumbnail(image)]).astype("<f4"),
        )
        for image, prompt, vector, of_image in zip(images, prompts, vectors, cosines, strict=True)
    ]


def background_prompts() -> list[str]:
    """Descriptions of images without an object, which compete with every class."""
    text = (resources.files("segsmith.prompts") / "backgrounds.txt").read_text("utf-8")
    return [line for line in text.splitlines() if line.strip()]


def directions(
    encoder: ImageTextEncoder, classes: Sequence[str], synonyms: Callable[[str], tuple[str, ...]]
) -> Vectors:
    """(C + B, D) unit vectors of the class names and of the descriptions of images without an object."""
    of_classes = [_mean_direction(encoder, synonyms(name)[:3]) for name in classes]
    return np.stack([*of_classes, *encoder.embed_texts(background_prompts())])


def text_shares(encoder: ImageTextEncoder, texts: Sequence[str], of_classes: Vectors) -> NDArray[np.float64]:
    """(N, C) the prompts' own probability of each class, from CLIP's text tower."""
    cosines = encoder.embed_texts(texts) @ of_classes.T
    weights = np.exp((cosines - cosines.max(axis=1, keepdims=True)) * encoder.logit_scale)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float64)


def _mean_direction(encoder: ImageTextEncoder, names: Sequence[str]) -> Vectors:
    texts = [template.format(with_article(name)) for name in names for template in TEMPLATES]
    mean = encoder.embed_texts(texts).mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean), dtype=np.float32)


def _thumbnail(image: Image) -> Vectors:
    """(THUMBNAIL**2,) unit vector of the grey image's block means, minus their mean."""
    values = grey(image)
    height, width = (side // THUMBNAIL * THUMBNAIL for side in values.shape)
    blocks = values[:height, :width].reshape(THUMBNAIL, height // THUMBNAIL, THUMBNAIL, width // THUMBNAIL)
    flat = blocks.mean(axis=(1, 3)).ravel()
    flat = flat - flat.mean()
    return np.asarray(flat / (np.linalg.norm(flat) + 1e-6), dtype=np.float32)
