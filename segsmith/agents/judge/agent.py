"""The judge: measures every image once and decides from the stored numbers, with a reason.

Measuring needs CLIP. Deciding is a pure function of what was measured (`decide`), so a run can be judged again with
other settings without drawing or measuring anything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from segsmith.agents.image import Preview, PreviewScore
from segsmith.agents.judge.real_classifier import RealClassifier
from segsmith.agents.prompt.space import with_article
from segsmith.config import JudgeConfig
from segsmith.memory.ledger import Evidence, ImageRow, LabelRow, Ledger, PromptRow, VerdictRow
from segsmith.memory.run_folder import RunFolder
from segsmith.protocols import ImageTextEncoder
from segsmith.reasons import VerdictReason
from segsmith.segmentation.image_ops import grey, is_blank, sharpness
from segsmith.types import Image, Vectors

TEMPLATES = ("a photo of {}", "a picture of {}")
MIN_NEGATIVES = 20
"""Number of images whose prompts did not ask for a class from which its threshold is calibrated."""
UNCALIBRATED = 0.3
"""Threshold with fewer negatives. It is higher because cosines are not centred then."""
MAX_THRESHOLD = 0.9
"""Upper limit of calibrated thresholds: some negatives do show the class, though nobody asked for it."""
THUMBNAIL = 16
CHUNK = 32
"""Images measured between two commits; a crash loses at most the measurements of one chunk."""


@dataclass(frozen=True)
class Decision:
    """Verdicts in the order of the evidence, and the numbers behind them."""

    verdicts: list[VerdictRow]
    thresholds: dict[str, float]
    probabilities: NDArray[np.float64]
    """(N, C) CLIP probability of every class in every image."""


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
    probabilities = class_probabilities(evidence, classes, scale)
    thresholds = calibrate(evidence, classes, probabilities, config)
    like_real = calibrate_real(evidence, classes, config)
    target = {
        e.image_id: float(p[classes.index(e.target)]) for e, p in zip(evidence, probabilities, strict=True)
    }
    typical = float(np.median([e.sharpness for e in evidence])) if evidence else 0.0
    reasons: dict[str, VerdictReason] = {}
    passed: list[Evidence] = []
    reviewed = reviewed or {}
    chosen = [e for e in evidence if reviewed.get(e.image_id)]
    for item in evidence:
        if item.image_id in reviewed:
            reasons[item.image_id] = VerdictReason.PERSON
        elif not config.enabled:
            passed.append(item)
        elif item.blank:
            reasons[item.image_id] = VerdictReason.BLANK
        elif item.duplicate_cosine >= config.duplicate_cosine:
            reasons[item.image_id] = VerdictReason.DUPLICATE
        elif item.sharpness < config.min_sharpness * typical:
            reasons[item.image_id] = VerdictReason.BLURRED
        elif target[item.image_id] < thresholds[item.target]:
            reasons[item.image_id] = VerdictReason.NOT_THERE
        elif item.real.get(item.target, 1.0) < like_real.get(item.target, 0.0):
            reasons[item.image_id] = VerdictReason.UNLIKE_REAL
        else:
            passed.append(item)

    if config.enabled:  # best first; with the judge disabled, in the order of drawing
        passed.sort(key=lambda e: (-target[e.image_id], e.image_id))
    of_prompt: Counter[str] = Counter()
    of_class: Counter[str] = Counter()
    for item in chosen:
        of_prompt[item.prompt_id] += 1
        of_class[item.target] += 1
    for item in passed:
        if config.enabled and of_prompt[item.prompt_id] >= config.top_k:
            reasons[item.image_id] = VerdictReason.BEYOND_TOP_K
        elif of_class[item.target] >= quota[item.target]:
            reasons[item.image_id] = VerdictReason.SURPLUS
        else:
            reasons[item.image_id] = VerdictReason.OK
            of_prompt[item.prompt_id] += 1
            of_class[item.target] += 1
    verdicts = [
        VerdictRow(
            e.image_id,
            reviewed.get(e.image_id, reasons[e.image_id] == VerdictReason.OK),
            reasons[e.image_id],
            _scores(e, classes, p, thresholds, like_real),
        )
        for e, p in zip(evidence, probabilities, strict=True)
    ]
    return Decision(verdicts, thresholds, probabilities)


def class_probabilities(
    evidence: Sequence[Evidence],
    classes: Sequence[str],
    scale: float,
    among: Sequence[Evidence] | None = None,
) -> NDArray[np.float64]:
    """(N, C) probability in [0, 1] of each class in each image, from centred cosines.

    Two steps on top of CLIP's softmax, both ours:

    - *Centring.* The class's median cosine over images whose prompts did not ask for it is subtracted first. Some
      class names are closer to every image than others; this removes that bias without labels.
    - *Rivals.* A requested class competes with the backgrounds and with the classes that were not requested, but not
      with its companions; otherwise neither the cat nor the dog of a requested pair could exceed one half. A class
      that was not requested competes with all others.

    The medians are those of `among`, by default of the evidence itself.
    """
    if not evidence:
        return np.zeros((0, len(classes)))
    asked = np.array([[name in e.asked for name in classes] for e in evidence])
    cosines = np.array([e.cosines for e in evidence], dtype=np.float64)
    logits = scale * (cosines - _centre(evidence if among is None else among, classes))
    n = len(classes)
    probabilities = np.empty((len(evidence), n))
    for row, (values, named) in enumerate(zip(logits, asked, strict=True)):
        companions = np.concatenate([named, np.zeros(len(values) - n, dtype=bool)])
        for index in range(n):
            rivals = ~companions if named[index] else np.ones(len(values), dtype=bool)
            rivals[index] = True
            probabilities[row, index] = 1 / np.sum(np.exp(values[rivals] - values[index]))
    return probabilities


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
    for index, name in enumerate(classes):
        if name in config.thresholds:
            thresholds[name] = config.thresholds[name]
            continue
        negatives = [p[index] for e, p in zip(evidence, probabilities, strict=True) if name not in e.asked]
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


def _centre(evidence: Sequence[Evidence], classes: Sequence[str]) -> NDArray[np.float64] | float:
    """(C + B,) median cosine of each class where not requested, and of each background; 0 with few images."""
    if len(evidence) < MIN_NEGATIVES:
        return 0.0
    n = len(classes)
    asked = np.array([[name in e.asked for name in classes] for e in evidence])
    cosines = np.array([e.cosines for e in evidence], dtype=np.float64)
    if (~asked).sum(axis=0).min() < MIN_NEGATIVES:
        return 0.0
    classes = [np.median(cosines[~asked[:, i], i]) for i in range(n)]
    return np.concatenate([classes, np.median(cosines[:, n:], axis=0)])


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
        self._signatures: list[Vectors] | None = None

    def judge(self) -> dict[str, float]:
        """Measure what is new, decide about everything drawn so far, and return the thresholds.

        Earlier verdicts may change, because thresholds and ranks depend on all images. The pseudo-labels of accepted
        images follow SynthSeg-Agents Fig. 3: classes that score high in prompt space *and* in image space.
        """
        self.measure()
        decision = reconsider(self._ledger, self._classes, self._config, self._quota)
        record(self._ledger, decision, self._classes, self._config)
        return decision.thresholds

    def measure(self, rows: Sequence[ImageRow] | None = None, images: Sequence[Image] | None = None) -> None:
        """Measure the images that have no evidence yet, or those of `rows`, in the order they were drawn.

        `images` are the pixels of `rows`, where they are in memory; otherwise the files are read. The rows must be in
        the ledger; those that have evidence are skipped. The classifier trained on real images is not asked about
        `rows`, but about all images at once.
        """
        every = rows is None
        rows = self._ledger.unmeasured() if rows is None else rows
        for start in range(0, len(rows), CHUNK):
            chunk = range(start, min(start + CHUNK, len(rows)))
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

        Cosines are centred by what was measured of the images judged so far. Others are being measured meanwhile;
        with them, the scores would depend on who was faster. The threshold is that of the last judgement.
        """
        cosines = self._encoder.embed_images([preview.image for preview in previews]) @ self._texts.T
        seen = [
            Evidence("", p.id, p.class_name, p.classes, tuple(map(float, cosine)), 1.0, False, -1.0)
            for p, cosine in zip([preview.prompt for preview in previews], cosines, strict=True)
        ]
        thresholds = self._ledger.thresholds
        judged = self._ledger.verdicts().keys()
        earlier = [e for i, e in self._ledger.evidence().items() if i in judged] if thresholds else []
        shares = class_probabilities(seen, self._classes, self._encoder.logit_scale, among=earlier)
        start = max(self._config.min_probability, UNCALIBRATED)
        return [
            PreviewScore(float(row[self._classes.index(e.target)]), thresholds.get(e.target, start))
            for e, row in zip(seen, shares, strict=True)
        ]

    def returned(self, prompt_ids: Sequence[str]) -> dict[str, list[str]]:
        """Class -> those of the prompts of which no image shows the class.

        They go back to the prompt agent. Prompts are not blamed for blurred or duplicate images.
        """
        verdicts = self._ledger.verdicts()
        reasons: dict[str, set[str]] = defaultdict(set)
        for row in self._ledger.images():
            reasons[row.prompt_id].add(verdicts[row.id].reason if row.id in verdicts else "undecided")
        for undrawn in self._ledger.undrawn():  # the online filter uses the judge's scores
            early = undrawn.reason == "filtered"
            reasons[undrawn.prompt_id].add(VerdictReason.NOT_THERE if early else undrawn.reason)
        failed: dict[str, list[str]] = {}
        for prompt_id in prompt_ids:
            if reasons[prompt_id] and reasons[prompt_id] <= {
                VerdictReason.NOT_THERE,
                VerdictReason.UNLIKE_REAL,
            }:
                failed.setdefault(self._ledger.prompt(prompt_id).class_name, []).append(prompt_id)
        return failed

    def _measure(self, rows: Sequence[ImageRow], images: Sequence[Image]) -> None:
        if not rows:
            return
        vectors = self._encoder.embed_images(images)
        cosines = vectors @ self._texts.T
        measured = []
        for row, image, vector, cosine in zip(rows, images, vectors, cosines, strict=True):
            prompt = self._ledger.prompt(row.prompt_id)
            signature = _thumbnail(image)
            likeness = self._likeness(vector, signature)
            both = np.concatenate([vector, signature]).astype("<f4")
            self._known().append(both)
            measured.append(
                Evidence(
                    image_id=row.id,
                    prompt_id=prompt.id,
                    target=prompt.class_name,
                    asked=prompt.classes,
                    cosines=tuple(map(float, cosine)),
                    text_shares=self._text_shares(prompt.text),
                    sharpness=float(sharpness(image)),
                    blank=bool(is_blank(image)),
                    duplicate_cosine=likeness,
                    signature=both.tobytes(),
                )
            )
        self._ledger.add_evidence(measured)

    def _known(self) -> list[Vectors]:
        """Signatures of all measured images; read from the ledger once."""
        if self._signatures is None:
            self._signatures = [np.frombuffer(data, "<f4") for data in self._ledger.signatures()]
        return self._signatures

    def _likeness(self, vector: Vectors, thumbnail: Vectors) -> float:
        """Likeness to the most similar earlier image, in [-1, 1]: the smaller of CLIP cosine and pixel correlation.

        CLIP alone would take two cats on similar streets for the same image, pixels alone two empty skies.
        """
        if not self._known():
            return -1.0
        earlier = np.stack(self._known())
        split = len(vector)
        return float(np.max(np.minimum(earlier[:, :split] @ vector, earlier[:, split:] @ thumbnail)))

    def _text_shares(self, text: str) -> tuple[float, ...]:
        cosines = self._encoder.embed_texts([text])[0] @ self._texts[: len(self._classes)].T
        weights = np.exp((cosines - cosines.max()) * self._encoder.logit_scale)
        return tuple(map(float, weights / weights.sum()))


def reconsider(
    ledger: Ledger, classes: Sequence[str], config: JudgeConfig, quota: Mapping[str, int]
) -> Decision:
    """Decide about every measured image from the ledger alone; writes nothing and loads no model."""
    evidence = list(ledger.evidence().values())
    reviewed = {i: row.action == "accept" for i, row in ledger.decisions("verdict").items()}
    return decide(evidence, classes, ledger.logit_scale, config, quota, reviewed)


def record(ledger: Ledger, decision: Decision, classes: Sequence[str], config: JudgeConfig) -> None:
    """Write verdicts, thresholds and the labels of accepted images that follow from them, in one transaction."""
    prompts = {p.id: p for p in ledger.prompts()}
    prompt_of = {image.id: prompts[image.prompt_id] for image in ledger.images()}
    measured = ledger.evidence()
    labels: list[LabelRow] = []
    for verdict, shares in zip(decision.verdicts, decision.probabilities, strict=True):
        if verdict.accepted:
            prompt = prompt_of[verdict.image_id]
            sure = dict.fromkeys(prompt.classes, 1.0)
            labels.append(LabelRow(verdict.image_id, "prompt", prompt.classes, sure))
            named = list(zip(classes, measured[verdict.image_id].text_shares, shares, strict=True))
            labels.append(_pseudo_label(verdict.image_id, prompt, named, decision.thresholds, config))
    with ledger.transaction():
        ledger.add_labels(labels)
        ledger.thresholds = decision.thresholds
        ledger.add_verdicts(decision.verdicts)


def _pseudo_label(
    image_id: str,
    prompt: PromptRow,
    shares: Sequence[tuple[str, float, float]],
    thresholds: Mapping[str, float],
    config: JudgeConfig,
) -> LabelRow:
    """Classes that score high in prompt and image space; `shares` are (class, in text, in image)."""
    chosen = tuple(
        name
        for name, in_text, in_image in shares
        if name == prompt.class_name  # the judge accepted the image for its target
        or (in_text >= config.pseudo_prompt and in_image >= thresholds[name])
    )
    return LabelRow(image_id, "clip", chosen, {name: float(min(a, b)) for name, a, b in shares})


def background_prompts() -> list[str]:
    """Descriptions of images without an object, which compete with every class."""
    text = (resources.files("segsmith.prompts") / "backgrounds.txt").read_text("utf-8")
    return [line for line in text.splitlines() if line.strip()]


def directions(
    encoder: ImageTextEncoder, classes: Sequence[str], synonyms: Callable[[str], tuple[str, ...]]
) -> Vectors:
    """(C + B, D) unit vectors of the class names and of the descriptions of images without an object."""
    of_classes = [_mean_direction(encoder, synonyms(name)[:3]) for name in classes]
    return np.stack([*of_classes, *encoder.embed_texts(background_prompts())])


def _mean_direction(encoder: ImageTextEncoder, names: Sequence[str]) -> Vectors:
    texts = [template.format(with_article(name)) for name in names for template in TEMPLATES]
    mean = encoder.embed_texts(texts).mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean), dtype=np.float32)


def _thumbnail(image: Image) -> Vectors:
    """(THUMBNAIL**2,) unit vector of the grey image's block means, minus their mean."""
    values = grey(image)
    height, width = (side // THUMBNAIL * THUMBNAIL for side in values.shape)
    blocks = values[:height, :width].reshape(THUMBNAIL, height // THUMBNAIL, THUMBNAIL, width // THUMBNAIL)
    flat = blocks.mean(axis=(1, 3)).ravel()
    flat = flat - flat.mean()
    return np.asarray(flat / (np.linalg.norm(flat) + 1e-6), dtype=np.float32)


def _scores(
    item: Evidence,
    classes: Sequence[str],
    shares: NDArray[np.float64],
    thresholds: Mapping[str, float],
    like_real: Mapping[str, float],
) -> dict[str, float]:
    probabilities = dict(zip(classes, map(float, shares), strict=True))
    others = [p for name, p in probabilities.items() if name not in item.asked]
    real = {}
    if item.target in item.real and item.target in like_real:
        real = {"real_probability": item.real[item.target], "real_threshold": like_real[item.target]}
    return {
        "probability": probabilities[item.target],
        "threshold": thresholds[item.target],
        "runner_up": max(others, default=0.0),
        "sharpness": item.sharpness,
        "blank": float(item.blank),
        "duplicate_cosine": item.duplicate_cosine,
        **real,
        **{f"p:{name}": p for name, p in probabilities.items()},
    }
