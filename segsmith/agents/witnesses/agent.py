"""Asks the witnesses about accepted images, and turns all that is known about an image into labels.

What a witness says is stored once, so that verdicts and labels can be decided again without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from segsmith.agents.witnesses.agreement import ErrorRates, answers_of, estimate, probabilities
from segsmith.config import WitnessesConfig
from segsmith.memory.ledger import ImageRow, Ledger, TestimonyRow, WitnessKind
from segsmith.memory.run_folder import RunFolder
from segsmith.protocols import Releasable, Witness

CHUNK = 16
"""Images that a witness is asked about between two commits."""
SAMPLE = 4096
"""Images from which error rates are estimated: all of a smaller run (ours)."""
LABELLED, UNLABELLED = 0.95, 0.02
"""Probability that the estimate starts from, for classes with and without a label (ours)."""

OnImages = Callable[[int, int], None]
"""Takes the number of images a witness was asked about, and that of all."""
OnAnswers = Callable[[int, Sequence[TestimonyRow]], None]
"""Takes the number of further images that a witness was asked about, and its answers."""
AskElsewhere = Callable[[WitnessKind, str, Sequence[ImageRow], OnAnswers], None]
"""Asks a witness, of which it is told kind and name, about images, in their order."""
Item = TypeVar("Item")
Scores = Mapping[str, float | None]
"""Source (`LEVELS`) -> score of one class in one image, in [0, 1]; None where the source said nothing."""


class WitnessAgent:
    """Hears the witnesses of a run. `witnesses` maps a kind to what opens that witness; it may be empty."""

    def __init__(
        self,
        witnesses: Mapping[WitnessKind, Callable[[], Witness]],
        ledger: Ledger,
        run: RunFolder,
        classes: Sequence[str],
        elsewhere: AskElsewhere | None = None,
        names: Mapping[WitnessKind, Callable[[], str]] | None = None,
    ) -> None:
        """With `elsewhere`, others ask the witnesses of `names`, which are then not opened here."""
        self._elsewhere = elsewhere
        self._names = names or {}
        self._witnesses = witnesses
        self._ledger = ledger
        self._run = run
        self._classes = tuple(classes)

    @property
    def enabled(self) -> bool:
        """Whether the run has a witness."""
        return bool(self._witnesses)

    def hear(
        self,
        on_images: OnImages = lambda done, total: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> int:
        """Ask every witness about the accepted images that it has not spoken about; returns the number of answers.

        Images without a usable answer are counted in an event of the ledger, and asked about again the next time.
        """
        heard = 0
        for kind, open_witness in self._witnesses.items():
            if self._elsewhere is not None and kind in self._names:
                name = self._names[kind]()
                heard += self._hear(kind, name, partial(self._elsewhere, kind, name), on_images)
                continue
            witness = open_witness()
            heard += self._hear(
                kind, witness.name, partial(self._ask_all, kind, witness, stopped=stopped), on_images
            )
            if isinstance(witness, Releasable):
                witness.release()
        return heard

    def _hear(
        self,
        kind: WitnessKind,
        name: str,
        ask: Callable[[Sequence[ImageRow], OnAnswers], None],
        on_images: OnImages,
    ) -> int:
        """Let `ask` ask a witness about all images that it is to speak about; returns the number of answers."""
        rows = self._ledger.unheard(kind, name, self._classes)
        if not rows:
            return 0
        done = heard = 0

        def keep(asked: int, answers: Sequence[TestimonyRow]) -> None:
            nonlocal done, heard
            self._ledger.add_testimonies(answers)
            done, heard = done + asked, heard + len(answers)
            on_images(done, len(rows))

        ask(rows, keep)
        self._ledger.log("witness", witness=kind, model=name, images=done, without_answer=done - heard)
        return heard

    def _ask_all(
        self,
        kind: WitnessKind,
        witness: Witness,
        rows: Sequence[ImageRow],
        keep: OnAnswers,
        *,
        stopped: Callable[[], bool],
    ) -> None:
        """Ask a witness in this process, until the user stops the run."""
        for chunk in chunks(rows):
            if stopped():
                break
            keep(len(chunk), self._ask(kind, witness, chunk))

    def _ask(self, kind: WitnessKind, witness: Witness, rows: Sequence[ImageRow]) -> list[TestimonyRow]:
        said = witness.testify([self._run.read_image(row) for row in rows], [row.id for row in rows])
        return [
            TestimonyRow(row.id, kind, witness.name, testimony)
            for row, testimony in zip(rows, said, strict=True)
            if testimony is not None
        ]


class Agreement:
    """Class probabilities of images, from the answers of all sources and their estimated error rates."""

    def __init__(self, rates: ErrorRates, config: WitnessesConfig) -> None:
        self.rates = rates
        self._config = config

    @classmethod
    def of(
        cls, scores: Sequence[Sequence[Scores]], labelled: NDArray[np.bool_], config: WitnessesConfig
    ) -> Agreement:
        """With error rates estimated from a sample: `scores` of N images and C classes, `labelled` (N, C)."""
        start = np.where(labelled.ravel(), LABELLED, UNLABELLED)
        return cls(estimate(answers_of([pair for image in scores for pair in image]), start), config)

    def probabilities(self, scores: Sequence[Sequence[Scores]]) -> NDArray[np.float64]:
        """(N, C) probability of each class in each image, in [0, 1]."""
        if not scores:
            return np.zeros((0, 0))
        answers = answers_of([pair for image in scores for pair in image])
        known = {source: given for source, given in answers.items() if source in self.rates.answers}
        return probabilities(known, self.rates).reshape(len(scores), -1)

    def labels(self, probabilities: Mapping[str, float], target: str) -> tuple[str, ...]:
        """The classes that are there. The target is always kept, because the judge accepted the image for it."""
        return tuple(
            name for name, p in probabilities.items() if name == target or p >= self._config.label_from
        )


def doubted(probabilities: Mapping[str, float], doubt: float) -> tuple[str, ...]:
    """The classes of which the sources do not agree whether they are there."""
    return tuple(name for name, p in probabilities.items() if doubt < p < 1 - doubt)


def chunks(items: Sequence[Item]) -> Iterator[list[Item]]:
    """The images that a witness is asked about at once."""
    remaining = iter(items)
    while chunk := list(islice(remaining, CHUNK)):
        yield chunk
