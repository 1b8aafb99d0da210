"""The real images of an `augment` run: ``real/`` in its folder, with images, label maps and a list.

They are a copy, so that a run can be resumed or moved independently of the dataset they came from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.errors import SegsmithError
from segsmith.files import read_image, read_index_map
from segsmith.memory.run_folder import read_verified
from segsmith.types import Image

LIST = "real.json"


@dataclass(frozen=True)
class RealImage:
    """One real image. `file` is relative to ``real/``; `original` is its name in the dataset it came from."""

    id: str
    original: str
    split: str
    labels: tuple[str, ...]
    file: str
    sha256: str
    masked: bool
    """Whether it came with a label map; otherwise the labeler makes one from its image labels."""
    mask_sha256: str = ""
    """Of the copied label map; "" for none, and in runs of earlier versions."""


@dataclass(frozen=True)
class RealSet:
    """All real images of a run. `skipped` has one line for each file of the dataset that could not be used."""

    root: Path
    classes: tuple[str, ...]
    images: tuple[RealImage, ...]
    skipped: tuple[str, ...] = ()

    @classmethod
    def open(cls, root: Path) -> RealSet | None:
        """Open ``real/`` of a run; None if there is none. Raises `SegsmithError` for a damaged list."""
        path = root / LIST
        if not path.exists():
            return None
        try:
            data = json.loads(path.read_text("utf-8"))
            images = tuple(RealImage(**{**item, "labels": tuple(item["labels"])}) for item in data["images"])
            return cls(root, tuple(data["classes"]), images, tuple(data["skipped"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SegsmithError(
                f"{path} cannot be read: {error}.", "Start again with another --out."
            ) from None

    @property
    def text(self) -> str:
        """The content of `LIST`."""
        images = [asdict(item) for item in self.images]
        return json.dumps({"classes": self.classes, "images": images, "skipped": self.skipped}, indent=1)

    @property
    def label_sets(self) -> list[tuple[str, ...]]:
        """Label sets of the training images; images without a label are left out."""
        return [item.labels for item in self.images if item.split == "train" and item.labels]

    def image(self, item: RealImage) -> Path:
        """Its file, in its original format (JPEG or PNG)."""
        return self.root / item.file

    def mask(self, item: RealImage) -> Path:
        """Its label map, which may not exist yet."""
        return self.root / "masks" / f"{item.id}.png"

    def read(self, item: RealImage) -> Image:
        """(H, W, 3) uint8 RGB. Raises `SegsmithError` unless the file is the one that was imported."""
        return read_image(read_verified(self.image(item), item.sha256, f"real image {item.original}"))

    def read_mask(self, item: RealImage) -> NDArray[np.uint8]:
        """(H, W) uint8 label map. Raises `FileNotFoundError` until the labeler has made one.

        Raises `SegsmithError` where it is not the one that was imported.
        """
        if not item.mask_sha256:
            return read_index_map(self.mask(item))
        return read_index_map(
            read_verified(self.mask(item), item.mask_sha256, f"label map of {item.original}")
        )

    def teachers(self, at_most: int) -> list[RealImage]:
        """Labelled images of split train, at most `at_most`; those with the rarest classes are kept."""
        labelled = [item for item in self.images if item.split == "train" and item.labels]
        if len(labelled) <= at_most:
            return labelled
        counts = {name: sum(name in item.labels for item in labelled) for name in self.classes}
        rarest = sorted(labelled, key=lambda item: (min(counts[name] for name in item.labels), item.id))
        kept = {item.id for item in rarest[:at_most]}
        return [item for item in labelled if item.id in kept]

    def unmasked(self) -> list[RealImage]:
        """Images that came with image labels but without a label map."""
        return [item for item in self.images if not item.masked and item.labels]

    def targets(self, items: Sequence[RealImage]) -> NDArray[np.float32]:
        """(N, C) float32 of 0 and 1: the labels that they came with."""
        return np.array([[float(c in item.labels) for c in self.classes] for item in items], np.float32)
