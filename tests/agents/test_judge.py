"""The judge's decisions from stored numbers, and its measures on real pictures."""

import numpy as np
import pytest

from segsmith.agents.judge import Evidence, calibrate, class_probabilities, decide, with_article
from segsmith.config import JudgeConfig
from segsmith.segmentation.quality import is_blank, sharpness

CONFIG = JudgeConfig(top_k=2)


def seen(name, p=0.95, *, prompt=None, sharp=1.0, blank=False, like=0.1, target="cat", other=0.05):
    return Evidence(
        name, prompt or f"p-{name}", target, (target,), {"cat": p, "dog": other}, sharp, blank, like
    )


def reasons(evidence, config=CONFIG, quota=100):
    return {v.image_id: v.reason for v in decide(evidence, config, quota)[0]}


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (seen("x"), "ok"),
        (seen("x", blank=True), "blank"),
        (seen("x", like=0.999), "duplicate"),
        (seen("x", sharp=0.1), "blurred"),
        (seen("x", p=0.2), "not_there"),
    ],
)
def test_every_fault_has_its_reason(item, reason):
    assert reasons([seen(str(i)) for i in range(5)] + [item])["x"] == reason


def test_only_the_best_of_a_prompt_are_kept():
    got = reasons([seen("a", 0.9, prompt="p"), seen("b", 0.99, prompt="p"), seen("c", 0.95, prompt="p")])
    assert got == {"a": "beyond_top_k", "b": "ok", "c": "ok"}


def test_the_quota_keeps_the_best_and_calls_the_rest_surplus():
    got = reasons([seen("a", 0.9), seen("b", 0.99), seen("c", 0.95)], quota=2)
    assert got == {"a": "surplus", "b": "ok", "c": "ok"}


def test_without_a_judge_all_pass_in_the_order_of_drawing():
    evidence = [seen("a", 0.0, blank=True), seen("b", 0.99), seen("c", 0.99, like=1.0)]
    assert reasons(evidence, JudgeConfig(enabled=False), quota=2) == {"a": "ok", "b": "ok", "c": "surplus"}


def test_threshold_rises_with_what_other_prompts_images_score():
    quiet = [seen(str(i), target="dog", p=0.05, other=0.9) for i in range(30)]
    loud = [seen(str(i), target="dog", p=0.7, other=0.9) for i in range(30)]
    assert calibrate(quiet, CONFIG)["cat"] == CONFIG.min_probability
    assert calibrate(loud, CONFIG)["cat"] == pytest.approx(0.7)


def test_few_negatives_leave_the_floor():
    assert calibrate([seen("a", target="dog", p=0.8)], CONFIG)["cat"] == CONFIG.min_probability


def test_verdicts_carry_their_numbers():
    verdict = decide([seen("a", 0.8)], CONFIG, 1)[0][0]
    assert verdict.scores["probability"] == 0.8
    assert verdict.scores["threshold"] == CONFIG.min_probability
    assert verdict.scores["p:dog"] == 0.05


def test_a_companion_does_not_compete_but_a_stranger_does():
    cosines = np.array([0.5, 0.5, 0.0, 0.0], dtype=np.float32)  # cat, dog, bus, background
    together = class_probabilities(cosines, 3, asked=[0, 1], scale=50)
    alone = class_probabilities(cosines, 3, asked=[0], scale=50)
    assert together[0] > 0.99
    assert alone[0] == pytest.approx(0.5, abs=0.01)


def test_sharpness_sees_blur_but_not_contrast():
    from scipy import ndimage

    rng = np.random.default_rng(0)
    picture = (rng.random((64, 64, 3)) * 255).astype(np.uint8)
    faint = (picture // 4 + 90).astype(np.uint8)
    blurred = ndimage.gaussian_filter(picture, (2, 2, 0))
    assert sharpness(faint) == pytest.approx(sharpness(picture), rel=0.05)
    assert sharpness(blurred) < 0.5 * sharpness(picture)


def test_blank():
    assert is_blank(np.full((32, 32, 3), 120, dtype=np.uint8))
    assert not is_blank(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize(("noun", "text"), [("cat", "a cat"), ("aeroplane", "an aeroplane")])
def test_article(noun, text):
    assert with_article(noun) == text
