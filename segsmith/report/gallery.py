"""``gallery.png``: the best images of a run above their masks, for a README or a chat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.config import Config
from segsmith.datasets.palette import VOID, voc_palette
from segsmith.errors import SegsmithError
from segsmith.files import png_bytes, write_atomic
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_folder import RunFolder
from segsmith.report.drawn import each_image
from segsmith.report.reader import Reader
from segsmith.report.selection import Best
from segsmith.report.thumbnails import small_mask, small_photo

GAP_PX = 4
ROWS = 2
VOID_COLOUR = (236, 232, 214)

Tile = NDArray[np.uint8]


def write_gallery(run: RunFolder, ledger: Ledger, config: Config, columns: int = 8) -> Path:
    """Write ``gallery.png`` and return its path: about two rows of images, the same number of every class.

    They are the accepted images of which the judge is most certain, each above its mask in VOC's colours; uncertain
    pixels (255) are light. Raises `SegsmithError` where no accepted image has a readable mask.
    """
    reader = Reader()
    shown = reader.complete(lambda: _best_tiles(run, ledger, reader, config, columns))
    if not shown:
        raise SegsmithError(
            f"{run.root} has no accepted image with a mask yet.",
            "Let `segsmith build` finish it first.",
        )
    path = run.root / "gallery.png"
    run.clean_up()
    write_atomic(path, png_bytes(_grid(shown, columns)))
    return path


def _best_tiles(run: RunFolder, ledger: Ledger, reader: Reader, config: Config, columns: int) -> list[Tile]:
    best = Best[Tile](max(1, ROWS * columns // max(1, len(config.classes))))
    for image in each_image(run, ledger, reader):
        wanted = image.is_accepted and image.mask is not None and image.target in config.classes
        # Few of many images are among the best so far, so few are decoded.
        if wanted and best.admits(image.target, image.certainty):
            tile = _tile(run.image(image.id), run.mask(image.id), config.images.size)
            if tile is not None:
                best.add(image.target, image.certainty, tile)
    return [tile for name in config.classes for tile in best.of(name)]


def _tile(photo_path: Path, mask_path: Path, side: int) -> Tile | None:
    """(2 * side, side, 3) uint8: a square image above its mask; None for unreadable or other sizes."""
    photo, mask = small_photo(photo_path, side), small_mask(mask_path, side)
    if photo is None or mask is None or photo.size != (side, side) or mask.shape != (side, side):
        return None
    palette = voc_palette().copy()
    palette[VOID] = VOID_COLOUR
    return np.concatenate([np.asarray(photo), palette[mask]])


def _grid(tiles: list[Tile], columns: int) -> Tile:
    """Tiles of one size on white, `columns` to a row."""
    height, width, _ = tiles[0].shape
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * (height + GAP_PX), columns * (width + GAP_PX), 3), 255, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        y, x = index // columns * (height + GAP_PX), index % columns * (width + GAP_PX)
        sheet[y : y + height, x : x + width] = tile
    return sheet
