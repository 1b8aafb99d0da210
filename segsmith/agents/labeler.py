"""The labeler: relabels all accepted images with a ViT, then turns labels into masks with SAM.

`relabel` follows SynthSeg-Agents (a ViT trained on CLIP's labels relabels every image and finds objects that no
prompt asked for), `segment` follows SeSAM (seeds, components, skeleton points, SAM, selection by coverage).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsmith.agents.judge.decision import SCORE_OF
from segsmith.agents.judge.real_classifier import MAX_TEACHERS
from segsmith.agents.region_check import RegionCheck
from segsmith.agents.witnesses.agent import SAMPLE, Agreement, Scores, doubted
from segsmith.config import LabelerConfig, WitnessesConfig
from segsmith.datasets.palette import voc_palette
from segsmith.files import StoredImages, png_bytes, sha256_of, write_atomic
from segsmith.ids import seed_of
from segsmith.memory.ledger import PAGE, ImageRow, LabelRow, Ledger, MaskRow, PromptRow, prompt_families
from segsmith.memory.patch_scores import PatchScoreFile, patch_score_writer
from segsmith.memory.real_images import RealImage, RealSet
from segsmith.memory.run_folder import RunFolder
from segsmith.protocols import OnMaps, PatchClassifier, PointSegmenter
from segsmith.segmentation.masks import (
    MaskSettings,
    Outlined,
    PlannedMask,
    finish_mask,
    merge_outlined,
    outline,
    plan_mask,
)
from segsmith.segmentation.merge import ignore_share, pixel_counts
from segsmith.segmentation.seeds import blend_maps
from segsmith.types import Image

log = logging.getLogger(__name__)

OutOfFold = Callable[
    [Sequence[ImageRow | RealImage], NDArray[np.float32], Sequence[str], OnMaps], NDArray[np.float32]
]
"""`PatchClassifier.out_of_fold` by whoever has the ViT: takes N images, their (N, C) labels and their groups, passes
maps on, and returns (N, C) probabilities."""

CHUNK = 32
CALIBRATION = 64
"""Number of images whose regions calibrate the `RegionCheck`."""


def decide_labels(
    named: Sequence[str], probabilities: Mapping[str, float], target: str, config: LabelerConfig
) -> tuple[str, ...]:
    """Final labels in class order.

    A class is kept if its out-of-fold probability reaches `label_threshold`, or if the prompt or CLIP named it and
    its probability reaches `drop_threshold`. The target is always kept, because the judge accepted the image for it.
    """
    return tuple(
        name
        for name, p in probabilities.items()
        if name == target or p >= config.label_threshold or (name in named and p >= config.drop_threshold)
    )


class LabelerAgent:
    """Labels and masks of all accepted images, written to the ledger and to ``masks/``."""

    def __init__(
        self,
        classifier: Callable[[], PatchClassifier],
        segmenter: Callable[[], PointSegmenter],
        ledger: Ledger,
        run: RunFolder,
        config: LabelerConfig,
        classes: Sequence[str],
        seed: int,
        real: RealSet | None = None,
        check: Callable[[], RegionCheck] | None = None,
        witnesses: WitnessesConfig | None = None,
        out_of_fold: OutOfFold | None = None,
    ) -> None:
        """`real` are the images that the run adds to; the ViT is trained on their labels, too.

        `classifier`, `segmenter` and `check` open their models. Without `check` no region is doubted, and without
        `witnesses` what witnesses said has no influence on labels and masks. With `out_of_fold` others do the ViT's
        work.
        """
        self._classifier = classifier
        self._segmenter = segmenter
        self._ledger = ledger
        self._run = run
        self._config = config
        self._classes = tuple(classes)
        self._seed = seed
        self._real = real
        self._check = check
        self._witnesses = witnesses or WitnessesConfig(agreement=False)
        self._out_of_fold = out_of_fold or self._out_of_fold_here

    def relabel(self) -> int:
        """Store out-of-fold labels for all accepted images; returns the number of labels that changed.

        The patch scores are kept in ``patch_scores.npz``, so that masks can be made again without training.
        """
        rows = self._ledger.accepted()
        prompts = {p.id: p for p in self._ledger.prompts()}
        pseudo = self._ledger.label_sets("clip")
        targets = np.array([[float(c in pseudo[r.id]) for c in self._classes] for r in rows], np.float32)
        family = prompt_families(prompts.values())
        families = [family[r.prompt_id] for r in rows]
        names = [row.id for row in rows]
        images: list[ImageRow | RealImage] = list(rows)
        teachers = self._teachers()
        if self._real is not None and teachers:
            names += [item.id for item in teachers]
            images += teachers
            targets = np.concatenate([targets, self._real.targets(teachers)])
            families += [item.id for item in teachers]
        with patch_score_writer(self._run.patch_scores) as add:

            def keep(where: NDArray[np.int64], maps: NDArray[np.float32]) -> None:
                attended = self._attention([names[index] for index in where])
                for index, of_image in zip(where, maps, strict=True):
                    if seen := attended.get(names[index]):
                        of_image = blend_maps(of_image, seen, self._config.attention_weight)
                    add(names[index], of_image)

            probabilities = self._out_of_fold(images, targets, families, keep)
        self._ledger.patch_scores_sha256 = sha256_of(self._run.patch_scores)
        changed = 0
        own = probabilities[: len(rows)]
        agreement = self._agreement(rows, own, pseudo, prompts)
        with self._ledger.transaction():
            self._ledger.forget_labels("agreement")
            for start in range(0, len(rows), PAGE):
                part = slice(start, start + PAGE)
                labels, differences = self._final_labels(rows[part], own[part], pseudo, prompts, agreement)
                self._ledger.add_labels(labels)
                changed += differences
        return changed

    def _out_of_fold_here(
        self,
        images: Sequence[ImageRow | RealImage],
        targets: NDArray[np.float32],
        groups: Sequence[str],
        on_maps: OnMaps,
    ) -> NDArray[np.float32]:
        """The ViT in this process."""
        self._run.fetch(image.id for image in images if isinstance(image, ImageRow))
        stored = StoredImages([partial(self._read, image) for image in images])
        return self._classifier().out_of_fold(stored, targets, groups, on_maps).probabilities

    def _read(self, image: ImageRow | RealImage) -> Image:
        if isinstance(image, ImageRow):
            return self._run.read_image(image)
        assert self._real is not None
        return self._real.read(image)

    def _final_labels(
        self,
        rows: Sequence[ImageRow],
        probabilities: NDArray[np.float32],
        pseudo: Mapping[str, tuple[str, ...]],
        prompts: Mapping[str, PromptRow],
        agreement: Agreement | None,
    ) -> tuple[list[LabelRow], int]:
        """The labels of some images from the (N, C) scores of the ViT, and how many differ from the pseudo-labels."""
        decided = self._ledger.decisions("label")
        agreed = (
            None
            if agreement is None
            else agreement.probabilities(self._sources(rows, probabilities, prompts))
        )
        labels, changed = [], 0
        for index, (row, scores) in enumerate(zip(rows, probabilities, strict=True)):
            named = dict(zip(self._classes, map(float, scores), strict=True))
            before = pseudo[row.id]
            prompt = prompts[row.prompt_id]
            after = before
            if self._config.relabel:
                after = decide_labels((*before, *prompt.classes), named, prompt.class_name, self._config)
            if agreement is not None and agreed is not None:
                belief = dict(zip(self._classes, map(float, agreed[index]), strict=True))
                after = agreement.labels(belief, prompt.class_name)
                labels.append(LabelRow(row.id, "agreement", after, belief))
            if row.id in decided:  # a reviewer's labels win; the ViT's scores are stored with them
                after = tuple(c for c in self._classes if c in decided[row.id].value["labels"])
            changed += len(set(before) ^ set(after))
            labels.append(LabelRow(row.id, "relabel", after, named))
        return labels, changed

    def _agreement(
        self,
        rows: Sequence[ImageRow],
        probabilities: NDArray[np.float32],
        pseudo: Mapping[str, tuple[str, ...]],
        prompts: Mapping[str, PromptRow],
    ) -> Agreement | None:
        """How far each source is to be trusted, from a sample of the images; None if no witness was heard."""
        if not (self._config.relabel and self._witnesses.agreement):
            return None
        # Ids are hashes, so the least ones are a random sample.
        sample = sorted(range(len(rows)), key=lambda i: rows[i].id)[:SAMPLE]
        chosen = [rows[i] for i in sample]
        if not self._ledger.testimonies([row.id for row in chosen]):
            return None
        sources = self._sources(chosen, probabilities[sample], prompts)
        labelled = []
        for row, scores in zip(chosen, probabilities[sample], strict=True):
            prompt, named = prompts[row.prompt_id], dict(zip(self._classes, map(float, scores), strict=True))
            known = decide_labels((*pseudo[row.id], *prompt.classes), named, prompt.class_name, self._config)
            labelled.append([name in known for name in self._classes])
        agreement = Agreement.of(sources, np.array(labelled, bool), self._witnesses)
        self._ledger.log(
            "agreement", images=len(chosen), present=agreement.rates.present, answers=agreement.rates.answers
        )
        return agreement

    def _sources(
        self,
        rows: Sequence[ImageRow],
        probabilities: NDArray[np.float32],
        prompts: Mapping[str, PromptRow],
    ) -> list[list[Scores]]:
        """What each source said about each class of each image; `probabilities` (N, C) are the ViT's."""
        ids = [row.id for row in rows]
        judged, heard = self._ledger.verdict_scores(ids), self._ledger.testimonies(ids)
        return [
            [
                {
                    "prompt": float(name in prompts[row.prompt_id].classes),
                    "clip": judged.get(row.id, {}).get(f"{SCORE_OF}{name}"),
                    "vit": float(p),
                    **{kind: said.scores.get(name) for kind, said in heard.get(row.id, {}).items()},
                }
                for name, p in zip(self._classes, scores, strict=True)
            ]
            for row, scores in zip(rows, probabilities, strict=True)
        ]

    def _attention(self, ids: Sequence[str]) -> dict[str, dict[int, NDArray[np.uint8]]]:
        """Image id -> class index -> what the image model attended to, where a witness recorded it."""
        if not self._config.attention_weight:
            return {}
        return {
            i: {self._classes.index(name): of_class for name, of_class in maps.items()}
            for i, maps in self._ledger.attention_maps(ids).items()
        }

    def _teachers(self) -> list[RealImage]:
        """Real images that the ViT is trained on: all that still need a mask, or else a selection."""
        if self._real is None:
            return []
        return self._real.unmasked() or self._real.teachers(MAX_TEACHERS)

    def segment(self, on_batch: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Make masks for accepted images that have none for their labels; returns the number of masks made.

        A mask whose file is gone or has changed is made again. Real images that came with image labels alone get
        their masks in the same way. `on_batch` is called with (masks done, masks in all).
        """
        self._segment_real()
        todo = self._unmasked()
        if todo:
            with closing(self._maps([row.id for row in todo])) as maps:
                self._segment(todo, maps, on_batch)
        return len(todo)

    def prepare_masks(self) -> list[ImageRow]:
        """Do what comes before the masks of generated images; returns the accepted images that need one, in order.

        Real images without a mask get theirs, and the stored patch scores hold the maps of what is returned; where
        these scores are gone, `relabel` runs again.
        """
        self._segment_real()
        todo = self._unmasked()
        if todo:
            self._maps([row.id for row in todo]).close()
        return todo

    def _unmasked(self) -> list[ImageRow]:
        there = self._finished_masks()
        return [row for row in self._ledger.accepted() if row.id not in there]

    def _segment(
        self, todo: Sequence[ImageRow], maps: PatchScoreFile, on_batch: Callable[[int, int], None]
    ) -> None:
        labels = self._ledger.label_sets("relabel")
        settings = MaskSettings.of(self._config)
        segmenter = self._segmenter() if self._config.use_sam else None
        calibrating: dict[tuple[str, ...], list[tuple[Image, Outlined]]] = {}

        def outlined(rows: Sequence[ImageRow]) -> list[tuple[Image, Outlined]]:
            ids = tuple(row.id for row in rows)
            if ids in calibrating:
                return calibrating.pop(ids)
            images = [self._run.read_image(row) for row in rows]
            doubts = self.doubted(ids)
            plans = [
                self._plan(row.id, image, maps[row.id], {*labels[row.id], *doubts.get(row.id, ())}, settings)
                for row, image in zip(rows, images, strict=True)
            ]
            return list(zip(images, outline(images, plans, segmenter, settings), strict=True))

        def kept(rows: Sequence[ImageRow]) -> list[tuple[Image, Outlined]]:
            """As `outlined`; the result is kept until the masks of these images are made."""
            found = outlined(rows)
            calibrating[tuple(row.id for row in rows)] = found
            return found

        check = self._check() if self._check is not None and self._config.region_doubt else None
        if check is not None:
            # Always the run's first images, even those with a mask: a resumed run must make the same masks.
            check.calibrate(
                pair for rows in mask_chunks(self._ledger.accepted(CALIBRATION)) for pair in kept(rows)
            )
        done = 0
        for chunk in mask_chunks(todo):
            doubts = self.doubted([row.id for row in chunk])
            finished = [
                merge_outlined(
                    found,
                    settings,
                    check.beliefs(image, found) if check else None,
                    self._config.region_doubt,
                    [self._classes.index(name) for name in doubts.get(row.id, ())],
                )
                for row, (image, found) in zip(chunk, outlined(chunk), strict=True)
            ]
            self._save_masks(chunk, labels, doubts, finished)
            done += len(chunk)
            on_batch(done, len(todo))

    def doubted(self, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Image id -> classes that the sources do not agree about, of images with such classes.

        A reviewer's labels are not doubted.
        """
        decided = self._ledger.decisions("label")
        rows = self._ledger.labels_of("agreement", [i for i in ids if i not in decided])
        found = {i: doubted(row.scores, self._witnesses.doubt) for i, row in rows.items()}
        return {i: classes for i, classes in found.items() if classes}

    def _finished_masks(self) -> set[str]:
        """Accepted images whose mask was made for the labels and doubts they have now, and whose file is intact.

        All rows are read, since any label may have been edited; but only the files that have changed since this was
        last asked, or since the run's dataset was made.
        """
        checked, now = self._ledger.checked, self._run.check_now()
        since = self._run.still_known(checked.get("masks"), now).at
        damaged = set(self._run.damaged_masks(self._ledger.mask_hashes(), since))
        if not damaged:
            self._ledger.checked = {**checked, "masks": now}
        labels = self._ledger.label_sets("relabel")
        doubts = self.doubted(list(labels))
        finished = set()
        for mask in self._ledger.each_mask():
            classes = labels.get(mask.image_id)
            if classes is None or not made_for(mask, classes) or mask.image_id in damaged:
                continue
            if tuple(mask.sources.get("doubted", ())) != doubts.get(mask.image_id, ()):
                continue
            finished.add(mask.image_id)
            if not mask.sha256:  # of a ledger without hashes
                self._ledger.add_masks([replace(mask, sha256=sha256_of(self._run.mask(mask.image_id)))])
        return finished

    def _segment_real(self) -> None:
        """Make label maps for real images without one, one at a time, since their sizes differ."""
        if self._real is None:
            return
        todo = [item for item in self._real.unmasked() if not self._real.mask(item).exists()]
        if not todo:
            return
        settings = MaskSettings.of(self._config)
        segmenter = self._segmenter() if self._config.use_sam else None
        with closing(self._maps([item.id for item in todo])) as maps:
            for item in todo:
                image = self._real.read(item)
                plan = self._plan(item.id, image, maps[item.id], item.labels, settings)
                ((label_map, _),) = finish_mask([image], [plan], segmenter, settings)
                write_atomic(self._real.mask(item), png_bytes(label_map, voc_palette()))

    def _plan(
        self,
        name: str,
        image: Image,
        maps: NDArray[np.float32],
        labels: Collection[str],
        settings: MaskSettings,
    ) -> PlannedMask:
        wanted = [index for index, c in enumerate(self._classes) if c in labels]
        return plan_of_image(self._seed, name, image, maps, wanted, settings)

    def _save_masks(
        self,
        rows: Sequence[ImageRow],
        labels: Mapping[str, tuple[str, ...]],
        doubts: Mapping[str, tuple[str, ...]],
        finished: Sequence[tuple[NDArray[np.uint8], dict[str, int]]],
    ) -> None:
        records = []
        for row, (label_map, sources) in zip(rows, finished, strict=True):
            png, record = mask_file(
                row.id, label_map, sources, labels[row.id], self._classes, doubts.get(row.id, ())
            )
            self._run.write(self._run.new_mask(row.id), png)
            records.append(record)
        self._ledger.add_masks(records)

    def _maps(self, needed: Sequence[str]) -> PatchScoreFile:
        """The stored patch scores; the ViT is trained again where they are not usable."""
        maps = PatchScoreFile(self._run.patch_scores, self._ledger.patch_scores_sha256)
        if maps.holds(needed):
            return maps
        maps.close()
        log.warning("%s is missing or damaged: training the ViT again", self._run.patch_scores)
        self.relabel()
        return PatchScoreFile(self._run.patch_scores, self._ledger.patch_scores_sha256)


def plan_of_image(
    seed: int,
    image_id: str,
    image: Image,
    maps: NDArray[np.float32],
    present: Sequence[int],
    settings: MaskSettings,
) -> PlannedMask:
    """The components and points of one image of a run; `present` are its class indices, `maps` (C, h, w)."""
    return plan_mask(maps, present, image.shape[:2], np.random.default_rng(seed_of(seed, image_id)), settings)


def mask_file(
    image_id: str,
    label_map: NDArray[np.uint8],
    sources: Mapping[str, int],
    labels: Sequence[str],
    classes: Sequence[str],
    doubts: Sequence[str] = (),
) -> tuple[bytes, MaskRow]:
    """The palette PNG of an (H, W) label map, and what the ledger keeps of it.

    `labels` and `doubts` are the classes it was made for, and those of them that are 255 in it.
    """
    png = png_bytes(label_map, voc_palette())
    how: dict[str, Any] = {**sources, "labels": list(labels), **({"doubted": list(doubts)} if doubts else {})}
    digest = hashlib.sha256(png).hexdigest()
    return png, MaskRow(image_id, pixel_counts(label_map, classes), ignore_share(label_map), how, digest)


def mask_chunks(rows: Sequence[ImageRow]) -> Iterator[Sequence[ImageRow]]:
    """The images that go through SAM together."""
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def made_for(mask: MaskRow, labels: tuple[str, ...]) -> bool:
    """Whether the mask was made for these labels; True for a mask that did not record its labels."""
    return tuple(mask.sources.get("labels", labels)) == labels
