"""An export read once more, with the libraries that its users read it with.

A writer and a reader by the same authors share their mistakes. But these libraries open files of any kind and size
and follow addresses that a dataset names, so they get to see only what our own reader has found to be the user's run.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.datasets.palette import VOID
from segsmith.datasets.records import LabelledDataset, Problem
from segsmith.terminal_text import first_line

Reading = Iterator[tuple[str, str, NDArray[np.uint8]]]
"""(split, id, label map (H, W) uint8) of each image that has a mask."""


FAILURES = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError)
"""What libraries raise at files they do not understand."""


@dataclass(frozen=True)
class ForeignReader:
    """A library that reads a format."""

    library: str
    read: Callable[[Path, LabelledDataset, Mapping[str, int]], Reading]
    """Reads the folder; the dataset names classes, the mapping the number of images of each split."""
    reads: Callable[[Path], bool] = lambda root: True
    """Whether the library reads the layout of this folder."""


def digest(label_map: NDArray[np.uint8]) -> bytes:
    """What is remembered of a label map between the two readings: 16 bytes, whatever its size."""
    shape = np.array(label_map.shape, np.int64).tobytes()
    return hashlib.blake2b(shape + np.ascontiguousarray(label_map).tobytes(), digest_size=16).digest()


def find_reader(root: Path, form: str) -> ForeignReader | None:
    """The installed library that reads this folder in format `form`; None where there is none."""
    reader = READERS.get(form)
    if reader is None or find_spec(reader.library) is None or not reader.reads(root):
        return None
    return reader


def compare(
    reader: ForeignReader,
    root: Path,
    data: LabelledDataset,
    splits: Mapping[str, int],
    digests: Mapping[str, bytes],
) -> Iterator[Problem]:
    """What the library reads otherwise than our reader, which found `splits` and the `digest` of each label map."""
    left = dict(digests)
    try:
        for split, name, label_map in reader.read(root, data, splits):
            where = f"{reader.library}: {split}/{name}"
            if name not in left:
                yield Problem("other_reading", where, "is read twice, or is not in the dataset")
            elif left.pop(name) != digest(label_map):
                yield Problem("other_reading", where, "its mask is read with other pixels")
    except FAILURES as error:
        yield Problem("other_reading", reader.library, f"cannot read it: {first_line(error)}")
        return
    for name in left:
        yield Problem("other_reading", f"{reader.library}: {name}", "is not read")


def _torchvision(root: Path, data: LabelledDataset, splits: Mapping[str, int]) -> Reading:
    from torchvision.datasets import VOCSegmentation

    for split in splits:
        found = VOCSegmentation(str(root), year="2007" if split == "test" else "2012", image_set=split)
        for path, (_, mask) in zip(found.images, found, strict=True):
            yield split, Path(path).stem, np.asarray(mask)


def _pycocotools(root: Path, data: LabelledDataset, splits: Mapping[str, int]) -> Reading:
    import contextlib
    import io

    from pycocotools.coco import COCO

    for split in splits:
        (path,) = (root / "annotations").glob(f"*_{split}.json")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            coco = COCO(str(path))
        names = {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())}
        for image in coco.imgs.values():
            label_map = np.zeros((image["height"], image["width"]), np.uint8)
            for annotation in coco.imgToAnns[image["id"]]:
                index = data.classes.index(names[annotation["category_id"]]) + 1
                label_map[coco.annToMask(annotation) > 0] = VOID if annotation["iscrowd"] else index
            yield split, Path(image["file_name"]).stem, label_map


def _datasets(root: Path, data: LabelledDataset, splits: Mapping[str, int]) -> Reading:
    import datasets

    with tempfile.TemporaryDirectory() as cache:
        try:
            found = datasets.load_dataset(str(root), cache_dir=cache)
        except datasets.exceptions.DatasetsError as error:
            raise ValueError(first_line(error)) from error
        for split, part in found.items():
            for row in part:
                yield str(split), row["id"], np.asarray(row["mask"])


def _webdataset(root: Path, data: LabelledDataset, splits: Mapping[str, int]) -> Reading:
    import webdataset

    for split in splits:
        shards = [str(path.absolute()) for path in sorted(root.glob(f"{split}-*.tar"))]
        for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("pil"):
            yield split, sample["__key__"], np.asarray(sample["mask.png"])[..., 0]


READERS = {
    "voc": ForeignReader("torchvision", _torchvision, lambda root: (root / "VOCdevkit").is_dir()),
    "coco": ForeignReader("pycocotools", _pycocotools),
    "hf": ForeignReader("datasets", _datasets),
    "webdataset": ForeignReader("webdataset", _webdataset),
}
"""By the name of the format."""
