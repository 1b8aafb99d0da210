"""`segsmith augment` from the command line: mistakes cost one line; a small run goes from end to end."""

import csv
import json
import shutil
from contextlib import closing

import numpy as np
import pytest
from PIL import Image as PILImage

from segsmith.agents.labeler import LabelerAgent
from segsmith.config import load_config
from segsmith.datasets.voc_layout import write_voc
from segsmith.events import Status
from segsmith.files import sha256_of
from segsmith.graph.finalize import REAL_ONLY, Finalizer
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_folder import RunFolder
from segsmith.segmentation.comparison import Comparison
from segsmith.testing import ScriptedChat
from segsmith.tools.images.simulator import unseen_scenes
from segsmith.workflows.augment import plan_enlargement, training_share
from segsmith.workflows.build import build_run
from segsmith.workflows.run import open_run

CLASSES = ("cat", "bus")
SMALL = {
    "trainer": {"epochs": 2, "batch_size": 4},
    "evaluation": {"images": 0},
    "labeler": {"epochs": 1, "folds": 2},
    "per_class": 2,
}


@pytest.fixture(scope="module")
def scenes():
    return list(unseen_scenes(CLASSES, 12, 3, 128))


@pytest.fixture
def voc(tmp_path, scenes):
    """Ten real images to train on and two to test on, with exact label maps."""
    pairs = [(f"{i:02d}", scene.image, scene.class_mask(CLASSES)) for i, scene in enumerate(scenes)]
    write_voc(tmp_path / "real", CLASSES, {"train": pairs[:10], "val": pairs[10:]})
    return tmp_path / "real"


def spoil(voc, how):
    if how == "unreadable":
        shutil.rmtree(voc)
        voc.mkdir()
    elif how == "one image":
        (voc / "ImageSets/Segmentation/train.txt").write_text("00\n")
        for split in ("val", "trainval"):
            (voc / f"ImageSets/Segmentation/{split}.txt").unlink()
    elif how == "undrawable":
        (voc / "classes.txt").write_text("cat\nflurbodin\n")
    elif how == "no labels":
        for path in (voc / "SegmentationClass").iterdir():
            PILImage.fromarray(np.zeros((128, 128), np.uint8)).save(path)
    elif how == "no split file":
        shutil.rmtree(voc / "ImageSets/Segmentation")
        (voc / "ImageSets/Segmentation").mkdir()
    elif how == "same sprite":
        (voc / "classes.txt").write_text("sofa\ncouch\n")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("unreadable", "is not a dataset in a format"),
        ("one image", "too few to learn from"),
        ("undrawable", "flurbodin"),
        ("no labels", "nothing to learn prompts from"),
        ("no split file", "names no image set"),
        ("same sprite", "same sprite"),
    ],
)
def test_a_dataset_that_cannot_be_used_costs_one_line(voc, tmp_path, segsmith, how, words):
    spoil(voc, how)
    code, _, complaint = segsmith(
        "augment", "--dataset", voc, "--add-per-class", 2, "--out", tmp_path / "run", "--preset", "sim"
    )
    assert code == 2
    assert words in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--add-per-class", 0], "adds nothing"),
        (["--add-per-class", 2, "--set", "augment.balance=2"], "augment.balance"),
        (["--add-per-class", 2, "--set", "augment.balnce=1"], "Known here"),
    ],
)
def test_so_does_a_setting(voc, tmp_path, segsmith, more, words):
    code, _, complaint = segsmith(
        "augment", "--dataset", voc, "--out", tmp_path / "run", "--preset", "sim", *more
    )
    assert (code, complaint.count("\n"), words in complaint) == (2, 1, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("add", "length", "said"),
    [
        (400, {"epochs": 12}, "at least 50%"),
        (2, {"epochs": 12}, "--set trainer.epochs=20"),
        (2, {"epochs": 20}, "at least 71%"),
        (2, {"epochs": 19}, "at least 75%"),
        (2, {"steps": 8}, "In 8 steps"),
        (2, {"steps": 1000}, "at least 50%"),
    ],
)
def test_it_says_how_much_of_the_training_is_real_images(voc, tmp_path, add, length, said):
    settings = load_config(flags={"per_class": add, "trainer": length})
    assert said in training_share(plan_enlargement(settings, voc, tmp_path / "run")).message


def test_a_folder_of_something_else_is_left_alone(voc, tmp_path, segsmith):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    code, _, complaint = segsmith(
        "augment", "--dataset", voc, "--add-per-class", 2, "--out", tmp_path / "mine", "--preset", "sim"
    )
    assert (code, complaint.count("\n")) == (2, 1)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_coco_polygons_out_of_bounds_and_corrupt_images_are_skipped_and_named(tmp_path, scenes):
    root = tmp_path / "coco"
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, annotations = [], []
    for number, scene in enumerate(scenes[:5], 1):
        PILImage.fromarray(scene.image).save(root / "train" / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 128, "height": 128})
        corner = 400 if number == 2 else 60
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "area": 100, "bbox": [9, 9, 50, 50],
             "segmentation": [[9, 9, corner, 9, corner, corner, 9, corner]]}
        )  # fmt: skip
    (root / "train" / "4.jpg").write_bytes(b"\xff\xd8 nothing")
    (root / "annotations" / "instances_train.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]})
    )
    plan = plan_enlargement(load_config(flags={"per_class": 3}), root, tmp_path / "run")
    said = " ".join(plan.real.skipped)
    assert "4.jpg" in said
    assert "annotation 2 has a polygon that leaves the image" in said or "annotation 2 has box" in said
    assert 3 <= len(plan.real.images) <= 4
    assert not (tmp_path / "run").exists()


@pytest.fixture
def enlarge():
    """Run with the scripted language model; returns the events."""

    def events(dataset, out, more=None):
        plan = plan_enlargement(load_config(flags={**SMALL, **(more or {})}), dataset, out)
        return build_run(plan.config, out, prepare=plan.prepare, parts={"chat": ScriptedChat()})

    return events


def test_a_run_broken_off_goes_on_without_the_dataset_and_ends_with_both(
    scenes, tmp_path, enlarge, monkeypatch
):
    """From a folder per class: real images get label maps from their own labels."""
    for number, scene in enumerate(scenes):
        present = scene.present(CLASSES)
        if len(present) == 1:
            folder = tmp_path / "real" / next(iter(present))
            folder.mkdir(parents=True, exist_ok=True)
            PILImage.fromarray(scene.image).save(folder / f"{number}.png")
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(LabelerAgent, "relabel", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(enlarge(tmp_path / "real", out))
    (tmp_path / "real").rename(tmp_path / "gone")
    *_, end = enlarge(tmp_path / "real", out)
    assert end.status is Status.FINISHED
    with (out / "dataset/voc/labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["source"] for row in rows} == {"real", "generated"}
    for row in rows:
        label_map = np.asarray(
            PILImage.open(out / "dataset/voc/SegmentationClass" / f"{row['image_id']}.png")
        )
        shown = set(np.unique(label_map)) - {0, 255}
        assert shown <= {CLASSES_SORTED.index(name) + 1 for name in row["classes"].split("|")}
    assert {row["split"] for row in rows if row["source"] == "generated"} == {"train"}
    assert (out / "checkpoints" / "segmenter.safetensors").exists()
    real = sum(row["source"] == "real" for row in rows)
    assert f"in addition to {real} real images" in (out / "report.html").read_text()
    assert [e.status for e in enlarge(tmp_path / "real", out)] == [Status.ALREADY_FINISHED]
    # Their masks are the labeler's, so a score on them is not called one of quality.
    scores = open_run(out).evaluations
    assert ("real_val_guessed" in scores, "real_val" in scores) == (True, False)
    assert "against masks that the models made" in (out / "report.html").read_text()
    assert not (out / "checkpoints" / REAL_ONLY).exists()


def test_the_simulator_adds_no_cartoons_to_other_images_unless_told_to(voc, tmp_path, segsmith):
    words = ["augment", "--dataset", voc, "--add-per-class", 2, "--out", tmp_path / "run", "--preset", "sim"]
    code, _, complaint = segsmith(*words)
    assert (code, complaint.count("\n"), "--allow-simulator" in complaint) == (2, 1, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("real_only", "kept"), [(0.9, "without"), (0.49, "without"), (0.1, "with")])
def test_generated_images_must_gain_on_real_ones_beyond_chance(
    voc, tmp_path, enlarge, monkeypatch, real_only, kept
):
    """Both trainings are replaced: what counts is which one is kept, and that the ledger knows it."""

    def train(self, config, out, on_epoch):
        out.mkdir(parents=True, exist_ok=True)
        alone = config.real_share == 1
        for name in ("segmenter.safetensors", "segmenter.json"):
            (out / name).write_text("without" if alone else "with")
        return {"epochs": []}

    found = Comparison(0.5, real_only, error=0.02)
    monkeypatch.setattr(Finalizer, "_train", train)
    monkeypatch.setattr("segsmith.segmentation.comparison.compare", lambda *paths: found)
    monkeypatch.setattr(Finalizer, "evaluate", lambda self: {})
    list(enlarge(voc, tmp_path / "run", {"trainer": {"real_passes": 0}}))
    folder = RunFolder(tmp_path / "run")
    assert folder.segmenter.read_text() == kept
    with closing(Ledger(folder.ledger, read_only=True)) as ledger:
        (chosen,) = [detail for _, _, detail in ledger.events("share_chosen")]
        trained = [detail["sha256"] for _, _, detail in ledger.events("trained")]
    assert chosen == {"mixed": 0.5, "real_only": real_only, "error": 0.02, "kept": kept}
    assert trained == [sha256_of(folder.segmenter)]


CLASSES_SORTED = sorted(CLASSES)  # folders are listed by name
