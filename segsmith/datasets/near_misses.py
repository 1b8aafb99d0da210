"""Folder layouts that are almost one that segsmith reads: named for what they are, with what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from segsmith.datasets.dataset_files import DatasetFiles
from segsmith.datasets.records import IMAGE_SUFFIXES
from segsmith.datasets.voc_layout import CLASS_NAMES, CLASSES, IMAGES, SETS
from segsmith.errors import SegsmithError

SPLIT_FOLDERS = ("train", "val", "test")
MASK_ENDINGS = ("annot", "_annot", "_labels", "_masks", "_mask", "_gt")
"""What CamVid and its descendants append to the name of an image folder to name the folder of its masks."""
MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "gt", "ground_truth", "segmentations")
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
TO_VOC = (
    f"Move the images to {IMAGES}/ and the masks (index PNGs) to {CLASSES}/, list the ids of each split in "
    f"{SETS}/<split>.txt and the classes in {CLASS_NAMES} (docs/datasets.md)."
)


def reject_near_miss(root: Path) -> None:
    """Raise a `SegsmithError` that names the layout, if `root` has a well-known one that is not read."""
    for what, remedy in _near_misses(DatasetFiles(root)):
        raise SegsmithError(f"{root} {what}.", remedy)


def _near_misses(files: DatasetFiles) -> Iterator[tuple[str, str]]:
    root = files.root
    if (root / "ImageSets").is_dir() and not (root / SETS).is_dir():
        sets = ", ".join(f"ImageSets/{p.name}" for p in sorted((root / "ImageSets").iterdir())[:3])
        yield (
            f"is in PASCAL VOC's layout, but has no {SETS}/ (only {sets or 'an empty ImageSets/'}), so no list "
            "names the images that have masks",
            f"Write the ids of each split to {SETS}/<split>.txt, one a line.",
        )
    elif (root / IMAGES).is_dir() and (root / CLASSES).is_dir():
        yield (
            f"is in PASCAL VOC's layout, but has no {SETS}/",
            f"Write the ids of each split to {SETS}/<split>.txt, one a line.",
        )
    if (root / "leftImg8bit").is_dir() or (root / "gtFine").is_dir():
        yield "is in Cityscapes' layout (leftImg8bit/, gtFine/), which segsmith does not read", TO_VOC
    for split in SPLIT_FOLDERS:
        for ending in MASK_ENDINGS:
            if files.is_dir(split) and files.is_dir(f"{split}{ending}"):
                yield (
                    f"is in CamVid's layout ({split}/ beside {split}{ending}/), which segsmith does not read",
                    TO_VOC,
                )
    for images in IMAGE_FOLDERS:
        for masks in MASK_FOLDERS:
            if files.is_dir(images) and files.is_dir(masks) and _are_paired(files, images, masks):
                yield (
                    f"has images in {images}/ and their masks in {masks}/, but nothing that names classes and splits",
                    TO_VOC,
                )


def _are_paired(files: DatasetFiles, images: str, masks: str) -> bool:
    """Do files of both folders, or of their sub-folders, have the same stems?"""
    stems = [{path.stem for path in files.walk(folder, *IMAGE_SUFFIXES)} for folder in (images, masks)]
    return bool(stems[0] & stems[1])
