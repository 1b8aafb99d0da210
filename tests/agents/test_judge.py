"""The judge's decisions from stored numbers, and its measurements of images."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from segsmith.agents.judge import agent, decision, duplicates
from segsmith.agents.judge.agent import JudgeAgent, reconsider, update_verdicts
from segsmith.agents.judge.decision import calibrate, class_auc, class_probabilities, decide
from segsmith.agents.judge.duplicates import DuplicateIndex
from segsmith.agents.prompt.space import with_article
from segsmith.config import JudgeConfig
from segsmith.ids import make_id
from segsmith.memory.ledger import DecisionRow, Evidence, ImageRow, Ledger, PromptRow
from segsmith.segmentation.image_ops import grey, is_blank, sharpness
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


def test_auc_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    items = [
        replace(seen(f"{target}{i}", target=target), cosines=tuple(rng.normal(size=3).round(1)))
        for target in CLASSES
        for i in range(30)
    ]
    own = [e.cosines[0] for e in items if e.target == "cat"]
    others = [e.cosines[0] for e in items if e.target == "dog"]
    pairs = [(a > b) + 0.5 * (a == b) for a in own for b in others]
    assert class_auc(items, CLASSES)["cat"] == pytest.approx(np.mean(pairs))


def test_auc_counts_neither_companions_nor_classes_of_few_images():
    cats = [replace(seen(f"c{i}"), asked=("cat", "dog")) for i in range(30)]
    dogs = [seen(f"d{i}", target="dog") for i in range(30)]
    assert class_auc([*cats, *dogs], CLASSES) == {"cat": 1.0}
    assert class_auc(cats[:19] + dogs, CLASSES) == {}


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


@pytest.mark.parametrize("size", [(64, 64), (65, 130), (3, 2)])
def test_sharpness_is_the_ratio_that_scipy_computes(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    fine = grey(image)
    coarse = ndimage.zoom(ndimage.gaussian_filter(fine, 1.0), 0.5, order=1)
    energies = [float(np.mean(np.square(ndimage.laplace(part)))) for part in (fine, coarse)]
    assert sharpness(image) == pytest.approx(energies[0] / (energies[1] + 1e-6), rel=1e-4)


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

    def opened():
        return JudgeAgent(
            encoder, ledger, run, config.judge, config.classes, lambda name: (name,), config.wanted
        )

    opened().measure(rows)
    from_files = ledger.evidence()
    ledger._db.execute("DELETE FROM evidence")
    for row in rows:
        run.image(row.id).unlink()
    judge = opened()
    judge.measure(rows[:4], images[:4])
    judge.measure(rows[2:], images[2:])
    assert {i: e.sharpness for i, e in ledger.evidence().items()} == {
        i: e.sharpness for i, e in from_files.items()
    }
    likeness = [e.duplicate_cosine for e in ledger.evidence().values()]
    assert likeness == pytest.approx([e.duplicate_cosine for e in from_files.values()], abs=1e-5)
    ledger.close()


# -- deciding about a growing run ------------------------------------------------------------------

SETTINGS = JudgeConfig(top_k=2)
NAMES = ("cat", "dog", "bus", "car")


class Growing:
    """A ledger with random evidence, two images a prompt, that grows and is judged as a run does."""

    def __init__(self, path, quota):
        self.ledger = Ledger(path)
        self.quota = dict.fromkeys(NAMES, quota)
        self.rng = np.random.default_rng(3)
        self.prompts = 0

    def draw(self, prompts):
        rows, images, evidence = [], [], []
        for _ in range(prompts):
            number = self.prompts = self.prompts + 1
            name = NAMES[number % len(NAMES)]
            prompt = PromptRow(make_id("p", number), name, f"a {name}", (name,), {}, None, 0, "admitted", {})
            rows.append(prompt)
            for seed in range(2):
                id_ = make_id("i", number, seed)
                images.append(ImageRow(id_, prompt.id, seed, "fake", 0, ""))
                shown = self.rng.random() < 0.7
                cosines = self.rng.normal(0.2, 0.02, len(NAMES) + 2)
                cosines[number % len(NAMES)] += 0.06 * shown
                evidence.append(
                    Evidence(
                        id_, prompt.id, name, (name,), tuple(cosines), self.rng.uniform(0.5, 1.5),
                        self.rng.random() < 0.02, -0.5, tuple(np.full(len(NAMES), 0.25)), signature=b"",
                    )
                )  # fmt: skip
        self.ledger.add_prompts(rows)
        self.ledger.add_images(images)
        self.ledger.add_evidence(evidence)
        self.ledger.logit_scale = 50.0

    def judge(self):
        update_verdicts(self.ledger, NAMES, SETTINGS, self.quota)
        return self.stored()

    def stored(self):
        return {i: (v.accepted, v.reason) for i, v in self.ledger.verdicts().items()}

    def decided(self):
        """As a full decision with the same sample."""
        verdicts = reconsider(self.ledger, NAMES, SETTINGS, self.quota).verdicts
        return {v.image_id: (v.accepted, v.reason) for v in verdicts}


@pytest.fixture
def growing(tmp_path):
    run = Growing(tmp_path / "ledger.db", quota=150)
    yield run
    run.ledger.close()


def test_a_small_run_is_decided_exactly(growing):
    for prompts in (40, 80, 200, 8, 200):
        growing.draw(prompts)
        assert growing.judge() == growing.decided()
    assert {reason for _, reason in growing.stored().values()} >= {"surplus", "not_there", "ok", "blank"}
    accepted = {i for i, (good, _) in growing.stored().items() if good}
    assert growing.ledger.labels("clip").keys() >= accepted
    assert {n: t.accepted for n, t in growing.ledger.tallies().items()} == growing.quota


def test_a_large_run_differs_from_a_full_decision_in_few_verdicts(growing, monkeypatch):
    """Its sample is a fraction of it, and earlier verdicts are rewritten only where that matters."""
    monkeypatch.setattr(decision, "SAMPLE", 300)
    monkeypatch.setattr(agent, "SAMPLE", 300)
    growing.quota = dict.fromkeys(NAMES, 10_000)
    rewritten = 0
    for prompts in (100, 100, *[75] * 8):
        growing.draw(prompts)
        before = growing.ledger.judgement
        growing.judge()
        rewritten += before is not None and growing.ledger.judgement.thresholds != before.thresholds
    monkeypatch.setattr(decision, "SAMPLE", 10_000)
    full, got = growing.decided(), growing.stored()
    assert full.keys() == got.keys()
    assert (
        np.mean([full[i][0] != got[i][0] for i in full]) <= 0.05
    )  # 0.006 of 12,000 images with the sample of 4,096
    assert rewritten < 9


def test_new_images_displace_worse_ones_of_a_full_class(growing, monkeypatch):
    """Also where earlier verdicts are not decided about again."""
    monkeypatch.setattr(agent, "has_moved", lambda *_: False)
    growing.draw(200)
    growing.judge()
    growing.draw(600)
    got = growing.judge()
    best = {}
    for image_id, verdict in growing.ledger.verdicts().items():
        name = growing.ledger.evidence([image_id])[image_id].target
        best.setdefault(name, []).append((verdict.scores["probability"], verdict.reason))
    assert {n: t.accepted for n, t in growing.ledger.tallies().items()} == growing.quota
    for items in best.values():
        worst = min(p for p, reason in items if reason == "ok")
        assert all(p <= worst for p, reason in items if reason == "surplus")
    assert growing.judge() == got, "judging twice changes nothing"


def test_changed_settings_and_a_reviewer_decide_about_all_images_again(growing):
    growing.draw(300)
    taken = next(i for i, (good, _) in growing.judge().items() if good)
    growing.ledger.add_decision(DecisionRow("verdict", taken, "reject"))
    assert growing.judge()[taken] == (False, "person")
    assert growing.stored() == growing.decided()
    growing.quota = dict.fromkeys(NAMES, 20)
    assert growing.judge() == growing.decided()


# -- duplicates ------------------------------------------------------------------------------------

SPLIT = 64


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype("<f4")


def made_up_signatures(count, seed=0):
    """CLIP vectors that are all alike, as CLIP's are, and thumbnails; every tenth image is nearly an earlier one."""
    rng = np.random.default_rng(seed)
    clip = unit(rng.normal(size=(count, SPLIT)) + 1.5)
    thumbnails = unit(rng.normal(size=(count, 256)))
    for i in range(10, count, 10):
        j = rng.integers(0, i)
        clip[i] = unit(clip[j] + rng.normal(0, 0.003, SPLIT))
        thumbnails[i] = unit(thumbnails[j] + rng.normal(0, 0.003, 256))
    return np.concatenate([clip, thumbnails], axis=1)


def fed(ledger, path, signatures, save=False):
    """Likenesses of the images that the ledger lacks, which are added to it in chunks."""
    index, found = DuplicateIndex(ledger, path), []
    for start in range(len(ledger.measured_rows()), len(signatures), 32):
        chunk = signatures[start : start + 32]
        found += index.compare_and_add(list(chunk), SPLIT)
        ids = [f"i-{start + k:06}" for k in range(len(chunk))]
        ledger.add_evidence(
            Evidence(i, "p", "cat", ("cat",), (), 1.0, False, 0.0, signature=s.tobytes())
            for i, s in zip(ids, chunk, strict=True)
        )
    if save:
        index.save()
    return found


def test_duplicates_are_found_through_the_index(tmp_path):
    signatures = made_up_signatures(1_500)
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        found = np.array(fed(ledger, tmp_path / "index", signatures))
    exact = np.full(1_500, -1.0)
    for i in range(1, 1_500):
        exact[i] = min_likeness(signatures, i)
    assert found == pytest.approx(np.minimum(found, exact + 1e-5)), (
        "never more alike than the most similar one"
    )
    alike = exact >= 0.995
    assert alike.sum() > 100
    assert np.mean(found[alike] >= 0.995) >= 0.99
    assert not (found[~alike] >= 0.995).any()


def min_likeness(signatures, i):
    clip = signatures[:i, :SPLIT] @ signatures[i, :SPLIT]
    return np.max(np.minimum(clip, signatures[:i, SPLIT:] @ signatures[i, SPLIT:]))


@pytest.mark.parametrize("state", ["kept", "missing", "damaged", "of other images"])
def test_an_interrupted_run_finds_the_same_duplicates(tmp_path, state, caplog, monkeypatch):
    caplog.set_level("WARNING")  # an earlier test of the same process may have run a quiet command
    monkeypatch.setattr(duplicates, "WORTH_KEEPING", 100)
    signatures, half, path = made_up_signatures(320), 160, tmp_path / "index"
    with closing(Ledger(tmp_path / "whole.db")) as ledger:
        want = fed(ledger, tmp_path / "other", signatures)
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        got = fed(ledger, path, signatures[:half], save=state != "missing")
        if state == "damaged":
            path.write_bytes(path.read_bytes()[:-100])
        if state == "of other images":
            ledger._db.execute("UPDATE evidence SET image_id='i-x' WHERE image_id='i-000005'")
        got += fed(ledger, path, signatures)
    assert got == want
    assert ("built again" in caplog.text) == (state in ("damaged", "of other images"))


def test_measurements_that_were_not_stored_are_forgotten(tmp_path):
    """A failed write must not leave vectors in the index that no image has."""
    signatures = made_up_signatures(64)
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        index = DuplicateIndex(ledger, tmp_path / "index")
        first = index.compare_and_add(list(signatures[:32]), SPLIT)
        assert index.compare_and_add(list(signatures[:32]), SPLIT) == first
