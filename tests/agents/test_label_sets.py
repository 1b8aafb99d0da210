"""What a real dataset lacks, and whom a class is shown with."""

import itertools
import math
import random
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segsmith.agents.prompt.label_sets import LabelSets, count_classes, rare_pairs, share_out
from segsmith.config import AugmentConfig

CLASSES = ("cat", "dog", "bus", "boat")
ANY_MACHINE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
COUNTS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 60), min_size=1)


@ANY_MACHINE
@given(COUNTS, st.integers(1, 30), st.floats(0, 1))
def test_all_images_are_shared_out_and_the_rarer_class_gets_no_fewer(counts, per_class, balance):
    added = share_out(counts, per_class, balance)
    assert sum(added.values()) == per_class * len(counts)
    level = {name: counts[name] + added[name] for name in counts}
    evenly = math.floor(per_class * (1 - balance))
    for rarer, commoner in itertools.permutations(counts, 2):
        if counts[rarer] <= counts[commoner]:
            assert added[rarer] >= added[commoner] - (counts[rarer] == counts[commoner])
            assert level[rarer] <= max(level[commoner] + 1, counts[rarer] + evenly)


@ANY_MACHINE
@given(COUNTS, st.integers(1, 30))
def test_without_balance_every_class_gets_the_same(counts, per_class):
    assert set(share_out(counts, per_class, 0.0).values()) == {per_class}


def test_with_full_balance_the_rarest_are_filled_up_first():
    assert share_out({"cat": 50, "dog": 10, "bus": 0}, 10, 1.0) == {"cat": 0, "dog": 10, "bus": 20}


def test_pairs_never_seen_come_first():
    sets = [("cat", "dog"), ("cat", "dog"), ("cat", "bus"), ("boat",)]
    assert count_classes(sets, CLASSES) == {"cat": 3, "dog": 2, "bus": 1, "boat": 1}
    pairs = rare_pairs(sets, CLASSES)
    assert pairs[0] == ("cat", "boat", 0)
    assert pairs[-1] == ("cat", "dog", 2)


def drawn(label_sets, name, suiting=(), count=400, **settings):
    deal = LabelSets(label_sets, CLASSES, AugmentConfig(**settings))
    rng = random.Random(0)
    return Counter(deal.companions(name, suiting, rng) for _ in range(count))


def test_companions_are_those_of_a_real_image():
    sets = [("cat",)] * 16 + [("cat", "dog")] * 4 + [("bus", "boat")]
    found = drawn(sets, "cat", ("bus",), new_combinations=0, balance=0)
    assert set(found) == {(), ("dog",)}
    # 4 to 2 by the square root; 4 to 1 by frequency
    assert 0.25 < found[("dog",)] / 400 < 0.42


def test_common_classes_do_not_come_along_everywhere():
    sets = [("cat", "dog")] * 4 + [("cat", "boat")] * 4 + [("dog",)] * 20 + [("bus",)]
    plain, balanced = (drawn(sets, "cat", new_combinations=0, balance=b) for b in (0, 1))
    assert abs(plain[("dog",)] - 200) < 50
    assert balanced[("dog",)] < 120


def test_new_combinations_favour_what_was_never_seen_together():
    sets = [("cat", "dog")] * 9 + [("cat",)]
    found = drawn(sets, "cat", ("dog", "bus"), new_combinations=1)
    assert found[("bus",)] > 5 * found[("dog",)]


def test_a_set_is_cut_to_its_rarest_classes():
    sets = [("cat", "dog", "bus", "boat"), ("dog", "bus"), ("dog",)]
    assert set(drawn(sets, "cat", max_classes=3, new_combinations=0)) == {("boat", "bus")}
    assert set(drawn(sets, "cat", max_classes=1, new_combinations=1)) == {()}


def test_a_class_no_image_shows_stands_alone():
    assert set(drawn([("cat", "dog")], "boat")) == {()}
