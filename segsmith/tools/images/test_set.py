"""The simulator's test set on disk: exact masks, and a sprite style that no build draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segsmith.datasets.voc_layout import write_voc
from segsmith.tools.images.simulator import real_world


def write_test_world(folder: Path, classes: Sequence[str], count: int, seed: int, size: int) -> Path:
    """`count` scenes in VOC layout as split ``test``; an existing folder is left unchanged."""
    if not folder.exists():
        scenes = real_world(classes, count, seed, size)
        pairs = ((f"real-{i:05d}", scene.image, scene.class_mask(classes)) for i, scene in enumerate(scenes))
        write_voc(folder, classes, {"test": pairs})
    return folder
