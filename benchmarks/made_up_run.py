"""A run folder full of made-up pictures, as quick to make as possible: for exports and their tests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from segsmith.config import Config, config_toml, load_config
from segsmith.datasets.palette import voc_palette
from segsmith.files import png_bytes
from segsmith.ids import make_id
from segsmith.memory.ledger import ImageRow, LabelRow, Ledger, MaskRow, ModelRow, PromptRow, VerdictRow
from segsmith.memory.run_folder import RunFolder

CLASSES = ("cat", "dog", "bus", "potted plant")


def make_run(root: Path, images: int, size: int = 128, seed: int = 0) -> tuple[RunFolder, Ledger, Config]:
    """A finished run of `images` accepted pictures, two a prompt; closing the ledger is the caller's."""
    rng = np.random.default_rng(seed)
    config = load_config(flags={"classes": CLASSES, "images": {"size": size}, "splits": (0.6, 0.2, 0.2)})
    run = RunFolder(root)
    run.create()
    run.config.write_bytes(config_toml(config).encode())
    ledger = Ledger(run.ledger)
    prompts, rows, verdicts, labels, masks = [], [], [], [], []
    for n in range(images):
        shown = [n // 2 % len(CLASSES) + 1, *([int(rng.integers(1, len(CLASSES) + 1))] if n % 3 == 0 else [])]
        if n % 2 == 0:
            name = CLASSES[shown[0] - 1]
            text = f'a {name} | number {n}, "quoted": #1'
            prompts.append(
                PromptRow(make_id("p", n), name, text, (name,), {}, None, 0, "admitted", {"problem": ""})
            )
        image, mask = paint(shown, size, rng)
        id_, data = make_id("i", seed, n), png_bytes(image)
        run.image(id_).write_bytes(data)
        run.mask(id_).write_bytes(png_bytes(mask, voc_palette()))
        rows.append(ImageRow(id_, prompts[-1].id, n, "made-up", 0, hashlib.sha256(data).hexdigest()))
        verdicts.append(VerdictRow(id_, True, "ok", {"probability": 0.5 + n / (2 * images)}))
        present = [int(i) for i in np.unique(mask) if 0 < i < 255]
        names = tuple(CLASSES[i - 1] for i in present)
        labels.append(LabelRow(id_, "relabel", names))
        pixels = {CLASSES[i - 1]: int((mask == i).sum()) for i in present}
        masks.append(MaskRow(id_, pixels, float((mask == 255).mean()), {}))
    ledger.add_prompts(prompts)
    ledger.add_images(rows)
    ledger.add_verdicts(verdicts)
    ledger.add_labels(labels)
    ledger.add_masks(masks)
    ledger.add_models([ModelRow("images", "made-up", "1", "Apache-2.0")])
    return run, ledger, config


def paint(shown: list[int], size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image of coloured ellipses before a coarse random backdrop, and its mask with rims of 255."""
    cells = rng.integers(60, 200, (8, 8, 3))
    image = np.kron(cells, np.ones((size // 8, size // 8, 1))) + rng.normal(0, 4, (size, size, 1))
    y, x = np.mgrid[:size, :size] / size
    mask = np.zeros((size, size), np.uint8)
    for k, index in enumerate(shown):
        centre, radius = rng.uniform(0.2, 0.4, 2) + 0.4 * k, rng.uniform(0.1, 0.2, 2)
        distance = ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2
        image[distance < 1] = voc_palette()[index] + rng.uniform(0, 60, 3)
        mask[distance < 1.15] = 255
        mask[distance < 1] = index
    return image.clip(0, 255).astype(np.uint8), mask
