"""PASCAL VOC layout: JPEGs, palette PNGs and image sets, put in place whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from segsmith.config import Config
from segsmith.errors import SegsmithError
from segsmith.exports.splits import split_by_group
from segsmith.memory.ledger import Ledger, PromptRow, prompt_families
from segsmith.memory.store import RunFolder, png_bytes, read_image, read_index_map
from segsmith.segmentation.palette import VOID, voc_palette

JPEG_QUALITY = 95
MANIFEST = "manifest.json"
FORMAT = "segsmith-voc-1"
REDO = "Put the file back from a copy, or build again into another folder with --out."


@dataclass(frozen=True)
class ExportSummary:
    """What an export holds. `written` is False when an identical one was already there."""

    folder: Path
    images: int
    splits: Mapping[str, int]
    written: bool


@dataclass(frozen=True)
class _Item:
    id: str
    labels: tuple[str, ...]
    prompt: PromptRow
    split: str
    seed: int
    backend: str


def export_voc(run: RunFolder, ledger: Ledger, config: Config, out: Path | None = None) -> ExportSummary:
    """Write the accepted, masked images as a VOC dataset; `out` defaults to ``dataset/voc`` in the run.

    Masks keep their indices (0 background, 1.. in the order of `config.classes`, 255 unknown). All is
    written to a sibling folder and renamed, so a reader never finds half an export. An identical export
    is left alone; an older one steps aside and goes only when the new one stands. The caller holds the
    run folder (`RunFolder.held`).

    Raises `SegsmithError` when nothing can be exported, a picture does not fit its mask, or `out` holds
    files that no export put there.
    """
    out = run.voc if out is None else out
    items = _collect(ledger, config)
    if not items:
        raise SegsmithError(
            "There is no image yet that is both accepted and masked, so there is nothing to export.",
            "Run the same `segsmith build` command again; it goes on where it stopped.",
        )
    counts = {split: sum(i.split == split for i in items) for split in ("train", "val", "test")}
    aside, staging = out.with_name(f".{out.name}.old"), out.with_name(f".{out.name}.part")
    _recover(out, aside)
    digest = _digest(run, config, items)
    if _is_whole(out, digest):
        return ExportSummary(out, len(items), counts, written=False)
    _refuse_foreign(out)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    _write(staging, run, config, items, counts)
    _write_manifest(staging, digest)
    os.sync()  # one for all files is cheaper than one for each
    _swap(staging, out, aside)
    return ExportSummary(out, len(items), counts, written=True)


def _collect(ledger: Ledger, config: Config) -> list[_Item]:
    prompts = {p.id: p for p in ledger.prompts()}
    families = prompt_families(prompts.values())
    masked = ledger.masks()
    by_source = [ledger.labels(source) for source in ("relabel", "clip", "prompt")]
    images = [image for image in ledger.accepted() if image.id in masked]
    labels = {}
    for image in images:
        row = next((rows[image.id] for rows in by_source if image.id in rows), None)
        labels[image.id] = prompts[image.prompt_id].classes if row is None else row.classes
    groups = {image.id: families[image.prompt_id] for image in images}
    split_of = {
        image_id: split
        for split, ids in split_by_group(groups, labels, config.splits, config.seed).items()
        for image_id in ids
    }
    return [
        _Item(i.id, labels[i.id], prompts[i.prompt_id], split_of[i.id], i.seed, i.backend) for i in images
    ]


def _write(folder: Path, run: RunFolder, config: Config, items: list[_Item], counts: dict[str, int]) -> None:
    jpegs, masks, sets = (
        folder / "JPEGImages",
        folder / "SegmentationClass",
        folder / "ImageSets/Segmentation",
    )
    for part in (jpegs, masks, sets):
        part.mkdir(parents=True)
    palette = voc_palette()
    for item in items:
        image, mask = _read_pair(run, item.id, len(config.classes))
        # Without chroma subsampling: at 128 px it would smear colour across object borders.
        PILImage.fromarray(image).save(jpegs / f"{item.id}.jpg", quality=JPEG_QUALITY, subsampling=0)
        (masks / f"{item.id}.png").write_bytes(png_bytes(mask, palette))
    members: dict[str, tuple[str, ...]] = {split: (split,) for split in counts}
    for name, splits in {**members, "trainval": ("train", "val")}.items():
        (sets / f"{name}.txt").write_text("".join(f"{i.id}\n" for i in items if i.split in splits))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in config.classes), "utf-8")
    (folder / "labels.csv").write_text(_labels_csv(items), "utf-8")
    (folder / "README.md").write_text(_readme(config, items, counts), "utf-8")


def _read_pair(run: RunFolder, image_id: str, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    try:
        image, mask = read_image(run.image(image_id)), read_index_map(run.mask(image_id))
    except OSError as error:
        raise SegsmithError(f"Image {image_id} or its mask cannot be read: {error}.", REDO) from None
    if mask.shape != image.shape[:2]:
        raise SegsmithError(f"Image {image_id} is {image.shape[:2]} pixels, its mask {mask.shape}.", REDO)
    unknown = mask[(mask > classes) & (mask != VOID)]
    if unknown.size:
        raise SegsmithError(f"The mask of {image_id} holds index {unknown[0]}, which no class has.", REDO)
    return image, mask


def _labels_csv(items: list[_Item]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "classes", "prompt", "split", "seed", "backend"])
    writer.writerows([i.id, "|".join(i.labels), i.prompt.text, i.split, i.seed, i.backend] for i in items)
    return text.getvalue()


def _readme(config: Config, items: list[_Item], counts: Mapping[str, int]) -> str:
    rows = "\n".join(
        f"| {n} | {name} | {sum(name in i.labels for i in items)} |"
        for n, name in enumerate(config.classes, 1)
    )
    backends = ", ".join(sorted({i.backend for i in items}))
    return f"""# A synthetic segmentation dataset, made by segsmith

{len(items)} pictures drawn by {backends}; no person has checked the labels.
Splits: {", ".join(f"{name} {n}" for name, n in counts.items())}.
A prompt and its refinements are never in two splits.

| index | class | images |
| --- | --- | --- |
{rows}

- `JPEGImages/<id>.jpg`: the pictures (JPEG, quality {JPEG_QUALITY}).
- `SegmentationClass/<id>.png`: palette PNG of class indices; 0 is background,
  {VOID} is unknown (ignore it in the loss).
- `ImageSets/Segmentation/`: ids of train, val, test and trainval.
- `labels.csv`: classes of each image (separated by `|`), its prompt, split, seed and image model.
- `classes.txt`: class names, line n is index n.
"""


def _digest(run: RunFolder, config: Config, items: list[_Item]) -> str:
    """SHA-256 of all that decides the export."""
    digest = hashlib.sha256(json.dumps([FORMAT, JPEG_QUALITY, config.classes]).encode())
    for item in items:
        fields = [item.id, item.labels, item.prompt.text, item.split, item.seed, item.backend]
        digest.update(json.dumps(fields).encode())
        for path in (run.image(item.id), run.mask(item.id)):
            try:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
            except FileNotFoundError:
                raise SegsmithError(f"{path} is in the run's ledger but not in its folder.", REDO) from None
    return digest.hexdigest()


def _write_manifest(folder: Path, digest: str) -> None:
    files = {str(p.relative_to(folder)): _sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "digest": digest, "files": files}, indent=1))


def _is_whole(folder: Path, digest: str) -> bool:
    """Does the folder hold the export of this digest, every file as it was written?"""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest["digest"] == digest and all(
            _sha256(folder / name) == expected for name, expected in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / MANIFEST).exists())):
        raise SegsmithError(
            f"{out} holds something that segsmith did not export; it is left alone.",
            "Name a new or empty folder.",
        )


def _recover(out: Path, aside: Path) -> None:
    """Finish what an export that was killed between or after its two renames left behind."""
    if aside.exists() and out.exists():
        shutil.rmtree(aside)
    elif aside.exists():
        os.replace(aside, out)


def _swap(staging: Path, out: Path, aside: Path) -> None:
    """Put `staging` in the place of `out`; whatever fails or stops half-way, one whole export stays."""
    had_one = out.exists()
    if had_one:
        os.replace(out, aside)
    try:
        os.replace(staging, out)
    except OSError:
        if had_one:
            os.replace(aside, out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
