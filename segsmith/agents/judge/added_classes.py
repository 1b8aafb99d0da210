"""Classes that are added to a run: what was measured of its images gets their columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from segsmith.agents.judge.measure import directions, text_shares
from segsmith.memory.ledger import Ledger
from segsmith.protocols import ImageTextEncoder

BATCH = 512


def measure_added_classes(
    ledger: Ledger,
    encoder: ImageTextEncoder,
    classes: Sequence[str],
    added: int,
    synonyms: Callable[[str], tuple[str, ...]],
) -> None:
    """Store each measured image's cosines with the last `added` of `classes`, and its prompt's shares of all classes.

    The image's CLIP vector is in its signature, so no image is read. The stored cosines keep their exact values.
    The centre of the region check is measured again with the classes.
    """
    texts = directions(encoder, classes, synonyms)
    before = len(classes) - added
    with ledger.transaction():
        for rows in ledger.measured_vectors(BATCH):
            vectors = np.stack([np.frombuffer(signature, "<f4")[: texts.shape[1]] for *_, signature in rows])
            new = vectors @ texts[before : len(classes)].T
            shares = text_shares(encoder, [text for _, text, _, _ in rows], texts[: len(classes)])
            ledger.replace_class_scores(
                (image_id, [*old[:before], *map(float, columns), *old[before:]], list(map(float, of_text)))
                for (image_id, _, old, _), columns, of_text in zip(rows, new, shares, strict=True)
            )
        ledger.region_centre = None
        ledger.judgement = None
