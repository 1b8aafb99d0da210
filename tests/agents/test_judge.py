"""The judge's decisions from stored numbers, and its measurements of images."""

from dataclasses import replace

import numpy as np
import pytest

from segsmith.agents.judge.agent import JudgeAgent, calibrate, class_probabilities, decide, with_article
from segsmith.config import JudgeConfig
from segsmith.memory.ledger import Evidence
from segsmith.segmentation.image_ops import is_blank, sharpness
from segsmith.testing import made_up_run
from segsmith.tools.vision.clip import OpenClipEncoder

CONFIG = JudgeConfig(top_k=2, min_probability=0.32)
CLASSES = ("cat", "dog")


def seen(name, p=0.95, *, prompt=None, sharp=1.0, blank=False, like=0.1, target="cat"):
    """Evidence whose softmax over cat, dog and one background gives its target `p` and splits the rest."""
    rest = (1 - p) / 2
    cat, dog = (p, rest) if target == "cat" else (rest, p)
    return Evidence(
        name, prompt or f"p-{name}", target, (target,), tuple(np.log([cat, dog, rest])), sharp, blank, like
    )


def judged(evidence, config=CONFIG, quota=100):
    return decide(evidence, CLASSES, 1.0, config, dict.fromkeys(CLASSES, quota))


def reasons(*arguments, **options):
    return {v.image_id: v.reason for v in judged(*arguments, **options).verdicts}


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


def test_the_classifier_trained_on_real_images_is_a_second_judge():
    """Its threshold comes from images whose prompts did not ask for the class; classes without a score pass."""
    others = [replace(seen(f"n{i}", target="dog"), real={"cat": i / 40}) for i in range(40)]
    asked = [
        replace(seen("like"), real={"cat": 0.9}),
        replace(seen("unlike"), real={"cat": 0.3}),
        seen("mute"),
    ]
    got = reasons([*others, *asked], JudgeConfig(min_probability=0.3, real_false_accept=0.5))
    assert (got["like"], got["unlike"], got["mute"]) == ("ok", "unlike_real", "ok")
    assert {got[f"n{i}"] for i in range(40)} == {"ok"}
    verdicts = {v.image_id: v for v in judged([*others, *asked]).verdicts}
    assert verdicts["unlike"].scores["real_probability"] == 0.3


def test_with_few_images_the_second_judge_has_no_threshold():
    assert reasons([seen("b", target="dog"), replace(seen("a"), real={"cat": 0.0})])["a"] == "ok"


def test_only_the_best_of_a_prompt_are_kept():
    got = reasons([seen("a", 0.9, prompt="p"), seen("b", 0.99, prompt="p"), seen("c", 0.95, prompt="p")])
    assert got == {"a": "beyond_top_k", "b": "ok", "c": "ok"}


def test_the_quota_keeps_the_best_and_calls_the_rest_surplus():
    got = reasons([seen("a", 0.9), seen("b", 0.99), seen("c", 0.95)], quota=2)
    assert got == {"a": "surplus", "b": "ok", "c": "ok"}


def test_without_a_judge_all_pass_in_the_order_of_drawing():
    evidence = [seen("a", 0.01, blank=True), seen("b", 0.99), seen("c", 0.99, like=1.0)]
    assert reasons(evidence, JudgeConfig(enabled=False), quota=2) == {"a": "ok", "b": "ok", "c": "surplus"}


def test_the_threshold_is_what_few_images_of_other_prompts_reach():
    evidence = [seen(str(i), target="dog") for i in range(40)]
    probabilities = np.stack([np.linspace(0, 1, 40), np.ones(40)], axis=1)
    config = JudgeConfig(false_accept=0.25, min_probability=0.32)
    assert calibrate(evidence, CLASSES, probabilities, config)["cat"] == pytest.approx(0.75)
    assert calibrate(evidence, CLASSES, probabilities * 0.1, config)["cat"] == 0.32
    assert calibrate(evidence[:5], CLASSES, probabilities[:5], config)["cat"] == 0.32, (
        "too few to calibrate on"
    )


def test_a_class_name_close_to_every_image_gets_no_advantage():
    plain = [seen(f"c{i}", 0.8) for i in range(30)] + [seen(f"d{i}", 0.8, target="dog") for i in range(30)]
    biased = [replace(e, cosines=(e.cosines[0] + 2.0, *e.cosines[1:])) for e in plain]
    even, uneven = judged(plain).probabilities, judged(biased).probabilities
    assert np.allclose(even, uneven)


def test_verdicts_carry_their_numbers():
    scores = judged([seen("a", 0.8)]).verdicts[0].scores
    assert scores["probability"] == pytest.approx(0.8)
    assert scores["threshold"] == CONFIG.min_probability
    assert scores["p:dog"] == pytest.approx(0.1)


def test_a_companion_does_not_compete_but_a_stranger_does():
    cosines = (0.5, 0.5, 0.0)
    alone = Evidence("a", "p", "cat", ("cat",), cosines, 1, False, 0)
    together = replace(alone, asked=("cat", "dog"))
    assert class_probabilities([alone], CLASSES, 50)[0, 0] == pytest.approx(0.5, abs=0.01)
    assert class_probabilities([together], CLASSES, 50)[0, 0] > 0.99


def test_without_images_there_are_no_verdicts():
    assert judged([]).verdicts == []


def test_sharpness_sees_blur_but_not_contrast():
    from scipy import ndimage

    rng = np.random.default_rng(0)
    image = (rng.random((64, 64, 3)) * 255).astype(np.uint8)
    faint = (image // 4 + 90).astype(np.uint8)
    blurred = ndimage.gaussian_filter(image, (2, 2, 0))
    assert sharpness(faint) == pytest.approx(sharpness(image), rel=0.05)
    assert sharpness(blurred) < 0.5 * sharpness(image)


def test_blank():
    assert is_blank(np.full((32, 32, 3), 120, dtype=np.uint8))
    assert not is_blank(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize(("noun", "text"), [("cat", "a cat"), ("aeroplane", "an aeroplane")])
def test_article(noun, text):
    assert with_article(noun) == text


def test_images_in_memory_are_measured_without_their_files(tmp_path):
    """What is measured is the same as from the files, and measuring twice changes nothing."""
    run, ledger, config = made_up_run(tmp_path / "run", 6)
    rows = ledger.images()
    images = [run.read_image(row) for row in rows]
    encoder = OpenClipEncoder.load("mini")

    def agent():
        return JudgeAgent(
            encoder, ledger, run, config.judge, config.classes, lambda name: (name,), config.wanted
        )

    agent().measure(rows)
    from_files = ledger.evidence()
    ledger._db.execute("DELETE FROM evidence")
    for row in rows:
        run.image(row.id).unlink()
    judge = agent()
    judge.measure(rows[:4], images[:4])
    judge.measure(rows[2:], images[2:])
    assert {i: e.sharpness for i, e in ledger.evidence().items()} == {
        i: e.sharpness for i, e in from_files.items()
    }
    likeness = [e.duplicate_cosine for e in ledger.evidence().values()]
    assert likeness == pytest.approx([e.duplicate_cosine for e in from_files.values()], abs=1e-5)
    ledger.close()
