"""The judge: measures every image once and decides from the stored numbers, with a reason.

Measuring needs CLIP. Deciding (`decision`) is a pure function of what was measured, so a run can be judged again with
other settings without drawing or measuring anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from segsmith.agents.image import Preview, PreviewScore
from segsmith.agents.judge.decision import (
    SAMPLE,
    TELLS_APART,
    UNCALIBRATED,
    Decision,
    class_probabilities,
    decide,
    first_fault,
    has_moved,
    measure_sample,
    rank,
    scores_of,
)
from segsmith.agents.judge.duplicates import DuplicateIndex
from segsmith.agents.judge.measure import Measured, directions, measure_images
from segsmith.agents.judge.real_classifier import RealClassifier
from segsmith.config import JudgeConfig
from segsmith.memory.ledger import Evidence, ImageRow, Judgement, LabelRow, Ledger, Passed, VerdictRow
from segsmith.memory.run_folder import RunFolder
from segsmith.protocols import ImageTextEncoder
from segsmith.reasons import VerdictReason
from segsmith.types import MEASURED_TOGETHER, ClassTally, Image

READ = 2048
"""Images that are decided about at a time."""


class JudgeAgent:
    """Measures images with CLIP and writes verdicts and pseudo-labels to the ledger."""

    def __init__(
        self,
        encoder: ImageTextEncoder,
        ledger: Ledger,
        run: RunFolder,
        config: JudgeConfig,
        classes: Sequence[str],
        synonyms: Callable[[str], tuple[str, ...]],
        quota: Mapping[str, int],
        real_classifier: RealClassifier | None = None,
    ) -> None:
        """`quota` is class -> number of images wanted; `real_classifier` is used where the run has real images."""
        self._encoder = encoder
        self._ledger = ledger
        self._run = run
        self._config = config
        self._classes = tuple(classes)
        self._quota = quota
        self._real_classifier = real_classifier
        self._texts = directions(encoder, self._classes, synonyms)
        self._duplicates = DuplicateIndex(ledger, run.root / "duplicates.index")

    def judge(self) -> Mapping[str, float]:
        """Measure and decide about what is new, and return the thresholds.

        Earlier verdicts may change, because thresholds and ranks depend on all images (see `update_verdicts`). The
        pseudo-labels of accepted images follow SynthSeg-Agents Fig. 3: classes that score high in prompt space *and*
        in image space.
        """
        self.measure()
        self._duplicates.save()
        return update_verdicts(self._ledger, self._classes, self._config, self._quota).thresholds

    def measure(self, rows: Sequence[ImageRow] | None = None, images: Sequence[Image] | None = None) -> None:
        """Measure the images that have no evidence yet, or those of `rows`, in the order they were drawn.

        `images` are the pixels of `rows`, where they are in memory; otherwise the files are read. The rows must be in
        the ledger; those that have evidence are skipped. The classifier trained on real images is not asked about
        `rows`, but about all images at once.
        """
        every = rows is None
        rows = self._ledger.unmeasured() if rows is None else rows
        for start in range(0, len(rows), MEASURED_TOGETHER):
            chunk = range(start, min(start + MEASURED_TOGETHER, len(rows)))
            measured = self._ledger.measured([rows[i].id for i in chunk])
            todo = [i for i in chunk if rows[i].id not in measured]
            self._measure(
                [rows[i] for i in todo],
                [self._run.read_image(rows[i]) if images is None else images[i] for i in todo],
            )
        if every and self._real_classifier is not None:
            self._real_classifier.classify()
        self._ledger.logit_scale = self._encoder.logit_scale

    def look(self, previews: Sequence[Preview]) -> list[PreviewScore]:
        """Score unfinished images by the rules of `class_probabilities`; nothing is stored.

        Centres and thresholds are those of the last judgement.
        """
        cosines = self._encoder.embed_images([preview.image for preview in previews]) @ self._texts.T
        seen = [
            Evidence("", p.id, p.class_name, p.classes, tuple(map(float, cosine)), 1.0, False, -1.0)
            for p, cosine in zip([preview.prompt for preview in previews], cosines, strict=True)
        ]
        judgement = self._ledger.judgement
        centre = () if judgement is None else judgement.centre
        thresholds = {} if judgement is None else judgement.thresholds
        shares = class_probabilities(seen, self._classes, self._encoder.logit_scale, centre)
        start = max(self._config.min_probability, UNCALIBRATED)
        return [
            PreviewScore(float(row[self._classes.index(e.target)]), thresholds.get(e.target, start))
            for e, row in zip(seen, shares, strict=True)
        ]

    def returned(self, prompt_ids: Sequence[str]) -> dict[str, list[str]]:
        """Class -> those of the prompts of which no image shows the class.

        They go back to the prompt agent. Prompts are not blamed for blurred or duplicate images.
        """
        faults = {
            VerdictReason.NOT_THERE,
            VerdictReason.UNLIKE_REAL,
            "filtered",
        }  # the online filter is the judge's
        outcomes = self._ledger.outcomes(prompt_ids)
        failed: dict[str, list[str]] = {}
        for prompt_id in prompt_ids:
            if outcomes.get(prompt_id) and outcomes[prompt_id] <= faults:
                failed.setdefault(self._ledger.prompt(prompt_id).class_name, []).append(prompt_id)
        return failed

    def _measure(self, rows: Sequence[ImageRow], images: Sequence[Image]) -> None:
        if not rows:
            return
        texts = [self._ledger.prompt(row.prompt_id).text for row in rows]
        self.add(rows, measure_images(self._encoder, self._texts, len(self._classes), images, texts))

    def add(self, rows: Sequence[ImageRow], measured: Sequence[Measured]) -> None:
        """Compare measured images with all earlier ones, and store their evidence.

        The rows must be in the ledger and have no evidence. The order of the calls is part of the result: an image is
        a duplicate of one that was added before it.
        """
        signatures = [item.signature for item in measured]
        likenesses = self._duplicates.compare_and_add(signatures, split=self._texts.shape[1])
        evidence = []
        for row, item, likeness in zip(rows, measured, likenesses, strict=True):
            prompt = self._ledger.prompt(row.prompt_id)
            evidence.append(
                Evidence(
                    image_id=row.id,
                    prompt_id=prompt.id,
                    target=prompt.class_name,
                    asked=prompt.classes,
                    cosines=item.cosines,
                    text_shares=item.text_shares,
                    sharpness=item.sharpness,
                    blank=item.blank,
                    duplicate_cosine=likeness,
                    signature=item.signature.tobytes(),
                )
            )
        self._ledger.add_evidence(evidence)


def reconsider(
    ledger: Ledger, classes: Sequence[str], config: JudgeConfig, quota: Mapping[str, int]
) -> Decision:
    """Decide about every measured image from the ledger alone; writes nothing and loads no model."""
    evidence = list(ledger.evidence().values())
    decision = decide(evidence, classes, ledger.logit_scale, config, quota, _reviewed(ledger))
    return replace(decision, judgement=_for_run(decision.judgement, ledger, classes, config, quota))


def record(ledger: Ledger, decision: Decision, classes: Sequence[str], config: JudgeConfig) -> None:
    """Write the verdicts of `reconsider` and the labels that follow from them, in one transaction."""
    measured = ledger.evidence()
    with ledger.transaction():
        for verdict, shares in zip(decision.verdicts, decision.probabilities, strict=True):
            if verdict.accepted:
                ledger.add_labels(
                    _labels(measured[verdict.image_id], shares, classes, decision.judgement, config)
                )
        ledger.add_verdicts(decision.verdicts)
        last = max((row for row, _ in ledger.measured_rows()), default=0)
        _keep(ledger, replace(decision.judgement, measured=last))


def update_verdicts(
    ledger: Ledger, classes: Sequence[str], config: JudgeConfig, quota: Mapping[str, int]
) -> Judgement:
    """Decide about the images that were measured since the last judgement, or about all where that matters.

    All are decided about again if the settings, the quotas, a reviewer's decisions or the testimonies have changed,
    or if `has_moved`. Images are read in chunks. Verdicts, labels and what they follow from are written in one
    transaction.
    """
    scale, before = ledger.logit_scale, ledger.judgement
    sample = ledger.evidence_sample(SAMPLE)
    now = _for_run(measure_sample(sample, classes, scale, config), ledger, classes, config, quota)
    again = (
        before is None
        or _of_run(before) != _of_run(now)
        or has_moved(before, now, sample, classes, scale, config)
    )
    judgement = now if again or before is None else before
    first = 0 if again or before is None else before.measured
    with ledger.transaction():
        last = _Deciding(ledger, classes, config, quota, scale, judgement, first).write()
        judgement = replace(judgement, measured=last)
        _keep(ledger, judgement)
    return judgement


class _Deciding:
    """One pass over the images that were measured after row number `first`."""

    def __init__(
        self,
        ledger: Ledger,
        classes: Sequence[str],
        config: JudgeConfig,
        quota: Mapping[str, int],
        scale: float,
        judgement: Judgement,
        first: int,
    ) -> None:
        self._ledger = ledger
        self._classes = classes
        self._config = config
        self._quota = quota
        self._scale = scale
        self._judgement = judgement
        self._first = first
        self._reviewed = _reviewed(ledger)
        self._tallies = ledger.tallies() if first else {}

    def write(self) -> int:
        """Write verdicts and labels; returns the row number of the last image measured."""
        passed: dict[str, list[Passed]] = {}
        for row, item, fault, shares in self._tested():
            if fault is None:
                probability = float(shares[self._classes.index(item.target)])
                passed.setdefault(item.target, []).append(
                    Passed(item.image_id, item.prompt_id, probability, row)
                )
        reasons = {i: r for name, items in passed.items() for i, r in self._ranked(name, items).items()}
        last, verdicts, labels = self._first, list[VerdictRow](), list[LabelRow]()
        for row, item, fault, shares in self._tested():
            last = row
            reason = fault or reasons[item.image_id]
            accepted = self._reviewed.get(item.image_id, reason == VerdictReason.OK)
            scores = scores_of(item, self._classes, shares, self._judgement)
            verdicts.append(VerdictRow(item.image_id, accepted, reason, scores))
            if accepted:
                labels += _labels(item, shares, self._classes, self._judgement, self._config)
            if len(verdicts) == READ:
                self._ledger.add_verdicts(verdicts)
                self._ledger.add_labels(labels)
                verdicts, labels = [], []
        self._ledger.add_verdicts(verdicts)
        self._ledger.add_labels(labels)
        return last

    def _tested(self) -> Iterator[tuple[int, Evidence, VerdictReason | None, NDArray[np.float64]]]:
        """(Row number, evidence, reason unless it passed, probabilities) of each image, in chunks."""
        row = self._first
        while chunk := self._ledger.evidence_after(row, READ):
            items = [item for _, item in chunk]
            shares = class_probabilities(items, self._classes, self._scale, self._judgement.centre)
            for (row, item), probabilities in zip(chunk, shares, strict=True):
                probability = float(probabilities[self._classes.index(item.target)])
                fault = first_fault(item, probability, self._judgement, self._config)
                person = VerdictReason.PERSON if item.image_id in self._reviewed else None
                yield row, item, person or fault, probabilities

    def _ranked(self, name: str, new: Sequence[Passed]) -> dict[str, str]:
        """Reasons of the images of a class that passed.

        Beside images that were decided about earlier, new ones are ranked alone while they cannot displace any: there
        is room for all of them, and no prompt has images of both kinds.
        """
        quota = self._quota[name]
        if self._first:
            kept = self._tallies.get(name, ClassTally()).accepted
            fits = kept + len(new) <= quota
            prompts = sorted({item.prompt_id for item in new})
            if not self._config.enabled or (fits and not self._ledger.judged_prompts(prompts)):
                return rank(new, (), quota, self._config, kept)
            earlier = self._ledger.passed(name)
        else:
            earlier = []
        accepted = [i for i, good in self._reviewed.items() if good]
        chosen = [e.prompt_id for e in self._ledger.evidence(accepted).values() if e.target == name]
        reasons = rank([*earlier, *new], chosen, quota, self._config)
        self._change(earlier, reasons)
        return reasons

    def _change(self, earlier: Sequence[Passed], reasons: Mapping[str, str]) -> None:
        """Write the earlier verdicts whose reason changes, with the labels of the images that are accepted now."""
        changed = [item.image_id for item in earlier if reasons[item.image_id] != item.reason]
        self._ledger.set_reasons({i: (reasons[i] == VerdictReason.OK, reasons[i]) for i in changed})
        items = list(self._ledger.evidence([i for i in changed if reasons[i] == VerdictReason.OK]).values())
        shares = class_probabilities(items, self._classes, self._scale, self._judgement.centre)
        for item, row in zip(items, shares, strict=True):
            self._ledger.add_labels(_labels(item, row, self._classes, self._judgement, self._config))


def doubtful(judgement: Judgement | None) -> dict[str, float]:
    """Classes that CLIP hardly tells from the others, with their `class_auc`."""
    found = {} if judgement is None else judgement.auc
    return {name: auc for name, auc in found.items() if auc < TELLS_APART}


def doubt(name: str, auc: float) -> str:
    """What to say of such a class."""
    return (
        f"The judge's CLIP hardly tells images of {name} from those of other classes (AUC {auc:.2f}; guessing gives "
        "0.5): look at its images and masks, and try another word for the class or another judge.clip."
    )


def _reviewed(ledger: Ledger) -> dict[str, bool]:
    """Image id -> accepted, by a reviewer."""
    return {i: row.action == "accept" for i, row in ledger.decisions("verdict").items()}


def _for_run(
    judgement: Judgement,
    ledger: Ledger,
    classes: Sequence[str],
    config: JudgeConfig,
    quota: Mapping[str, int],
) -> Judgement:
    """The judgement with the settings and decisions that it is made with."""
    settings = json.dumps([config.model_dump(mode="json"), [[name, quota[name]] for name in classes]])
    return replace(
        judgement,
        settings=settings,
        decisions=ledger.decisions_made("verdict"),
        testimonies=ledger.testimonies_made,
    )


def _of_run(judgement: Judgement) -> tuple[str, int, int]:
    """What earlier images must be decided about again for, wherever it changes."""
    return judgement.settings, judgement.decisions, judgement.testimonies


def _keep(ledger: Ledger, judgement: Judgement) -> None:
    ledger.judgement = judgement
    ledger.thresholds = judgement.thresholds


def _labels(
    item: Evidence,
    shares: NDArray[np.float64],
    classes: Sequence[str],
    judgement: Judgement,
    config: JudgeConfig,
) -> list[LabelRow]:
    """The labels of an accepted image: what its prompt asked for, and the pseudo-label."""
    named = list(zip(classes, item.text_shares, shares, strict=True))
    return [
        LabelRow(item.image_id, "prompt", item.asked, dict.fromkeys(item.asked, 1.0)),
        _pseudo_label(item.image_id, item.target, named, judgement.thresholds, config),
    ]


def _pseudo_label(
    image_id: str,
    target: str,
    shares: Sequence[tuple[str, float, float]],
    thresholds: Mapping[str, float],
    config: JudgeConfig,
) -> LabelRow:
    """Classes that score high in prompt and image space; `shares` are (class, in text, in image)."""
    chosen = tuple(
        name
        for name, in_text, in_image in shares
        if name == target  # the judge accepted the image for its target
        or (in_text >= config.pseudo_prompt and in_image >= thresholds[name])
    )
    return LabelRow(image_id, "clip", chosen, {name: float(min(a, b)) for name, a, b in shares})
