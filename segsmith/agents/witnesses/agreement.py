"""From what several sources say about a class in an image to the probability that it is there: pure functions.

Every source (the prompt, CLIP, the relabelling ViT, each witness) gives one of a few answers per image and class. How
often a source errs is estimated from the answers alone, by the EM algorithm of Dawid and Skene (1979, "Maximum
likelihood estimation of observer error-rates"): sources that usually agree with the others count for more. The model
takes their errors as independent, given the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SILENT = -1
"""The answer of a source that said nothing."""
ROUNDS = 50
SMOOTHING = 1.0
"""Added to each count, so that no answer is taken as impossible (ours)."""

LEVELS: Mapping[str, tuple[float, ...]] = {
    "prompt": (0.5,),
    "clip": (0.02, 0.1, 0.4, 0.8),
    "vit": (0.01, 0.1, 0.4, 0.8),
    "detector": (0.1, 0.3, 0.6),
    "vlm": (0.5,),
    "attention": (0.1, 0.3, 0.6),
}
"""Source -> the scores that separate its answers, ascending (ours)."""


@dataclass(frozen=True)
class ErrorRates:
    """How the sources answer where a class is there and where it is not.

    `answers[source][t][a]` is the probability of answer a where the class is absent (t = 0) or present (t = 1).
    """

    present: float
    """Share of the pairs of image and class in which the class is there."""
    answers: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]

    def weights(self, source: str) -> NDArray[np.float64]:
        """(A,) log-likelihood ratio of each answer; positive where it speaks for the class."""
        absent, present = (np.array(row, np.float64) for row in self.answers[source])
        return np.log(present) - np.log(absent)


def answer(source: str, score: float | None) -> int:
    """The answer that a score in [0, 1] stands for; `SILENT` for None."""
    return SILENT if score is None else sum(score >= level for level in LEVELS[source])


def estimate(answers: Mapping[str, NDArray[np.int64]], start: NDArray[np.float64]) -> ErrorRates:
    """Error rates of at least one source, from their (N,) answers about N pairs of image and class.

    `start` is (N,): the probability of the class in each pair to begin with, in [0, 1].
    """
    believed = np.asarray(start, np.float64)
    rates = _rates(answers, believed)
    for _ in range(ROUNDS):
        updated = probabilities(answers, rates)
        moved = float(np.abs(updated - believed).max(initial=0.0))
        believed, rates = updated, _rates(answers, updated)
        if moved < 1e-4:
            break
    return rates


def probabilities(answers: Mapping[str, NDArray[np.int64]], rates: ErrorRates) -> NDArray[np.float64]:
    """(N,) probability that the class is there, in [0, 1]; a source that is silent has no influence."""
    odds: NDArray[np.float64] | float = float(np.log(rates.present) - np.log1p(-rates.present))
    for source, given in answers.items():
        odds = odds + np.where(given == SILENT, 0.0, rates.weights(source)[given])
    return np.asarray(1 / (1 + np.exp(-np.asarray(odds))), np.float64)


def _rates(answers: Mapping[str, NDArray[np.int64]], believed: NDArray[np.float64]) -> ErrorRates:
    table = {}
    for source, given in answers.items():
        spoken = given != SILENT
        rows = []
        for weight in (1 - believed, believed):
            counts = np.bincount(given[spoken], weight[spoken], minlength=len(LEVELS[source]) + 1) + SMOOTHING
            rows.append(tuple(map(float, counts / counts.sum())))
        table[source] = (rows[0], rows[1])
    present = (believed.sum() + SMOOTHING) / (len(believed) + 2 * SMOOTHING)
    return ErrorRates(float(present), table)


def answers_of(scores: Sequence[Mapping[str, float | None]]) -> dict[str, NDArray[np.int64]]:
    """Source -> (N,) answers, of N mappings from source to score; sources that are never heard are left out."""
    sources = [source for source in LEVELS if any(item.get(source) is not None for item in scores)]
    return {s: np.array([answer(s, item.get(s)) for item in scores], np.int64) for s in sources}
