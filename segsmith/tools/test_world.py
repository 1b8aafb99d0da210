"""The simulator's test world as a dataset on disk: exact masks, sprites of a style that no build draws."""

from __future__ import annotations

import csv
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.memory.store import png_bytes
from segsmith.segmentation.voc_layout import VocLayout
from segsmith.tools.simulator import real_world

Pair = tuple[str, NDArray[np.uint8], NDArray[np.uint8]]


def write_test_world(folder: Path, classes: Sequence[str], count: int, seed: int, size: int) -> Path:
    """`count` scenes in VOC layout as split ``test``; a folder that is there already is left as it is."""
    if not folder.exists():
        scenes = real_world(classes, count, seed, size)
        pairs = ((f"real-{i:05d}", scene.image, scene.class_mask(classes)) for i, scene in enumerate(scenes))
        write_voc(folder, classes, {"test": pairs})
    return folder


def write_voc(
    folder: Path,
    classes: Sequence[str],
    splits: Mapping[str, Iterable[Pair]],
    image_labels: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write (id, (H, W, 3) image, (H, W) label map) triples in PASCAL VOC's layout, all of it or nothing.

    Images are PNG, so that a test sees exactly the pixels that were made. `image_labels` (id -> class names),
    read when all pictures are written, goes to ``labels.csv``.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))

    def put(name: str, data: bytes) -> None:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).write_bytes(data)

    try:
        layout = VocLayout(put, tuple(splits))
        for split, pairs in splits.items():
            for name, image, label_map in pairs:
                layout.add(split, name, (".png", png_bytes(image)), label_map)
        layout.finish(classes)
        if image_labels:
            put("labels.csv", _labels_csv(image_labels))
        aside.chmod(0o755)
        os.rename(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _labels_csv(image_labels: Mapping[str, Sequence[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "classes"])
    writer.writerows([name, "|".join(labels)] for name, labels in image_labels.items())
    return text.getvalue().encode()
