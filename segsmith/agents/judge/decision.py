"""Deciding about images from what was measured of them: pure functions.

What all images have in common (centres of the cosines, thresholds, the typical sharpness) comes from a sample of
bounded size, so that deciding about an image costs the same in a run of any size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

from segsmith.agents.witnesses.agreement import answer
from segsmith.config import JudgeConfig
from segsmith.memory.ledger import Evidence, Judgement, Passed, VerdictRow
from segsmith.reasons import VerdictReason

MIN_NEGATIVES = 20
"""Number of images whose prompts did not ask for a class from which its threshold is calibrated."""
UNCALIBRATED = 0.3
"""Threshold with fewer negatives. It is higher because cosines are not centred then."""
MAX_THRESHOLD = 0.9
"""Upper limit of calibrated thresholds: some negatives do show the class, though nobody asked for it."""
SAMPLE = 4096
"""Images from which centres, thresholds and the typical sharpness are measured: all of a smaller run (ours).

In a run of 12,000 images with made-up scores, 0.6 % of the verdicts differed from those with all images as the
sample.
"""
MATTERS = 0.005
"""Earlier images are decided about again when more than this share of the sample would pass or fail anew (ours)."""

TELLS_APART = 0.6
"""Area under the ROC curve below which CLIP hardly tells a class from the others (ours).

In the simulator, where 15 % of the images do not show what was asked for, 24 classes that the mini CLIP knows have
0.86 to 0.98 in scenes of one place (bus 0.72 in `make demo`); of three words that it was not trained on, umbrella has
0.90, scissors 0.73 and backpack 0.17.
"""

SCORE_OF = "p:"
"""Before a class, the key of its probability among the scores of a verdict."""


@dataclass(frozen=True)
class Decision:
    """Verdicts in the order of the evidence, and what they follow from."""

    verdicts: list[VerdictRow]
    judgement: Judgement
    probabilities: NDArray[np.float64]
    """(N, C) CLIP probability of every class in every image."""

    @property
    def thresholds(self) -> Mapping[str, float]:
        """Class -> probability that an image must reach."""
        return self.judgement.thresholds


def decide(
    evidence: Sequence[Evidence],
    classes: Sequence[str],
    scale: float,
    config: JudgeConfig,
    quota: Mapping[str, int],
    reviewed: Mapping[str, bool] | None = None,
) -> Decision:
    """Judge all images from what was measured of them.

    `quota` is class -> number of images wanted. `reviewed` is image id -> accepted, by a reviewer: it overrides every
    test, with reason `VerdictReason.PERSON`, and these images are counted first towards the limits of their prompt
    and class. The other reasons are tested in the order in which `VerdictReason` lists them.
    """
    reviewed = reviewed or {}
    sample = sorted(evidence, key=lambda e: e.image_id)[:SAMPLE]
    judgement = measure_sample(sample, classes, scale, config)
    probabilities = class_probabilities(evidence, classes, scale, judgement.centre)
    reasons: dict[str, str] = {}
    passed: dict[str, list[Passed]] = {}
    chosen: dict[str, list[Evidence]] = {}
    for order, (item, row) in enumerate(zip(evidence, probabilities, strict=True)):
        probability = float(row[classes.index(item.target)])
        if item.image_id in reviewed:
            reasons[item.image_id] = VerdictReason.PERSON
            if reviewed[item.image_id]:
                chosen.setdefault(item.target, []).append(item)
        elif fault := first_fault(item, probability, judgement, config):
            reasons[item.image_id] = fault
        else:
            passed.setdefault(item.target, []).append(
                Passed(item.image_id, item.prompt_id, probability, order)
            )
    for name, items in passed.items():
        reasons |= rank(items, (e.prompt_id for e in chosen.get(name, ())), quota[name], config)
    verdicts = [
        VerdictRow(
            e.image_id,
            reviewed.get(e.image_id, reasons[e.image_id] == VerdictReason.OK),
            reasons[e.image_id],
            scores_of(e, classes, row, judgement),
        )
        for e, row in zip(evidence, probabilities, strict=True)
    ]
    return Decision(verdicts, judgement, probabilities)


def measure_sample(
    sample: Sequence[Evidence], classes: Sequence[str], scale: float, config: JudgeConfig
) -> Judgement:
    """Centres, thresholds and the typical sharpness, without the fields that say which run they are for."""
    centre = _centre(sample, classes)
    probabilities = class_probabilities(sample, classes, scale, centre)
    return Judgement(
        centre=centre,
        thresholds=calibrate(sample, classes, probabilities, config),
        like_real=calibrate_real(sample, classes, config),
        sharpness=float(np.median([e.sharpness for e in sample])) if sample else 0.0,
        auc=class_auc(sample, classes) if config.enabled else {},
    )


def first_fault(
    item: Evidence, probability: float, judgement: Judgement, config: JudgeConfig
) -> VerdictReason | None:
    """Why an image fails the tests that look at it alone; None if it passes. `probability` is that of its target."""
    if not config.enabled:
        return None
    if item.blank:
        return VerdictReason.BLANK
    if item.duplicate_cosine >= config.duplicate_cosine:
        return VerdictReason.DUPLICATE
    if item.sharpness < config.min_sharpness * judgement.sharpness:
        return VerdictReason.BLURRED
    if probability < judgement.thresholds[item.target]:
        return VerdictReason.NOT_THERE
    if item.real.get(item.target, 1.0) < judgement.like_real.get(item.target, 0.0):
        return VerdictReason.UNLIKE_REAL
    if config.deniers and len(item.heard) >= config.deniers and denied(item):
        return VerdictReason.DENIED
    return None


def denied(item: Evidence) -> bool:
    """Whether every witness that was heard says that the image's target is not there."""
    return all(answer(witness, scores.get(item.target)) == 0 for witness, scores in item.heard.items())


def rank(
    passed: Iterable[Passed], chosen: Iterable[str], quota: int, config: JudgeConfig, kept: int = 0
) -> dict[str, str]:
    """Image id -> reason, of the images of one class that passed: the best of each prompt, and of the class.

    `chosen` are the prompts of the images that a reviewer accepted, one for each image; `kept` is the number of
    further accepted images. Best first; with the judge disabled, in the order of measuring.
    """
    of_prompt = Counter(chosen)
    of_class = kept + sum(of_prompt.values())
    reasons: dict[str, str] = {}
    key = (lambda i: (-i.probability, i.image_id)) if config.enabled else (lambda i: i.order)
    for item in sorted(passed, key=key):
        if config.enabled and of_prompt[item.prompt_id] >= config.top_k:
            reasons[item.image_id] = VerdictReason.BEYOND_TOP_K
        elif of_class >= quota:
            reasons[item.image_id] = VerdictReason.SURPLUS
        else:
            reasons[item.image_id] = VerdictReason.OK
            of_prompt[item.prompt_id] += 1
            of_class += 1
    return reasons


def has_moved(
    before: Judgement,
    now: Judgement,
    sample: Sequence[Evidence],
    classes: Sequence[str],
    scale: float,
    config: JudgeConfig,
) -> bool:
    """Whether earlier images must be decided about again.

    While the sample holds every image, after any change; after that, when more than `MATTERS` of it would pass or
    fail anew.
    """
    same = all(
        getattr(before, name) == getattr(now, name)
        for name in ("centre", "thresholds", "like_real", "sharpness")
    )
    if same or len(sample) < SAMPLE:
        return not same
    faults = []
    for judgement in (before, now):
        rows = class_probabilities(sample, classes, scale, judgement.centre)
        faults.append([
            first_fault(e, float(row[classes.index(e.target)]), judgement, config) is None
            for e, row in zip(sample, rows, strict=True)
        ])  # fmt: skip
    return float(np.mean(np.not_equal(faults[0], faults[1]))) > MATTERS


def class_probabilities(
    evidence: Sequence[Evidence],
    classes: Sequence[str],
    scale: float,
    centre: Sequence[float] | None = None,
) -> NDArray[np.float64]:
    """(N, C) probability in [0, 1] of each class in each image, from centred cosines.

    Two steps on top of CLIP's softmax, both ours:

    - *Centring.* The class's median cosine over images whose prompts did not ask for it is subtracted first. Some
      class names are closer to every image than others; this removes that bias without labels.
    - *Rivals.* A requested class competes with the backgrounds and with the classes that were not requested, but not
      with its companions; otherwise neither the cat nor the dog of a requested pair could exceed one half. A class
      that was not requested competes with all others.

    `centre` holds the (C + B) medians, () for none; None takes those of the evidence itself.
    """
    if not evidence:
        return np.zeros((0, len(classes)))
    centre = _centre(evidence, classes) if centre is None else centre
    asked = _asked(evidence, classes)
    logits = scale * (np.array([e.cosines for e in evidence], dtype=np.float64) - (np.array(centre or 0.0)))
    n = len(classes)
    strangers = logits.copy()
    strangers[:, :n][asked] = -np.inf
    with np.errstate(divide="ignore"):
        against_strangers = logsumexp(strangers, axis=1, keepdims=True)
        against_all = logsumexp(logits, axis=1, keepdims=True)
    return np.where(asked, expit(logits[:, :n] - against_strangers), np.exp(logits[:, :n] - against_all))


def calibrate(
    evidence: Sequence[Evidence],
    classes: Sequence[str],
    probabilities: NDArray[np.float64],
    config: JudgeConfig,
) -> dict[str, float]:
    """Class -> probability that an image must reach, found without labels.

    Images whose prompts did not ask for a class are its negatives. The threshold is their (1 - `false_accept`)
    quantile, within [`min_probability`, `MAX_THRESHOLD`]; a threshold set in the config is used unchanged. The papers
    give no such rule; it is ours.
    """
    thresholds = {}
    asked = _asked(evidence, classes)
    for index, name in enumerate(classes):
        if name in config.thresholds:
            thresholds[name] = config.thresholds[name]
            continue
        negatives = probabilities[~asked[:, index], index]
        if len(negatives) < MIN_NEGATIVES:
            thresholds[name] = max(config.min_probability, UNCALIBRATED)
        else:
            quantile = float(np.quantile(negatives, 1 - config.false_accept))
            thresholds[name] = max(config.min_probability, min(MAX_THRESHOLD, quantile))
    return thresholds


def calibrate_real(
    evidence: Sequence[Evidence], classes: Sequence[str], config: JudgeConfig
) -> dict[str, float]:
    """Class -> probability by the `RealClassifier` that an image must reach; as `calibrate`, without a lower limit.

    Generated images differ from real ones, so these probabilities are compared with those of images whose prompts did
    not ask for the class. Classes with too few such images are left out.
    """
    thresholds = {}
    for name in classes:
        negatives = [e.real[name] for e in evidence if name in e.real and name not in e.asked]
        if len(negatives) >= MIN_NEGATIVES:
            thresholds[name] = float(np.quantile(negatives, 1 - config.real_false_accept))
    return thresholds


def class_auc(evidence: Sequence[Evidence], classes: Sequence[str]) -> dict[str, float]:
    """Class -> area under the ROC curve of CLIP's cosine with the class, measured without labels.

    It is the probability that an image drawn for the class is closer to it than one whose prompt did not ask for it:
    near 1 where CLIP sees in the images what was asked for, and about 0.5 where CLIP does not know the class or the
    image model does not draw it. Classes with fewer than `MIN_NEGATIVES` images of either kind are left out. (Ours.)
    """
    if len(evidence) < 2 * MIN_NEGATIVES:
        return {}
    asked = _asked(evidence, classes)
    targets = np.array([e.target for e in evidence])
    cosines = np.array([e.cosines for e in evidence], dtype=np.float64)
    found = {}
    for index, name in enumerate(classes):
        own, others = cosines[targets == name, index], cosines[~asked[:, index], index]
        if min(len(own), len(others)) < MIN_NEGATIVES:
            continue
        others.sort()
        below, up_to = (np.searchsorted(others, own, side) for side in ("left", "right"))
        found[name] = float((below + up_to).mean() / (2 * len(others)))  # a tie counts half
    return found


def scores_of(
    item: Evidence, classes: Sequence[str], row: NDArray[np.float64], judgement: Judgement
) -> dict[str, float]:
    """The numbers of a verdict; `row` holds the probability of each class."""
    probabilities = dict(zip(classes, map(float, row), strict=True))
    others = [p for name, p in probabilities.items() if name not in item.asked]
    real = {}
    if item.target in item.real and item.target in judgement.like_real:
        real = {
            "real_probability": item.real[item.target],
            "real_threshold": judgement.like_real[item.target],
        }
    return {
        "probability": probabilities[item.target],
        "threshold": judgement.thresholds[item.target],
        "runner_up": max(others, default=0.0),
        "sharpness": item.sharpness,
        "blank": float(item.blank),
        "duplicate_cosine": item.duplicate_cosine,
        **real,
        **{f"{SCORE_OF}{name}": p for name, p in probabilities.items()},
    }


def _asked(evidence: Sequence[Evidence], classes: Sequence[str]) -> NDArray[np.bool_]:
    """(N, C): whether the prompt of an image asks for a class."""
    return np.array([[name in e.asked for name in classes] for e in evidence], dtype=bool).reshape(
        len(evidence), len(classes)
    )


def _centre(evidence: Sequence[Evidence], classes: Sequence[str]) -> tuple[float, ...]:
    """(C + B) median cosines of each class where not requested, and of each background; () with few images."""
    if len(evidence) < MIN_NEGATIVES:
        return ()
    n = len(classes)
    asked = _asked(evidence, classes)
    cosines = np.array([e.cosines for e in evidence], dtype=np.float64)
    if (~asked).sum(axis=0).min() < MIN_NEGATIVES:
        return ()
    of_classes = [float(np.median(cosines[~asked[:, i], i])) for i in range(n)]
    return (*of_classes, *map(float, np.median(cosines[:, n:], axis=0)))
