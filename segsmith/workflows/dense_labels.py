"""Dense label maps from weak ones (SeSAM), and how good they are where the truth is known."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import tee
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from segsmith.datasets.voc_folder import VocFolder
from segsmith.datasets.voc_layout import Pair, write_voc
from segsmith.files import PART, StoredImages
from segsmith.ids import seed_of
from segsmith.memory.patch_scores import PatchScoreFile, patch_score_writer
from segsmith.protocols import PatchClassifier
from segsmith.segmentation.masks import MaskSettings, plan_mask
from segsmith.segmentation.metrics import score_pairs
from segsmith.segmentation.sources import Prediction, SamLabels, read_maps, save_maps
from segsmith.types import IGNORE

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class MaskQuality:
    """Label maps against the truth; both figures are in [0, 1]."""

    miou: float
    """Over the pixels that are not 255."""
    known: float
    """Share of all pixels that are not 255."""


def find_seeds(
    root: Path, path: Path, classifier: PatchClassifier, settings: MaskSettings, seed: int
) -> None:
    """Seeds for a dataset with image labels only, written to `path` as label maps (`save_maps`).

    As in a build, the classifier is trained on the image labels and scores each image by a fold that did not see it;
    the seed of a class is where its patch scores are high. An image gets seeds only for the classes it is labelled
    with.
    """
    train = VocFolder(root, "train")
    present = [train.present(index) for index in range(len(train))]
    targets = np.zeros((len(train), len(train.classes)), np.float32)
    for row, indices in zip(targets, present, strict=True):
        row[[i - 1 for i in indices]] = 1
    images = StoredImages([partial(_image, train, index) for index in range(len(train))])

    def seeds(maps: PatchScoreFile) -> Iterator[NDArray[np.uint8]]:
        for name, size, indices in zip(train.ids, train.sizes, present, strict=True):
            rng = np.random.default_rng(seed_of("seeds", seed, name))
            plan = plan_mask(maps[name], [i - 1 for i in indices], size, rng, settings)
            drawn = np.full(size, IGNORE, np.uint8)
            # Seeds overlap only where a class was outscored everywhere; the smaller one keeps its few pixels.
            for index, mask in sorted(plan.seeds.items(), key=lambda item: -item[1].sum()):
                drawn[mask] = index + 1
            yield drawn

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=PART) as folder:
        scores = Path(folder) / "patch_scores.npz"
        with patch_score_writer(scores) as add:

            def keep(where: NDArray[np.int64], maps: NDArray[np.float32]) -> None:
                for index, of_image in zip(where, maps, strict=True):
                    add(train.ids[index], of_image)

            classifier.out_of_fold(images, targets, train.ids, keep)
        with closing(PatchScoreFile(scores, "")) as stored:
            save_maps(path, train.ids, seeds(stored))


def _image(data: VocFolder, index: int) -> NDArray[np.uint8]:
    return data.raw(index)[0]


def write_dense(
    root: Path, out: Path, refiner: SamLabels, opinions: Iterable[Prediction] | None, threshold: float
) -> None:
    """Copy a dataset in VOC's layout with the weak labels of split train made dense.

    Drawn pixels keep their label. The others get SAM's label, and where that is 255, the teacher's label if its
    probability is at least `threshold`. Without `opinions` there is no teacher.
    """
    train = VocFolder(root, "train")

    def dense_pairs() -> Iterator[Pair]:
        asked, filling = (None, None) if opinions is None else tee(opinions)
        maps = refiner.label_maps(train, asked, round_=-1)
        for (name, image, _), label_map in zip(items_of(train), maps, strict=True):
            if filling is not None:
                view = next(filling)
                unsure = (label_map != IGNORE) | (view.confidence < threshold)
                label_map = np.where(unsure, label_map, view.labels)
            yield name, image, label_map

    write_voc(out, train.classes, {"train": dense_pairs(), **measuring_splits(root)})


def quality(
    maps: Iterable[tuple[str, NDArray[np.uint8]]],
    truth: Mapping[str, NDArray[np.uint8]],
    classes: tuple[str, ...],
) -> MaskQuality:
    """Score (id, (H, W) label map) pairs against the truth of the same ids; an id without a truth is left out."""
    known = []

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for name, label_map in maps:
            if name in truth:
                known.append(float((label_map != IGNORE).mean()))
                said = np.where(label_map == IGNORE, IGNORE, truth[name])
                yield torch.from_numpy(label_map.copy()), torch.from_numpy(said)

    score = score_pairs(pairs(), classes)
    return MaskQuality(score.miou, float(np.mean(known)) if known else 0.0)


def maps_of_split(root: Path, split: str = "train") -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """(id, label map) pairs of a split in VOC's layout."""
    return ((name, label_map) for name, _, label_map in items_of(VocFolder(root, split)))


def maps_of_file(path: Path, names: list[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """(id, label map) pairs of a file that `save_maps` wrote."""
    return zip(names, read_maps(path, names), strict=True)


def items_of(data: VocFolder) -> Iterator[Pair]:
    """(id, image, label map) of a split, in order."""
    return ((name, *data.raw(index)) for index, name in enumerate(data.ids))


def measuring_splits(root: Path) -> dict[str, Iterable[Pair]]:
    """The splits val and test that the dataset has, unchanged."""
    there = [s for s in SPLITS[1:] if (root / "ImageSets" / "Segmentation" / f"{s}.txt").exists()]
    return {split: items_of(VocFolder(root, split)) for split in there}
