"""The labeler's decisions, and masks from maps with a segmenter that only knows squares."""

import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest

from segsmith.agents.labeler import LabelerAgent, decide_labels
from segsmith.config import LabelerConfig
from segsmith.errors import SegsmithError
from segsmith.files import png_bytes, read_index_map, sha256_of
from segsmith.memory import run_folder
from segsmith.memory.ledger import ImageRow, LabelRow, Ledger, PromptRow, VerdictRow
from segsmith.memory.run_folder import RunFolder
from segsmith.types import MaskCandidates, PatchScores

CONFIG = LabelerConfig(label_threshold=0.5, drop_threshold=0.1)


@pytest.mark.parametrize(
    ("pseudo", "probabilities", "labels"),
    [
        (("cat",), {"cat": 0.9, "dog": 0.1}, ("cat",)),
        (("cat",), {"cat": 0.9, "dog": 0.6}, ("cat", "dog")),  # the dog was not requested, but it is there
        (("cat", "dog"), {"cat": 0.9, "dog": 0.05}, ("cat",)),  # asked for, but not there
        (("cat", "dog"), {"cat": 0.9, "dog": 0.3}, ("cat", "dog")),  # in doubt, CLIP's label is kept
        (
            ("cat",),
            {"cat": 0.01, "dog": 0.2},
            ("cat",),
        ),  # the target is kept: the judge accepted the image for it
    ],
)
def test_labels(pseudo, probabilities, labels):
    assert decide_labels(pseudo, probabilities, "cat", CONFIG) == labels


class Classifier:
    """Finds a cat in the left half and, in images with a bright right half, a dog there."""

    def out_of_fold(self, images, labels, groups, on_maps):
        self.labels, self.groups = labels, groups
        maps = np.zeros((len(images), 2, 8, 8), dtype=np.float32)
        maps[:, 0, 2:6, 1:3] = 0.9
        dogs = np.array([image[:, 32:].mean() > 128 for image in images])
        maps[dogs, 1, 2:6, 5:7] = 0.8
        on_maps(np.arange(len(images)), maps)
        return PatchScores(maps[:0], np.stack([np.full(len(images), 0.9), np.where(dogs, 0.8, 0.01)], axis=1))


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
        run.new_image(name, "png").write_bytes(png_bytes(image))
        ledger.add_images([ImageRow(name, prompt, 0, "x", 0, sha256_of(run.image(name)))])
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


def test_images_that_calibrate_the_region_check_are_segmented_once(place):
    run, ledger = place
    asked = []

    class Counting(Squares):
        def segment_many(self, images, point_sets):
            asked.append(len(images))
            return super().segment_many(images, point_sets)

    class Check:
        def calibrate(self, pairs):
            self.seen = len(list(pairs))

        def beliefs(self, image, found):
            return None

    check = Check()
    it = LabelerAgent(
        Classifier, Counting, ledger, run, LabelerConfig(), ("cat", "dog"), seed=0, check=lambda: check
    )
    it.relabel()
    assert it.segment() == check.seen == 2
    assert asked == [2]


@pytest.mark.parametrize("step", ["relabel", "segment"])
def test_an_image_that_has_changed_is_noticed(place, step):
    run, _ = place
    it = labeler(place)
    if step == "segment":
        it.relabel()
    shutil.copyfile(run.image("i2"), run.image("i1"))
    with pytest.raises(SegsmithError, match="image i1 is not the one"):
        getattr(it, step)()


def spoil(path, how):
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"garbage": b"garbage", "cut": path.read_bytes()[:200]}[how])


@pytest.mark.parametrize("how", ["gone", "garbage"])
def test_a_mask_that_is_gone_or_has_changed_is_made_again(place, how):
    run, ledger = place
    it = labeler(place)
    it.relabel()
    it.segment()
    before = run.mask("i1").read_bytes()
    assert ledger.masks()["i1"].sha256 == sha256_of(run.mask("i1"))
    spoil(run.mask("i1"), how)
    assert it.segment() == 1
    assert run.mask("i1").read_bytes() == before


def test_masks_that_have_not_changed_are_not_read_again(place, monkeypatch):
    run, _ = place
    it = labeler(place)
    it.relabel()
    made = it.segment()
    time.sleep(0.05)  # a mask as young as the check is read the next time, too
    read = []
    monkeypatch.setattr(run_folder, "sha256_of", lambda path: read.append(path.stem) or sha256_of(path))
    assert it.segment() == 0
    assert len(read) == made
    read.clear()
    assert it.segment() == 0
    assert not read
    path, before = run.mask("i1"), run.mask("i1").stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert it.segment() == 1
    assert read == ["i1"]


def test_two_checks_within_one_tick_of_the_clock_read_no_mask_twice(place, monkeypatch):
    it = labeler(place)
    it.relabel()
    it.segment()
    tick = time.time_ns() + 10**9
    monkeypatch.setattr(run_folder, "clock_of", lambda folder: tick)
    assert it.segment() == 0
    read = []
    monkeypatch.setattr(run_folder, "sha256_of", lambda path: read.append(path.stem) or sha256_of(path))
    assert it.segment() == 0
    assert not read


def test_masks_of_a_ledger_without_hashes_get_them(place):
    _, ledger = place
    it = labeler(place)
    it.relabel()
    it.segment()
    made = ledger.masks()
    ledger.add_masks(replace(mask, sha256="") for mask in made.values())
    assert it.segment() == 0
    assert ledger.masks() == made


@pytest.mark.parametrize("how", ["gone", "garbage", "cut", "of other images"])
def test_the_vit_is_trained_again_where_its_patch_scores_cannot_be_used(place, how):
    run, ledger = place
    it = labeler(place)
    it.relabel()
    it.segment()
    masks = [run.mask(name).read_bytes() for name in ("i1", "i2")]
    for name in ("i1", "i2"):
        run.mask(name).unlink()
    if how == "of other images":
        np.savez_compressed(run.patch_scores, ids=np.array(["i1"]), maps=np.zeros((1, 2, 8, 8)))
        ledger.patch_scores_sha256 = ""  # an earlier version recorded none
    else:
        spoil(run.patch_scores, how)
    assert it.segment() == 2
    assert [run.mask(name).read_bytes() for name in ("i1", "i2")] == masks


def test_relabelling_reads_images_when_they_are_asked_for(place, monkeypatch):
    """No list of images is made: the classifier gets a sequence that reads a file for each index."""
    read = []
    real = RunFolder.read_image
    monkeypatch.setattr(RunFolder, "read_image", lambda *of: read.append(of[1].id) or real(*of))

    class Sparing(Classifier):
        def out_of_fold(self, images, labels, groups, on_maps):
            assert read == []
            assert len(images) == 2
            assert images[1].shape == (64, 64, 3)
            assert read == ["i2"]
            return super().out_of_fold(images, labels, groups, on_maps)

    labeler(place, Sparing()).relabel()
