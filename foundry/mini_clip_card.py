"""Measure the exported mini CLIP on scenes that were not in its training, and write its model card.

python -m foundry.mini_clip_card --out segsmith/checkpoints/mini_clip
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from string import Template

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageFilter

from foundry.mini_clip import RECORD
from foundry.mini_clip_data import LIGHT_NAMES, NOUN_NAMES, PLACE_NAMES, WEATHER_NAMES
from segsmith.files import write_atomic
from segsmith.tools.vision.clip import OpenClipEncoder
from segsmith.world.language import INDOOR, ObjectSpec, SceneSpec, caption, spoken
from segsmith.world.nouns import NOUNS, VOC_CLASSES
from segsmith.world.scene import compose, random_spec
from segsmith.world.sprites import STYLES, Style

FIRST_SEED = 2**31
"""Training uses scene seeds below this, so no measured scene was trained on."""
BACKGROUND_PROMPTS = ("an empty scene", "a photo of nothing", "background", "a photo of an empty place")
Images = list[NDArray[np.uint8]]


def measure(encoder: OpenClipEncoder, per_class: int = 20) -> dict[str, float]:
    """All numbers of the card by name; shares are in [0, 1], and names end in the sprite style if they have one."""
    out: dict[str, float] = {}
    voc = class_texts(encoder, VOC_CLASSES)
    everything = class_texts(encoder, NOUN_NAMES)
    place = encoder.embed_texts([f"a photo of a {name}" for name in PLACE_NAMES])
    light = encoder.embed_texts([f"a photo at {name}" for name in LIGHT_NAMES])
    weather = encoder.embed_texts([f"a photo in {name} weather" for name in WEATHER_NAMES])
    nothing = encoder.embed_texts(BACKGROUND_PROMPTS)
    for style in STYLES:
        rng = np.random.default_rng(1)
        names = [name for name in VOC_CLASSES for _ in range(per_class)]
        specs = [random_spec([name], rng, max_objects=1) for name in names]
        images = draw(specs, style)
        seen = encoder.embed_images(images)
        answer = np.array([VOC_CLASSES.index(name) for name in names])
        out[f"voc_{style}"] = _share((seen @ voc.T).argmax(1) == answer)
        not_night = np.array([spec.light != "night" for spec in specs])
        out[f"voc_not_night_{style}"] = _share(((seen @ voc.T).argmax(1) == answer)[not_night])
        blurred = [_blur(image) for image in images]
        out[f"voc_blurred_{style}"] = _share((encoder.embed_images(blurred) @ voc.T).argmax(1) == answer)
        out[f"place_{style}"] = _right(seen, place, [PLACE_NAMES.index(s.place) for s in specs])
        out[f"light_{style}"] = _right(seen, light, [LIGHT_NAMES.index(s.light) for s in specs])
        outside = np.array([s.place not in INDOOR for s in specs])
        skies = [WEATHER_NAMES.index(s.weather) for s in specs if s.place not in INDOOR]
        out[f"weather_{style}"] = _right(seen[outside], weather, skies)
        background = (seen @ nothing.T).max(1) > (seen @ voc.T).max(1)
        out[f"object_called_empty_{style}"] = _share(background)

        specs = [random_spec([name], rng, max_objects=1) for name in NOUN_NAMES]
        seen = encoder.embed_images(draw(specs, style, 100_000))
        out[f"all_{style}"] = _right(seen, everything, range(len(NOUN_NAMES)))
        close = np.argsort(-seen @ everything.T, axis=1)[:, :5]
        out[f"all_top5_{style}"] = _share((close == np.arange(len(NOUN_NAMES))[:, None]).any(1))

        specs, both = pairs(rng, 10 * per_class)
        ranked = np.argsort(-encoder.embed_images(draw(specs, style, 200_000)) @ voc.T, axis=1)[:, :2]
        found = np.array([len(set(top) & set(pair)) for top, pair in zip(ranked, both, strict=True)])
        out[f"two_recall_{style}"], out[f"two_both_{style}"] = float(found.mean() / 2), _share(found == 2)

        specs = [SceneSpec((), _any(PLACE_NAMES, rng), _any(LIGHT_NAMES, rng), "clear") for _ in range(100)]
        seen = encoder.embed_images(draw(specs, style, 300_000))
        out[f"empty_{style}"] = _share((seen @ nothing.T).max(1) > (seen @ voc.T).max(1))
    return out | measure_texts(encoder, voc) | measure_speed(encoder)


def measure_texts(encoder: OpenClipEncoder, voc: NDArray[np.float32]) -> dict[str, float]:
    """Share of captions nearest to their class; mean cosines of prompts that differ in wording, place or light."""
    rng = np.random.default_rng(2)
    specs = [random_spec([name], rng, max_objects=1) for name in VOC_CLASSES for _ in range(5)]
    said = encoder.embed_texts([caption(spec, rng) for spec in specs])
    out = {"caption_class": _right(said, voc, np.repeat(np.arange(20), 5))}

    def cosine(first: str, second: str) -> float:
        texts = [[t.format(spoken(NOUNS[n])) for n in VOC_CLASSES] for t in (first, second)]
        a, b = (encoder.embed_texts(t) for t in texts)
        return float((a * b).sum(1).mean())

    out["cosine_words"] = cosine("a photo of a {} in a park", "a picture of a {} in the park")
    out["cosine_place"] = cosine("a photo of a {} in a park", "a photo of a {} in a kitchen")
    out["cosine_light"] = cosine("a photo of a {} in a park at night", "a photo of a {} in a park at noon")
    return out


def measure_speed(encoder: OpenClipEncoder) -> dict[str, float]:
    """Images embedded per second of processor time."""
    images = [np.zeros((128, 128, 3), np.uint8)] * 128
    encoder.embed_images(images[:8])
    started = time.process_time()
    encoder.embed_images(images)
    return {"images_per_cpu_second": len(images) / (time.process_time() - started)}


def class_texts(encoder: OpenClipEncoder, names: Sequence[str]) -> NDArray[np.float32]:
    """(C, D) embeddings of "a photo of a <noun>"."""
    return encoder.embed_texts([f"a photo of a {spoken(NOUNS[name])}" for name in names])


def draw(specs: Sequence[SceneSpec], style: Style, offset: int = 0) -> Images:
    """Draw the specs with seeds that training does not use."""
    return [compose(spec, FIRST_SEED + offset + i, style=style).image for i, spec in enumerate(specs)]


def pairs(rng: np.random.Generator, count: int) -> tuple[list[SceneSpec], list[tuple[int, int]]]:
    """Scenes with two different VOC classes, and the indices of these."""
    specs, both = [], []
    for _ in range(count):
        first, second = (int(i) for i in rng.choice(20, 2, replace=False))
        base = random_spec([VOC_CLASSES[first]], rng, max_objects=1)
        objects = (ObjectSpec(VOC_CLASSES[first]), ObjectSpec(VOC_CLASSES[second]))
        specs.append(SceneSpec(objects, base.place, base.light, base.weather))
        both.append((first, second))
    return specs, both


def write_card(numbers: dict[str, float], out: Path, run: str) -> None:
    """Fill ``MINI_CLIP_CARD.template.md`` and write it to ``CARD.md`` beside the weights."""
    template = Template((Path(__file__).parent / "MINI_CLIP_CARD.template.md").read_text())
    weights = out / "open_clip_model.safetensors"
    values = {key: f"{value:.2f}" for key, value in numbers.items()}
    values["images_per_cpu_second"] = f"{numbers['images_per_cpu_second']:.0f}"
    values |= {
        "run": " ".join(run.split()),
        "megabytes": f"{weights.stat().st_size / 1e6:.1f}",
        "nouns": str(len(NOUN_NAMES)),
    }
    write_atomic(out / "CARD.md", template.substitute(values).encode())


def _blur(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(PILImage.fromarray(image).filter(ImageFilter.GaussianBlur(2)))


def _right(
    seen: NDArray[np.float32], texts: NDArray[np.float32], answer: Sequence[int] | NDArray[np.int64]
) -> float:
    return _share((seen @ texts.T).argmax(1) == np.asarray(answer))


def _share(hits: NDArray[np.bool_]) -> float:
    return float(np.mean(hits)) if len(hits) else float("nan")


def _any(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def main() -> None:
    """Measure and write the card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("segsmith/checkpoints/mini_clip"))
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log = logging.getLogger("foundry.mini_clip_card")
    log.setLevel(logging.INFO)
    numbers = measure(OpenClipEncoder.load(str(args.out), device="cpu"), args.per_class)
    for name, value in numbers.items():
        log.info("%s %.3f", name, value)
    run = args.out / RECORD
    write_card(numbers, args.out, run.read_text().strip() if run.is_file() else "not recorded")


if __name__ == "__main__":
    main()
