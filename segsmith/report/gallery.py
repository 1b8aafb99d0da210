"""A contact sheet of a run: accepted pictures and their masks side by side, for a README or a chat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.config import Config
from segsmith.datasets.palette import VOID, voc_palette
from segsmith.errors import SegsmithError
from segsmith.files import png_bytes, read_image, read_index_map, write_atomic
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_folder import RunFolder

GAP_PX = 4


def write_gallery(run: RunFolder, ledger: Ledger, config: Config, columns: int = 8) -> Path:
    """Write ``gallery.png``: per class two of the best pictures, each above its mask in VOC's colours.

    Uncertain pixels (255) are painted light. Raises `SegsmithError` when no picture has a mask yet.
    """
    verdicts, masks = ledger.verdicts(), ledger.masks()
    prompts = {p.id: p.class_name for p in ledger.prompts()}
    best: dict[str, list[str]] = {name: [] for name in config.classes}
    for row in sorted(ledger.accepted(), key=lambda r: -verdicts[r.id].scores["probability"]):
        if row.id in masks:
            best[prompts[row.prompt_id]].append(row.id)
    each = max(1, 2 * columns // max(1, len(best)))
    chosen = [image_id for ids in best.values() for image_id in ids[:each]]
    if not chosen:
        raise SegsmithError(
            f"{run.root} has no picture with a mask yet.", "Let `segsmith build` go on first."
        )
    palette = voc_palette()
    palette[VOID] = (236, 232, 214)
    pairs = [np.concatenate([read_image(run.image(i)), palette[read_index_map(run.mask(i))]]) for i in chosen]
    path = run.root / "gallery.png"
    write_atomic(path, png_bytes(_grid(pairs, columns)))
    return path


def _grid(tiles: list[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Tiles of one size on white, `columns` to a row."""
    height, width, _ = tiles[0].shape
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * (height + GAP_PX), columns * (width + GAP_PX), 3), 255, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        y, x = index // columns * (height + GAP_PX), index % columns * (width + GAP_PX)
        sheet[y : y + height, x : x + width] = tile
    return sheet
