"""What witnesses say is stored once; verdicts, labels and masks follow from it."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from segsmith.agents.judge.agent import reconsider, update_verdicts
from segsmith.agents.labeler import LabelerAgent
from segsmith.agents.witnesses.agent import Agreement, WitnessAgent, doubted
from segsmith.agents.witnesses.agreement import (
    SILENT,
    ErrorRates,
    answer,
    answers_of,
    estimate,
    probabilities,
)
from segsmith.config import JudgeConfig, LabelerConfig, WitnessesConfig
from segsmith.files import png_bytes, read_index_map, sha256_of
from segsmith.memory.ledger import DecisionRow, Evidence, ImageRow, LabelRow, Ledger, PromptRow, VerdictRow
from segsmith.memory.patch_scores import PatchScoreFile
from segsmith.memory.run_folder import RunFolder
from segsmith.types import MaskCandidates, PatchScores, Sighting, Testimony

CLASSES = ("cat", "dog")
QUOTA = dict.fromkeys(CLASSES, 100)


# -- agreement: pure functions ------------------------------------------------------------------------


def made_up(count, missed, invented, seed=0, present=0.2):
    """Truth, and the answers of one source per entry of `missed` and `invented`, errors independent."""
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < present
    sources = ("prompt", "vlm", "detector")
    answers = {}
    for source, m, i in zip(sources, missed, invented, strict=False):
        said = np.where(truth, rng.random(count) >= m, rng.random(count) < i)
        answers[source] = said.astype(np.int64) * (3 if source == "detector" else 1)
    return truth, answers


def test_error_rates_are_estimated_without_the_truth():
    missed, invented = (0.1, 0.3, 0.2), (0.02, 0.1, 0.05)
    truth, answers = made_up(20_000, missed, invented)
    rates = estimate(answers, np.where(answers["prompt"] == 1, 0.9, 0.1))
    assert rates.present == pytest.approx(truth.mean(), abs=0.01)
    for source, m, i in zip(answers, missed, invented, strict=True):
        absent, present = rates.answers[source]
        assert present[0] == pytest.approx(m, abs=0.03)
        assert absent[-1] == pytest.approx(i, abs=0.02)


def test_agreement_is_more_often_right_than_any_source_and_than_a_majority():
    truth, answers = made_up(5_000, (0.05, 0.3, 0.3), (0.01, 0.1, 0.1))
    believed = probabilities(answers, estimate(answers, np.where(answers["prompt"] == 1, 0.9, 0.1))) >= 0.5
    votes = sum((given > 0).astype(int) for given in answers.values()) >= 2
    wrong = [np.mean((given > 0) != truth) for given in answers.values()]
    assert np.mean(believed != truth) <= min(*wrong, np.mean(votes != truth))


def test_a_silent_source_has_no_influence():
    rates = ErrorRates(0.5, {"vlm": ((0.9, 0.1), (0.1, 0.9)), "prompt": ((0.8, 0.2), (0.2, 0.8))})
    heard = {"vlm": np.array([1, 0]), "prompt": np.array([SILENT, SILENT])}
    assert probabilities(heard, rates) == pytest.approx([0.9, 0.1])
    assert probabilities({"vlm": np.array([SILENT])}, rates) == pytest.approx([0.5])


def test_no_answer_is_taken_as_impossible():
    rates = estimate({"vlm": np.zeros(4, np.int64)}, np.zeros(4))
    assert 0 < rates.present < 1
    assert np.isfinite(rates.weights("vlm")).all()


def test_scores_become_answers():
    assert [answer("detector", s) for s in (None, 0.0, 0.1, 0.59, 1.0)] == [SILENT, 0, 1, 2, 3]
    given = answers_of([{"vlm": 1.0, "prompt": None}, {"vlm": None, "prompt": None}])
    assert {source: list(row) for source, row in given.items()} == {"vlm": [1, SILENT]}


def test_classes_between_the_limits_are_doubted():
    assert doubted({"a": 0.05, "b": 0.1, "c": 0.5, "d": 0.89, "e": 0.95}, 0.1) == ("c", "d")
    assert doubted({"a": 0.5}, 0.49) == ("a",)


# -- the judge ------------------------------------------------------------------------------------------


class Sees:
    """A witness that sees the same classes in every image, but is silent about some images."""

    name = "sees/1"

    def __init__(self, *classes, silent=()):
        self.classes, self.silent = classes, silent
        self.asked = []

    def testify(self, images, ids):
        self.asked += ids
        assert all(image.shape == (64, 64, 3) for image in images)
        said = Testimony(
            {name: float(name in self.classes) for name in CLASSES},
            {name: int(name in self.classes) for name in CLASSES},
            tuple(Sighting(name, 1.0, (0.25, 0.25, 0.75, 0.75)) for name in self.classes),
        )
        return [None if i in self.silent else said for i in ids]


@pytest.fixture
def place(tmp_path):
    """Three images of a cat each, measured and accepted; CLIP is sure, and nothing else is known."""
    run = RunFolder(tmp_path / "run")
    run.create()
    ledger = Ledger(run.ledger)
    ledger.add_prompts(
        [PromptRow(f"p{i}", "cat", f"cat {i}", ("cat",), {}, None, 0, "admitted", {}) for i in range(3)]
    )
    for i in range(3):
        image = np.random.default_rng(i).integers(0, 255, (64, 64, 3)).astype(np.uint8)
        run.new_image(f"i{i}", "png").write_bytes(png_bytes(image))
        ledger.add_images([ImageRow(f"i{i}", f"p{i}", 0, "x", 0, sha256_of(run.image(f"i{i}")))])
        cosines = tuple(np.log([0.9, 0.05, 0.05]))
        ledger.add_evidence(
            [Evidence(f"i{i}", f"p{i}", "cat", ("cat",), cosines, 1.0, False, 0.1, (1.0, 0.0))]
        )
    update_verdicts(ledger, CLASSES, JudgeConfig(), QUOTA)
    yield run, ledger
    ledger.close()


def hear(place, **witnesses):
    run, ledger = place
    agent = WitnessAgent({kind: lambda w=w: w for kind, w in witnesses.items()}, ledger, run, CLASSES)
    heard = agent.hear()
    update_verdicts(ledger, CLASSES, JudgeConfig(), QUOTA)
    return heard


def test_each_witness_is_asked_once_about_each_image(place):
    detector, vlm = Sees("cat"), Sees("cat", silent=("i1",))
    assert hear(place, detector=detector, vlm=vlm) == 5
    assert detector.asked == vlm.asked == ["i0", "i1", "i2"]
    assert hear(place, detector=detector, vlm=vlm) == 0
    assert vlm.asked == ["i0", "i1", "i2", "i1"], "only what was not answered is asked again"
    ledger = place[1]
    said = ledger.testimonies(["i0", "i1", "nothing"])
    assert said["i0"]["detector"] == Sees("cat").testify([np.zeros((64, 64, 3))], ["i0"])[0]
    assert set(said["i1"]) == {"detector"}
    assert [d["without_answer"] for _, _, d in ledger.events("witness")] == [0, 1, 1]


def test_another_model_is_asked_again_and_replaces_what_was_said(place):
    hear(place, detector=Sees("cat"))
    other = Sees("dog")
    other.name = "sees/2"
    before = place[1].judgement
    assert hear(place, detector=other) == 3
    assert place[1].testimonies(["i0"])["i0"]["detector"].scores == {"cat": 0.0, "dog": 1.0}
    assert place[1].judgement.testimonies > before.testimonies


def test_with_an_added_class_the_witnesses_are_asked_again(place):
    hear(place, detector=Sees("cat"))
    ledger = place[1]
    assert not ledger.unheard("detector", "sees/1", CLASSES)
    assert len(ledger.unheard("detector", "sees/1", (*CLASSES, "bus"))) == 3


def test_an_image_is_rejected_only_if_enough_witnesses_deny_its_class(place):
    hear(place, detector=Sees("dog"))
    ledger = place[1]
    assert len(ledger.accepted()) == 3, "one witness is not enough"
    hear(place, detector=Sees("dog"), vlm=Sees("dog", silent=("i1",)))
    assert {i: v.reason for i, v in ledger.verdicts().items()} == {"i0": "denied", "i1": "ok", "i2": "denied"}


def test_one_witness_that_sees_the_class_saves_the_image(place):
    hear(place, detector=Sees("cat"), vlm=Sees())
    assert len(place[1].accepted()) == 3


def test_verdicts_are_decided_again_from_what_was_stored(place):
    hear(place, detector=Sees(), vlm=Sees())
    ledger = place[1]
    assert not ledger.accepted()
    lenient = reconsider(ledger, CLASSES, JudgeConfig(deniers=0), QUOTA)
    assert all(v.accepted for v in lenient.verdicts)
    strict = reconsider(ledger, CLASSES, JudgeConfig(deniers=1), QUOTA)
    assert {v.reason for v in strict.verdicts} == {"denied"}


def test_a_reviewer_outranks_the_witnesses(place):
    place[1].add_decision(DecisionRow("verdict", "i0", "accept"))
    hear(place, detector=Sees(), vlm=Sees())
    assert [row.id for row in place[1].accepted()] == ["i0"]


def test_deleted_images_take_their_testimonies_along(place):
    hear(place, detector=Sees("cat"))
    place[1].forget_images(["i0"])
    assert set(place[1].testimonies(["i0", "i1"])) == {"i1"}


# -- labels and masks -----------------------------------------------------------------------------------


class Vit:
    """Finds a cat in the left half of every image, and of the dogs in the right halves only every second one."""

    def out_of_fold(self, images, labels, groups, on_maps):
        maps = np.zeros((len(images), 2, 8, 8), dtype=np.float32)
        maps[:, 0, 2:6, 1:3], maps[:, 1, 2:6, 5:7] = 0.9, 0.4
        on_maps(np.arange(len(images)), maps)
        dogs = [0.9 if i % 4 == 3 else 0.2 if i % 4 == 1 else 0.05 for i in range(len(images))]
        return PatchScores(maps[:0], np.stack([np.full(len(images), 0.9), dogs], axis=1).astype(np.float32))


class Boxes:
    def segment_many(self, images, point_sets):
        return [[self._box(points) for points in sets] for sets in point_sets]

    def _box(self, points):
        mask = np.zeros((64, 64), bool)
        x, y = points.mean(axis=0).astype(int)
        mask[max(0, y - 16) : y + 16, max(0, x - 10) : x + 10] = True
        return MaskCandidates(mask[None], np.array([0.9], np.float32))


@pytest.fixture
def many(tmp_path):
    """Forty images of a cat; every second also shows a dog, which no prompt names."""
    run = RunFolder(tmp_path / "run")
    run.create()
    ledger = Ledger(run.ledger)
    image = png_bytes(np.full((64, 64, 3), 90, np.uint8))
    for i in range(40):
        ledger.add_prompts([PromptRow(f"p{i}", "cat", f"cat {i}", ("cat",), {}, None, 0, "admitted", {})])
        run.new_image(f"i{i:02}", "png").write_bytes(image)
        ledger.add_images([ImageRow(f"i{i:02}", f"p{i}", 0, "x", 0, sha256_of(run.image(f"i{i:02}")))])
        ledger.add_verdicts(
            [VerdictRow(f"i{i:02}", True, "ok", {"p:cat": 0.9, "p:dog": 0.05 + 0.1 * (i % 2)})]
        )
        ledger.add_labels([LabelRow(f"i{i:02}", "clip", ("cat",), {})])
    yield run, ledger
    ledger.close()


class Knows(Sees):
    def testify(self, images, ids):
        dogs = [int(i[1:]) % 2 == 1 for i in ids]
        return [Testimony({"cat": 1.0, "dog": float(dog)}) for dog in dogs]


def labelled(many, agreement=True, **settings):
    run, ledger = many
    agent = LabelerAgent(
        Vit, Boxes, ledger, run, LabelerConfig(region_doubt=0), CLASSES, 0,
        witnesses=WitnessesConfig(agreement=agreement, **settings),
    )  # fmt: skip
    agent.relabel()
    return agent


def test_what_two_witnesses_see_becomes_a_label(many):
    hear(many, detector=Knows(), vlm=Knows())
    labelled(many)
    labels = many[1].label_sets("relabel")
    assert labels["i00"] == ("cat",)
    assert labels["i01"] == labels["i03"] == ("cat", "dog")
    assert many[1].labels("relabel")["i01"].scores["dog"] == pytest.approx(0.2), "the ViT's score is kept"
    ((_, _, event),) = many[1].events("agreement")
    assert set(event["answers"]) == {"prompt", "clip", "vit", "detector", "vlm"}


@pytest.mark.parametrize("heard", [True, False])
def test_without_agreement_or_witnesses_the_vit_decides(many, heard):
    if heard:
        hear(many, detector=Knows(), vlm=Knows())
    labelled(many, agreement=not heard)
    labels = many[1].label_sets("relabel")
    assert (labels["i00"], labels["i01"], labels["i03"]) == (("cat",), ("cat",), ("cat", "dog"))
    assert not many[1].labels("agreement")


class Attends(Sees):
    """Sees every dog, in the lower right."""

    def testify(self, images, ids):
        dog = np.zeros((16, 16), np.uint8)
        dog[8:, 8:] = 255
        return [Testimony({"cat": 0.0, "dog": 0.7}, maps={"dog": dog}) for _ in ids]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_attention_moves_the_seeds_of_the_classes_it_saw(many, weight):
    run, ledger = many
    hear(many, attention=Attends())
    LabelerAgent(
        Vit, Boxes, ledger, run, LabelerConfig(region_doubt=0, attention_weight=weight), CLASSES, 0
    ).relabel()  # fmt: skip
    with closing(PatchScoreFile(run.patch_scores, ledger.patch_scores_sha256)) as stored:
        cat, dog = stored["i01"]
    assert cat.max() == cat[3, 1] == pytest.approx(0.9, abs=0.01), "no attention was recorded for it"
    assert dog[7, 7] == pytest.approx(0.4 * weight, abs=0.01)
    assert dog[2, 5] == pytest.approx(0.4 * (1 - weight), abs=0.01)
    assert dog[5, 6] == pytest.approx(0.4, abs=0.01), "both agree"


def test_maps_are_stored_with_what_a_witness_says(place):
    hear(place, attention=Attends())
    said = place[1].testimonies(["i0"])["i0"]["attention"]
    assert said.scores == {"cat": 0.0, "dog": 0.7}
    assert said.maps == {}, "only the labeler reads maps"
    ((name, of_class),) = place[1].attention_maps(["i0", "nothing"])["i0"].items()
    assert name == "dog"
    assert of_class.shape == (16, 16)
    assert (of_class == Attends().testify([], ["i0"])[0].maps["dog"]).all()


def test_a_class_in_doubt_is_255_where_it_may_be(many):
    run, ledger = many
    hear(many, detector=Knows(), vlm=Knows())
    agent = labelled(many)
    doubtful = ledger.labels("agreement")["i00"]
    ledger.add_labels([replace(doubtful, scores={**doubtful.scores, "dog": 0.4})])
    agent.segment()
    mask = read_index_map(run.mask("i00"))
    assert (mask[20:44, 4:20] == 1).any()
    assert (mask[20:44, 40:56] == 255).any(), "perhaps a dog"
    assert not (mask == 2).any()
    assert (read_index_map(run.mask("i01")) == 2).any()
    assert ledger.masks()["i00"].sources["doubted"] == ["dog"]
    assert agent.segment() == 0
    ledger.add_labels([doubtful])
    assert agent.segment() == 1, "its mask was made for another doubt"
    assert not (read_index_map(run.mask("i00"))[20:44, 44:52] == 255).any()


def test_a_reviewers_labels_are_not_doubted(many):
    run, ledger = many
    hear(many, detector=Knows(), vlm=Knows())
    ledger.add_decision(DecisionRow("label", "i00", "edit", {"labels": ["dog", "cat"]}))
    agent = labelled(many, doubt=0.45)
    assert ledger.label_sets("relabel")["i00"] == ("cat", "dog")
    agent.segment()
    assert (read_index_map(run.mask("i00")) == 2).any()


def test_the_target_stays_a_label():
    agreement = Agreement(ErrorRates(0.5, {}), WitnessesConfig())
    assert agreement.labels({"cat": 0.1, "dog": 0.6}, "cat") == ("cat", "dog")
