"""The simulator's stand-ins for witnesses err as often as they say."""

from dataclasses import astuple

import numpy as np
import pytest

from segsmith.protocols import Witness
from segsmith.tools.images.simulated_witnesses import (
    ATTENTION_ERRORS,
    DETECTOR_ERRORS,
    VLM_ERRORS,
    SimulatedAttention,
    SimulatedDetector,
    SimulatedVlm,
    WitnessErrors,
)
from segsmith.tools.images.simulator import Drawing
from segsmith.world.scene import PlacedObject, Scene

CLASSES = ("cat", "dog", "bus")


def truth(image_id):
    """Two cats and a bus."""
    objects = (
        PlacedObject("cat", 1, 100, (0, 0, 32, 32)),
        PlacedObject("cat", 2, 100, (64, 64, 96, 96)),
        PlacedObject("bus", 3, 500, (10, 40, 120, 100)),
    )
    instances = np.zeros((128, 128), np.uint8)
    for item in objects:
        x0, y0, x1, y1 = item.bbox_xyxy
        instances[y0:y1, x0:x1] = item.instance_id
    return Drawing(Scene(np.zeros((128, 128, 3), np.uint8), instances, objects), instances, ())


def said(make, count=3000, **options):
    return make(CLASSES, truth, 0, **options).testify([], [f"i{n}" for n in range(count)])


@pytest.mark.parametrize(
    ("make", "errors"), [(SimulatedDetector, DETECTOR_ERRORS), (SimulatedVlm, VLM_ERRORS)]
)
def test_they_err_at_the_stated_rates(make, errors):
    assert isinstance(make(CLASSES, truth, 0), Witness)
    answers = said(make)
    for name, there in (("cat", True), ("bus", True), ("dog", False)):
        reported = np.mean([answer.scores[name] > 0 for answer in answers])
        assert reported == pytest.approx(1 - errors.missed if there else errors.invented, abs=0.02)


def test_without_errors_they_are_right():
    none = WitnessErrors(0, 0)
    for answer in said(SimulatedVlm, 20, errors=none):
        assert answer.counts == {"cat": 2, "dog": 0, "bus": 1}
    for answer in said(SimulatedDetector, 20, errors=none):
        boxes = {s.box_xyxy for s in answer.sightings if s.class_name == "cat"}
        assert boxes == {(0, 0, 0.25, 0.25), (0.5, 0.5, 0.75, 0.75)}
        assert answer.scores["dog"] == 0 < answer.scores["bus"]


def test_counts_err_at_the_stated_rate():
    wrong = np.mean([answer.counts["cat"] not in (0, 2) for answer in said(SimulatedVlm)])
    assert wrong == pytest.approx(VLM_ERRORS.miscounted * (1 - VLM_ERRORS.missed), abs=0.02)


@pytest.mark.parametrize("make", [SimulatedDetector, SimulatedVlm])
def test_an_answer_depends_on_the_image_and_the_seed_only(make):
    together = said(make, 30)
    assert [make(CLASSES, truth, 0).testify([], [f"i{n}"])[0] for n in range(30)] == together
    assert [make(CLASSES, truth, 1).testify([], [f"i{n}"])[0] for n in range(30)] != together


def test_a_rate_is_a_share():
    every = (DETECTOR_ERRORS, VLM_ERRORS, ATTENTION_ERRORS)
    assert all(0 <= rate <= 1 for errors in every for rate in astuple(errors))


def test_attention_errs_at_the_stated_rates_and_peaks_on_the_object():
    assert isinstance(SimulatedAttention(CLASSES, truth, 0), Witness)
    answers = said(SimulatedAttention, 1000)
    for name, there in (("cat", True), ("bus", True), ("dog", False)):
        seen = [name in answer.maps for answer in answers]
        assert seen == [answer.scores[name] >= 0.1 for answer in answers]
        expected = 1 - ATTENTION_ERRORS.missed if there else ATTENTION_ERRORS.invented
        assert np.mean(seen) == pytest.approx(expected, abs=0.04)
    of_bus = np.mean([answer.maps["bus"] for answer in answers if "bus" in answer.maps], axis=0)
    assert of_bus[6:12, 3:14].min() > 2 * of_bus[:4, 6:].max(), "the bus is in rows 40 to 100 of 128"
    again = SimulatedAttention(CLASSES, truth, 0).testify([], ["i7"])[0]
    assert again.scores == answers[7].scores
    assert all((again.maps[name] == of_class).all() for name, of_class in answers[7].maps.items())
