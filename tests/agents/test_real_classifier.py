"""The judge that learnt from real images: when it may speak, and that it speaks once."""

import numpy as np
import pytest

from segsmith.agents.judge.real_classifier import RealClassifier, roc_area
from segsmith.files import png_bytes, sha256_of
from segsmith.memory.ledger import ImageRow, Ledger, PromptRow
from segsmith.memory.real_images import LIST, RealImage, RealSet
from segsmith.memory.run_folder import RunFolder
from segsmith.types import PatchScores

CLASSES = ("bright", "noise", "rare")


class Brightness:
    """Knows the first class by brightness, gives chance for the others."""

    def __init__(self):
        self.taught_times, self.looked_at = 0, 0

    def _score(self, images):
        bright = [image.mean() / 255 for image in images]
        return np.array([[b, 0.5, b] for b in bright], np.float32).reshape(-1, 3)

    def out_of_fold(self, images, labels, groups, on_maps):
        assert len(set(groups)) == len(images)  # every real image is a group of its own
        return PatchScores(np.zeros((len(images), 3, 2, 2), np.float32), self._score(images))

    def taught(self, images, labels):
        self.taught_times += 1

        def score(others):
            self.looked_at += len(others)
            return self._score(others)

        return score


@pytest.fixture
def place(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    (run.real / "images").mkdir(parents=True)
    images = []
    for i in range(12):
        labels = (
            (("bright",) if i % 2 else ()) + (("noise",) if i % 3 else ()) + (("rare",) if i == 5 else ())
        )
        split = "val" if i == 11 else "train"
        path = run.real / f"images/{i}.png"
        path.write_bytes(png_bytes(np.full((8, 8, 3), 200 if i % 2 else 40, np.uint8)))
        digest = sha256_of(path)
        images.append(RealImage(f"real-{i}", str(i), split, labels, f"images/{i}.png", digest, True))
    real = RealSet(run.real, CLASSES, tuple(images))
    (run.real / LIST).write_text(real.text)
    ledger = Ledger(run.ledger)
    ledger.add_prompts([PromptRow("p-1", "bright", "x", ("bright",), {}, None, 0, "admitted", {})])
    yield run, ledger, real
    ledger.close()


def draw(run, ledger, name, level):
    run.new_image(name, "png").write_bytes(png_bytes(np.full((8, 8, 3), level, np.uint8)))
    ledger.add_images([ImageRow(name, "p-1", 1, "b", 0, sha256_of(run.image(name)))])


def test_it_judges_only_classes_it_knows_on_unseen_real_images(place):
    run, ledger, real = place
    assert RealSet.open(run.real) == real
    classifier = Brightness()
    judge = RealClassifier(lambda: classifier, ledger, run, real, min_skill=0.7)
    draw(run, ledger, "i-1", 255)
    judge.classify()
    found = ledger.labels("real")["i-1"]
    assert found.scores == {"bright": 1.0}  # "noise" is at chance, "rare" has one image
    assert found.classes == ("bright",)


def test_it_scores_every_image_once(place):
    run, ledger, real = place
    classifier = Brightness()
    judge = RealClassifier(lambda: classifier, ledger, run, real, min_skill=0.7)
    for number in range(3):
        draw(run, ledger, f"i-{number}", 90)
        judge.classify()
        judge.classify()
    assert (classifier.taught_times, classifier.looked_at) == (1, 3)


def test_it_learns_from_labelled_images_of_train_alone(place):
    real = place[2]
    teachers = real.teachers(99)
    assert {t.split for t in teachers} == {"train"}
    assert all(t.labels for t in teachers)
    assert "real-5" in {t.id for t in real.teachers(2)}  # the only one with the rare class


@pytest.mark.parametrize(
    ("scores", "area"),
    [([0, 0, 0, 1, 1, 1], 1.0), ([1, 1, 1, 0, 0, 0], 0.0), ([0.5] * 6, 0.5), ([0, 0, 1, 0, 1, 1], 6 / 9)],
)
def test_roc_area(scores, area):
    positive = np.array([False] * 3 + [True] * 3)
    assert roc_area(np.array(scores, np.float32), positive) == pytest.approx(area)
    assert roc_area(np.array(scores[:4], np.float32), positive[:4]) is None
