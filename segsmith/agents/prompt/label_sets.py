"""What a real dataset lacks, and which classes to request together (IAA). Pure functions of counts.

IAA builds each prompt from the label set of a real image, so that classes occur together as they do in reality. The
paper does not say which sets to prefer or how to balance the classes; that part is ours.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from segsmith.config import AugmentConfig

Pair = frozenset[str]


def count_classes(label_sets: Sequence[Sequence[str]], classes: Sequence[str]) -> dict[str, int]:
    """Class -> number of images that show it, in the order of `classes`."""
    counts = Counter(name for labels in label_sets for name in set(labels))
    return {name: counts[name] for name in classes}


def share_out(counts: Mapping[str, int], per_class: int, balance: float) -> dict[str, int]:
    """Class -> number of images to add; the sum is `per_class` times the number of classes.

    A share `balance`, in [0, 1], is given one by one to the class that has the fewest images so far, the rest evenly.
    At 0 every class gets `per_class`; at 1 the rarest classes come first, and a common class may get none.
    """
    total = per_class * len(counts)
    added = dict.fromkeys(counts, math.floor(per_class * (1 - balance)))
    for _ in range(total - sum(added.values())):
        poorest = min(counts, key=lambda name: counts[name] + added[name])
        added[poorest] += 1
    return added


def rare_pairs(label_sets: Sequence[Sequence[str]], classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """Pairs of classes and the number of images that show both, rarest first, then in class order."""
    counts = _pair_counts(label_sets)
    pairs = [(a, b, counts[frozenset((a, b))]) for a, b in combinations(classes, 2)]
    return sorted(pairs, key=lambda pair: pair[2])


class LabelSets:
    """Chooses companions for a class from the label sets of real images.

    A set is weighted by the square root of its frequency, so that rare combinations occur more often than in reality,
    and by the rarity of its classes, since common companions would otherwise undo the balance. A share
    `new_combinations` of the prompts combines a class with one that it rarely occurs with.
    """

    def __init__(
        self, label_sets: Sequence[Sequence[str]], classes: Sequence[str], config: AugmentConfig
    ) -> None:
        self._config = config
        self._pairs = _pair_counts(label_sets)
        self._frequency = count_classes(label_sets, classes)
        known = set(classes)
        self._sets = Counter(frozenset(labels) & known for labels in label_sets)

    def companions(self, class_name: str, suiting: Sequence[str], rng: random.Random) -> tuple[str, ...]:
        """Further classes for one prompt of `class_name`, at most ``max_classes - 1``, the rarest first.

        `suiting` are the classes that occur in the same places; only they are used for new combinations. A class
        that no image shows otherwise gets no companions.
        """
        room = self._config.max_classes - 1
        if room and suiting and rng.random() < self._config.new_combinations:
            weights = [
                self._rarity((name,)) / (1 + self._pairs[frozenset((class_name, name))]) for name in suiting
            ]
            return tuple(rng.choices(list(suiting), weights))
        sets = sorted((s for s in self._sets if class_name in s), key=sorted)
        if not sets:
            return ()
        weights = [math.sqrt(self._sets[s]) * self._rarity(s - {class_name}) for s in sets]
        (chosen,) = rng.choices(sets, weights)
        others = sorted(chosen - {class_name}, key=lambda name: (self._frequency[name], name))
        return tuple(others[:room])

    def _rarity(self, companions: Iterable[str]) -> float:
        """Weight in (0, 1]: 1 for the rarest class, less for others, and less the larger `balance` is."""
        least = min(self._frequency.values())
        ratio = math.prod((1 + least) / (1 + self._frequency[name]) for name in companions)
        return float(ratio**self._config.balance)


def _pair_counts(label_sets: Sequence[Sequence[str]]) -> Counter[Pair]:
    return Counter(frozenset(pair) for labels in label_sets for pair in combinations(sorted(set(labels)), 2))
