"""The labeler: relabels the whole set with a ViT, then turns labels into masks with SAM.

`relabel` follows SynthSeg-Agents (a ViT taught by CLIP relabels everything, including what no prompt asked
for), `segment` follows SeSAM (seeds, components, skeleton points, SAM, selection by coverage).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsmith.config import LabelerConfig
from segsmith.memory.ledger import ImageRow, LabelRow, Ledger, MaskRow, prompt_families
from segsmith.memory.store import RunFolder, png_bytes, read_image, seed_of, write_atomic
from segsmith.segmentation.masks import MaskSettings, finish_mask, plan_mask
from segsmith.segmentation.merge import ignore_share, pixel_counts
from segsmith.segmentation.palette import voc_palette
from segsmith.tools.protocols import PatchClassifier, PointSegmenter

CHUNK = 32


def decide_labels(
    named: Sequence[str], probabilities: Mapping[str, float], target: str, config: LabelerConfig
) -> tuple[str, ...]:
    """Final labels in class order: the ViT adds what it is sure of and removes what it does not see.

    A class is kept when its out-of-fold probability reaches `label_threshold`, or when the prompt or CLIP
    named it and the ViT does not rule it out (`drop_threshold`). The target stays: the judge accepted the
    picture for it.
    """
    return tuple(
        name
        for name, p in probabilities.items()
        if name == target or p >= config.label_threshold or (name in named and p >= config.drop_threshold)
    )


class LabelerAgent:
    """Labels and masks of every accepted picture, written to the ledger and to ``masks/``."""

    def __init__(
        self,
        classifier: Callable[[], PatchClassifier],
        segmenter: Callable[[], PointSegmenter],
        ledger: Ledger,
        run: RunFolder,
        config: LabelerConfig,
        classes: Sequence[str],
        seed: int,
    ) -> None:
        self._classifier = classifier
        self._segmenter = segmenter
        self._ledger = ledger
        self._run = run
        self._config = config
        self._classes = tuple(classes)
        self._seed = seed

    @property
    def _maps_file(self) -> Any:
        return self._run.root / "patch_scores.npz"

    def relabel(self) -> int:
        """Out-of-fold labels for every accepted picture; returns how many labels changed.

        The patch-score maps are kept in ``patch_scores.npz``, so that masks can be made again without training.
        """
        rows = self._ledger.accepted()
        prompts = {p.id: p for p in self._ledger.prompts()}
        pseudo = self._ledger.labels("clip")
        targets = np.array(
            [[float(c in pseudo[r.id].classes) for c in self._classes] for r in rows], dtype=np.float32
        )
        family = prompt_families(prompts.values())
        families = [family[r.prompt_id] for r in rows]
        images = [read_image(self._run.image(r.id)) for r in rows]
        scores = self._classifier().out_of_fold(images, targets, families)
        decided = self._ledger.decisions("label")
        labels, changed = [], 0
        for row, probabilities in zip(rows, scores.probabilities, strict=True):
            named = dict(zip(self._classes, map(float, probabilities), strict=True))
            before = pseudo[row.id].classes
            prompt = prompts[row.prompt_id]
            after = before
            if self._config.relabel:
                after = decide_labels((*before, *prompt.classes), named, prompt.class_name, self._config)
            if row.id in decided:  # a person's labels stand; the ViT's opinion stays beside them
                after = tuple(c for c in self._classes if c in decided[row.id].value["labels"])
            changed += len(set(before) ^ set(after))
            labels.append(LabelRow(row.id, "relabel", after, named))
        self._save_maps(rows, scores.maps)
        self._ledger.add_labels(labels)
        return changed

    def segment(self, on_batch: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Masks for every accepted picture that has none for its labels; returns how many were made."""
        labels = self._ledger.labels("relabel")
        there = {i for i, mask in self._ledger.masks().items() if i in labels and made_for(mask, labels[i])}
        todo = [r for r in self._ledger.accepted() if r.id not in there]
        if not todo:
            return 0
        maps = self._load_maps()
        settings = MaskSettings.of(self._config)
        segmenter = self._segmenter() if self._config.use_sam else None
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            images = [read_image(self._run.image(r.id)) for r in chunk]
            plans = [
                plan_mask(
                    maps[row.id],
                    [self._classes.index(c) for c in labels[row.id].classes],
                    image.shape[:2],
                    np.random.default_rng(seed_of(self._seed, row.id)),
                    settings,
                )
                for row, image in zip(chunk, images, strict=True)
            ]
            finished = finish_mask(images, plans, segmenter, settings)
            self._save_masks(chunk, labels, finished)
            on_batch(start + len(chunk), len(todo))
        return len(todo)

    def _save_masks(
        self,
        rows: Sequence[ImageRow],
        labels: Mapping[str, LabelRow],
        finished: Sequence[tuple[NDArray[np.uint8], dict[str, int]]],
    ) -> None:
        records = []
        for row, (label_map, sources) in zip(rows, finished, strict=True):
            write_atomic(self._run.mask(row.id), png_bytes(label_map, voc_palette()))
            counts = pixel_counts(label_map, self._classes)
            how = {**sources, "labels": list(labels[row.id].classes)}
            records.append(MaskRow(row.id, counts, ignore_share(label_map), how))
        self._ledger.add_masks(records)

    def _save_maps(self, rows: Sequence[ImageRow], maps: NDArray[np.float32]) -> None:
        import io

        buffer = io.BytesIO()
        np.savez_compressed(buffer, ids=np.array([r.id for r in rows]), maps=maps.astype(np.float16))
        write_atomic(self._maps_file, buffer.getvalue())

    def _load_maps(self) -> dict[str, NDArray[np.float32]]:
        with np.load(self._maps_file) as file:
            return dict(zip(file["ids"].tolist(), file["maps"].astype(np.float32), strict=True))


def made_for(mask: MaskRow, labels: LabelRow) -> bool:
    """Was the mask made under these labels? One that does not say so is taken at its word."""
    return tuple(mask.sources.get("labels", labels.classes)) == labels.classes
