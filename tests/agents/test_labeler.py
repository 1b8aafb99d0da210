"""The labeler's decisions, and masks from maps with a segmenter that only knows squares."""

import numpy as np
import pytest

from segsmith.agents.labeler import LabelerAgent, decide_labels
from segsmith.config import LabelerConfig
from segsmith.files import png_bytes, read_index_map
from segsmith.memory.ledger import ImageRow, LabelRow, Ledger, PromptRow, VerdictRow
from segsmith.memory.run_folder import RunFolder
from segsmith.types import MaskCandidates, PatchScores

CONFIG = LabelerConfig(label_threshold=0.5, drop_threshold=0.1)


@pytest.mark.parametrize(
    ("pseudo", "probabilities", "labels"),
    [
        (("cat",), {"cat": 0.9, "dog": 0.1}, ("cat",)),
        (("cat",), {"cat": 0.9, "dog": 0.6}, ("cat", "dog")),  # nobody asked for the dog, but it is there
        (("cat", "dog"), {"cat": 0.9, "dog": 0.05}, ("cat",)),  # asked for, but not there
        (("cat", "dog"), {"cat": 0.9, "dog": 0.3}, ("cat", "dog")),  # in doubt CLIP's word stands
        (("cat",), {"cat": 0.01, "dog": 0.2}, ("cat",)),  # the target stays: the judge saw it
    ],
)
def test_labels(pseudo, probabilities, labels):
    assert decide_labels(pseudo, probabilities, "cat", CONFIG) == labels


class Classifier:
    """Sees a cat in the left half and, in pictures with a bright right half, a dog there."""

    def out_of_fold(self, images, labels, groups):
        self.labels, self.groups = labels, groups
        maps = np.zeros((len(images), 2, 8, 8), dtype=np.float32)
        maps[:, 0, 2:6, 1:3] = 0.9
        dogs = np.array([image[:, 32:].mean() > 128 for image in images])
        maps[dogs, 1, 2:6, 5:7] = 0.8
        return PatchScores(maps, np.stack([np.full(len(images), 0.9), np.where(dogs, 0.8, 0.01)], axis=1))


class Squares:
    """A SAM that answers with the 20 px square about the points' mean."""

    def segment_many(self, images, point_sets):
        return [
            [self._square(image.shape[:2], p) for p in sets]
            for image, sets in zip(images, point_sets, strict=True)
        ]

    def _square(self, size, points):
        mask = np.zeros(size, dtype=bool)
        x, y = points.mean(axis=0).astype(int)
        mask[max(0, y - 16) : y + 16, max(0, x - 10) : x + 10] = True
        return MaskCandidates(mask[None], np.array([0.9], dtype=np.float32))


@pytest.fixture
def place(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    ledger = Ledger(run.ledger)
    ledger.add_prompts(
        [
            PromptRow("p1", "cat", "a cat", ("cat",), {}, None, 0, "refined", {}),
            PromptRow("p2", "cat", "a cat again", ("cat",), {}, "p1", 0, "admitted", {}),
        ]
    )
    for name, prompt, right in [("i1", "p1", 40), ("i2", "p2", 220)]:
        image = np.full((64, 64, 3), 40, dtype=np.uint8)
        image[:, 32:] = right
        run.image(name).write_bytes(png_bytes(image))
        ledger.add_images([ImageRow(name, prompt, 0, "x", 0, "")])
        ledger.add_verdicts([VerdictRow(name, True, "ok", {})])
        ledger.add_labels([LabelRow(name, "clip", ("cat",), {})])
    yield run, ledger
    ledger.close()


def labeler(place, classifier=None, **settings):
    run, ledger = place
    config = LabelerConfig(**settings)
    return LabelerAgent(
        lambda: classifier or Classifier(), Squares, ledger, run, config, ("cat", "dog"), seed=0
    )


def test_relabelling_finds_what_no_prompt_asked_for(place):
    classifier = Classifier()
    assert labeler(place, classifier).relabel() == 1
    labels = place[1].labels("relabel")
    assert labels["i1"].classes == ("cat",)
    assert labels["i2"].classes == ("cat", "dog")
    assert classifier.groups == ["p1", "p1"], "a prompt and what it was refined from are one family"


def test_with_relabelling_off_the_pseudo_labels_are_final(place):
    assert labeler(place, relabel=False).relabel() == 0
    assert place[1].labels("relabel")["i2"].classes == ("cat",)


@pytest.mark.parametrize("use_sam", [True, False])
def test_masks_hold_the_labelled_classes_and_are_made_once(place, use_sam):
    run, ledger = place
    it = labeler(place, use_sam=use_sam)
    it.relabel()
    assert it.segment() == 2
    assert set(np.unique(read_index_map(run.mask("i1")))) == {0, 1, 255}
    assert set(np.unique(read_index_map(run.mask("i2")))) == {0, 1, 2, 255}
    assert ledger.masks()["i2"].pixels["dog"] == int((read_index_map(run.mask("i2")) == 2).sum())
    assert it.segment() == 0
