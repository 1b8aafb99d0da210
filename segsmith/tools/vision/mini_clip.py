"""The folders of the packaged checkpoints, and the mini CLIP's image tower, which importing this module registers."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from segsmith.errors import SegsmithError
from segsmith.segmentation.mini_tower import STEM, TOWER

__all__ = ["STEM", "TOWER", "packaged_checkpoint"]


def packaged_checkpoint(name: str) -> Path:
    """Folder of a checkpoint that ships with the package, e.g. ``mini_clip``.

    Raises `SegsmithError`, with the command that creates it, if it is missing.
    """
    folder = Path(str(resources.files("segsmith"))) / "checkpoints" / name
    if not any(folder.glob("*.safetensors")):
        raise SegsmithError(
            f"The packaged checkpoint {name!r} is missing ({folder}).",
            "Run `make checkpoints` to train it, or install segsmith again.",
        )
    return folder
