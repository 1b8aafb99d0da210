"""Train, val and test: no prompt family in two splits, every class in train, then the shares."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SPLITS = ("train", "val", "test")
ANY = ""
"""Key that counts all images, so that the sizes of the splits are kept as well."""


@dataclass(frozen=True)
class _Group:
    images: tuple[str, ...]
    counts: Mapping[str, int]  # images per class, and of all under ANY

    @property
    def classes(self) -> set[str]:
        return set(self.counts) - {ANY}


def split_by_group(
    groups: Mapping[str, str],
    labels: Mapping[str, Sequence[str]],
    shares: tuple[float, float, float],
    seed: int,
) -> dict[str, list[str]]:
    """Divide images into "train", "val" and "test"; the images of one group stay together.

    `groups` maps image id to group, `labels` image id to its classes (none is fine), `shares` are
    fractions that sum to 1. What holds, the strongest first:

    1. a group is in one split, and a split of share 0 is empty;
    2. train holds every class (so one group, or groups that each carry a class alone, are all train);
    3. val holds a group if train has one to spare;
    4. each class, and the set as a whole, is divided by `shares` (greedy, after the stratification of
       Sechidis et al. 2011, with a group in the place of an example).

    The result depends on the arguments alone, not on their order; the lists are sorted.
    """
    todo = _collect(groups, labels)
    random.Random(seed).shuffle(todo)
    total: Counter[str] = Counter()
    for group in todo:
        total.update(group.counts)
    allowed = [split for split, share in zip(SPLITS, shares, strict=True) if share > 0]
    want = {s: {c: n * share for c, n in total.items()} for s, share in zip(SPLITS, shares, strict=True)}
    placed: dict[str, list[_Group]] = {split: [] for split in SPLITS}
    have: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}

    def place(group: _Group, split: str) -> None:
        placed[split].append(group)
        have[split].update(group.counts)

    for group in _cover(todo, total):
        todo.remove(group)
        place(group, "train")
    if "val" in allowed and todo:
        group = min(todo, key=lambda g: _cost(g, have["val"], want["val"]))
        todo.remove(group)
        place(group, "val")
    # Large groups first: the small ones then even out the sizes.
    for group in sorted(todo, key=lambda g: -len(g.images)):
        place(group, min(allowed, key=lambda s: _cost(group, have[s], want[s])))
    return {split: sorted(i for group in placed[split] for i in group.images) for split in SPLITS}


def _collect(groups: Mapping[str, str], labels: Mapping[str, Sequence[str]]) -> list[_Group]:
    members: dict[str, list[str]] = defaultdict(list)
    for image_id in sorted(groups):
        members[groups[image_id]].append(image_id)
    collected = []
    for name in sorted(members):
        counts = Counter({ANY: len(members[name])})
        for image_id in members[name]:
            counts.update(set(labels.get(image_id, ())))
        collected.append(_Group(tuple(members[name]), counts))
    return collected


def _cover(groups: Sequence[_Group], total: Mapping[str, int]) -> list[_Group]:
    """Few groups that together hold every class, chosen for the rarest class first; at least one if there is any."""
    chosen: list[_Group] = []
    missing = set(total) - {ANY}
    for name in sorted(missing, key=lambda c: (total[c], c)):
        if name in missing:
            holders = [g for g in groups if name in g.counts]
            best = min(holders, key=lambda g: (-len(g.classes & missing), len(g.images)))
            chosen.append(best)
            missing -= best.classes
    return chosen or list(groups[:1])


def _cost(group: _Group, have: Mapping[str, int], want: Mapping[str, float]) -> float:
    """Change of the split's squared error, relative to its target, when it takes the group."""
    return sum(n * (2 * (have[c] - want[c]) + n) / want[c] for c, n in group.counts.items())
