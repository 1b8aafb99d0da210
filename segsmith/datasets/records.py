"""What a run has to export: its accepted, masked images, each with its split and where it comes from."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from segsmith.config import Config
from segsmith.datasets.palette import VOID
from segsmith.datasets.splits import SPLITS, split_by_group
from segsmith.errors import SegsmithError
from segsmith.files import png_bytes, read_index_map
from segsmith.memory.ledger import Ledger, PromptRow, prompt_families
from segsmith.memory.real_images import RealSet
from segsmith.memory.run_folder import RunFolder

REDO = "Put the file back from a copy, or build again into another folder with --out."
NO_SCORES: Mapping[str, float] = {}
NO_PROMPT = PromptRow("", "", "", (), {}, None, 0, "admitted", {})
"""Of a real image."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image of the dataset: what it shows and what made it."""

    id: str
    split: str
    labels: tuple[str, ...]
    prompt: PromptRow
    family: str
    seed: int
    backend: str
    scores: Mapping[str, float]
    sha256: str
    source: str = "generated"
    """Or "real", in a run that enlarges a dataset."""
    file: str = ""
    """Of a real image: where it lies in ``real/`` of the run; "" for a drawn one."""
    original: str = ""
    """Of a real image: its name in the dataset it came from."""
    mask_sha256: str = ""
    """Of the mask's file; "" where the run did not record it."""

    def provenance(self) -> dict[str, Any]:
        """What every format keeps beside the image, as JSON."""
        return {
            "id": self.id,
            "source": self.source,
            **({"original": self.original} if self.original else {}),
            "split": self.split,
            "classes": list(self.labels),
            "prompt": self.prompt.text,
            "prompt_id": self.prompt.id,
            "prompt_family": self.family,
            "seed": self.seed,
            "backend": self.backend,
            # JSON knows no nan.
            "scores": {k: v if math.isfinite(v) else None for k, v in self.scores.items()},
        }


@dataclass(frozen=True)
class Sample:
    """An image's PNG file and its (H, W) uint8 label map: 0 background, 1.. classes, 255 unknown."""

    png: bytes
    label_map: NDArray[np.uint8]
    jpeg: bytes = b""
    """The file of a real image that came as JPEG."""

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB."""
        with PILImage.open(io.BytesIO(self.png)) as picture:
            return np.asarray(picture.convert("RGB"))

    @property
    def index_png(self) -> bytes:
        """The label map as a grey PNG, whose values no reader mistakes for colours."""
        return png_bytes(self.label_map)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.label_map.shape
        return height, width


@dataclass(frozen=True)
class Collection:
    """All that an export writes. Pixels are read one image at a time."""

    run: RunFolder
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    card: str

    @property
    def counts(self) -> dict[str, int]:
        """Images of each split."""
        return {split: sum(r.split == split for r in self.records) for split in SPLITS}

    def readme(self, files: str) -> bytes:
        """The card, with a section on what lies where."""
        return f"{self.card}\n## Files\n\n{files}\n".encode()

    def read(self, record: Record) -> Sample:
        """The image as it was drawn and its mask.

        Raises `SegsmithError` that names the image when a file is gone, damaged, or fits not its partner.
        """
        try:
            png = self._image(record).read_bytes()
            mask = self._mask(record).read_bytes()
            label_map = read_index_map(mask)
            with PILImage.open(io.BytesIO(png)) as picture:
                width, height = picture.size
                is_jpeg = picture.format == "JPEG"
                if is_jpeg or not record.sha256:
                    picture.load()
                pixels = np.asarray(picture.convert("RGB")) if is_jpeg else None
        except FileNotFoundError as error:
            raise _gone(error.filename) from None
        except (OSError, UnidentifiedImageError) as error:
            raise SegsmithError(f"Image {record.id} or its mask cannot be read: {error}.", REDO) from None
        if record.sha256 and hashlib.sha256(png).hexdigest() != record.sha256:
            raise SegsmithError(f"Image {record.id} is not the file that the run drew.", REDO)
        self._check_mask(record, mask)
        if label_map.shape != (height, width):
            raise SegsmithError(
                f"Image {record.id} is {(height, width)} pixels, its mask {label_map.shape}.", REDO
            )
        unknown = label_map[(label_map > len(self.classes)) & (label_map != VOID)]
        if unknown.size:
            raise SegsmithError(
                f"The mask of {record.id} holds index {unknown[0]}, which no class has.", REDO
            )
        return Sample(png, label_map) if pixels is None else Sample(png_bytes(pixels), label_map, png)

    def _check_mask(self, record: Record, mask: bytes) -> str:
        """The mask's hash. Raises `SegsmithError` unless it is the one that the run recorded."""
        digest = _sha256(mask)
        if record.mask_sha256 not in ("", digest):
            raise SegsmithError(f"The mask of {record.id} is not the file that the run made.", REDO)
        return digest

    def _image(self, record: Record) -> Path:
        return self.run.real / record.file if record.file else self.run.image(record.id)

    def _mask(self, record: Record) -> Path:
        return self.run.real / "masks" / f"{record.id}.png" if record.file else self.run.mask(record.id)

    def digest(self, form: str) -> str:
        """SHA-256 of all that decides an export in the format `form`, "name-version"."""
        digest = hashlib.sha256(json.dumps([form, self.classes, self.card]).encode())
        for record in self.records:
            try:
                mask = self._mask(record).read_bytes()
                image = record.sha256 or _sha256(self._image(record).read_bytes())
            except FileNotFoundError as error:
                raise _gone(error.filename) from None
            digest.update(json.dumps([record.provenance(), image, self._check_mask(record, mask)]).encode())
        return digest.hexdigest()


def collect(run: RunFolder, ledger: Ledger, config: Config) -> tuple[Record, ...]:
    """Accepted, masked images in the order they were drawn; splits keep prompt families together.

    In a run that enlarges a dataset its real images come first, in their own splits, and all drawn ones are in
    train, so that val and test measure the real world.

    Image labels are the relabeller's, else CLIP's, else the prompt's. Raises `SegsmithError` when there is
    no image to export.
    """
    prompts = {p.id: p for p in ledger.prompts()}
    families = prompt_families(prompts.values())
    masks, verdicts = ledger.masks(), ledger.verdicts()
    masked = masks.keys() - ledger.rejected("mask")
    by_source = [ledger.labels(source) for source in ("relabel", "clip", "prompt")]
    images = [image for image in ledger.accepted() if image.id in masked]
    if not images:
        raise SegsmithError(
            "There is no image yet that is both accepted and masked, so there is nothing to export.",
            "Run the same `segsmith build` command again; it goes on where it stopped.",
        )
    labels = {}
    for image in images:
        row = next((rows[image.id] for rows in by_source if image.id in rows), None)
        labels[image.id] = prompts[image.prompt_id].classes if row is None else row.classes
    groups = {image.id: families[image.prompt_id] for image in images}
    real = RealSet.open(run.real)
    split_of = dict.fromkeys(groups, "train")  # beside real images: these alone are to test on
    if real is None:
        for split, ids in split_by_group(groups, labels, config.splits, config.seed).items():
            split_of |= dict.fromkeys(ids, split)
    generated = tuple(
        Record(
            i.id,
            split_of[i.id],
            labels[i.id],
            prompts[i.prompt_id],
            groups[i.id],
            i.seed,
            i.backend,
            verdicts[i.id].scores if i.id in verdicts else NO_SCORES,
            i.sha256,
            mask_sha256=masks[i.id].sha256,
        )
        for i in images
    )
    return (*_real_records(real), *generated)


def _real_records(real: RealSet | None) -> tuple[Record, ...]:
    """The images that a run enlarges, with their own labels and label maps."""
    if real is None:
        return ()
    return tuple(
        Record(
            i.id, i.split, i.labels, NO_PROMPT, i.id, 0, "", NO_SCORES, i.sha256, "real", i.file, i.original
        )
        for i in real.images
        if real.mask(i).exists()
    )


def metadata_lines(data: Collection) -> bytes:
    """The provenance of every image, one JSON object a line."""
    return "".join(json.dumps(r.provenance(), ensure_ascii=False) + "\n" for r in data.records).encode()


def read_metadata(path: Path) -> dict[str, tuple[str, ...]]:
    """Image id -> classes, from what `metadata_lines` wrote; empty where it is not that."""
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return {row["id"]: tuple(row["classes"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _gone(path: object) -> SegsmithError:
    return SegsmithError(f"{path} is in the run's ledger but not in its folder.", REDO)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
