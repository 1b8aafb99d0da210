"""`segsmith refine` through the command line: what it makes, and what it says of data that is not as it should."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from segsmith.datasets.voc_layout import write_voc
from segsmith.tools.images.simulator import unseen_scenes
from segsmith.workflows.weaken import weaken_dataset

CLASSES = ("cat", "bus")
QUICK = [
    "--set", "trainer.encoder=tu-test_resnet", "--set", "trainer.epochs=2", "--set", "trainer.refresh_every=1",
    "--set", "trainer.teacher_from=0.5",
]  # fmt: skip
SEEDED = ["--set", "labeler.epochs=1", "--set", "labeler.folds=2"]
"""For image labels only."""
SAM = ["--set", "labeler.min_sam_agreement=0"]
"""The six images have too few objects to judge the mini SAM by."""
WARNING = "The mini SAM was trained on sprites."


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    root = tmp_path_factory.mktemp("refine") / "full"

    def pairs(split, count, seed):
        for index, scene in enumerate(unseen_scenes(CLASSES, count, seed, 64)):
            yield f"{split}{index}", scene.image, scene.class_mask(CLASSES)

    write_voc(root, CLASSES, {"train": pairs("train", 6, 1), "val": pairs("val", 2, 50)})
    return root


@pytest.fixture(scope="module")
def weak_sets(full):
    def weakened(kind):
        out = full.parent / kind
        if not out.exists():
            weaken_dataset(full, out, kind, 0)
        return out

    return weakened


@pytest.fixture
def points(weak_sets, tmp_path):
    return shutil.copytree(weak_sets("points"), tmp_path / "points")


def mask(root, name="train0"):
    return np.array(Image.open(root / "SegmentationClass" / f"{name}.png"))


def save_mask(root, pixels, name="train0"):
    Image.fromarray(pixels).save(root / "SegmentationClass" / f"{name}.png")


@pytest.mark.parametrize("kind", ["points", "scribbles", "coarse", "image"])
def test_weak_labels_of_every_kind_give_dense_masks_and_a_segmenter(
    segsmith, full, weak_sets, tmp_path, kind
):
    out = tmp_path / "run"
    words = ["refine", "--dataset", weak_sets(kind), "--weak", kind, "--truth", full, "--out", out, *QUICK]
    code, said, complaint = segsmith(*words, *(SEEDED if kind == "image" else SAM))
    assert (code, complaint.count("\n"), complaint.startswith(WARNING)) == (0, 1, True)
    assert f"weak labels: {kind}; images: train 6, val 2" in said
    assert "before SAM" in said
    assert "final masks" in said
    assert (out / "checkpoints" / "segmenter.safetensors").exists()
    drawn, dense = mask(out / "given"), mask(out / "voc")
    assert np.array_equal(dense[drawn != 255], drawn[drawn != 255])
    assert (dense != 255).mean() > (drawn != 255).mean()


def test_the_same_command_goes_on_and_another_is_refused(segsmith, points, tmp_path):
    words = ["refine", "--dataset", points, "--out", tmp_path / "run", *QUICK]
    assert segsmith(*words)[0] == 0
    made = [
        p for p in (tmp_path / "run").rglob("*.*") if p.is_file() and p.stem not in ("segmenter", ".lock")
    ]
    before = [p.stat().st_mtime_ns for p in made]
    assert segsmith(*words)[0] == 0
    assert [p.stat().st_mtime_ns for p in made] == before
    code, _, complaint = segsmith(*words, "--seed", 1)
    assert (code, "exists already" in complaint) == (2, True)


def test_a_folder_of_an_earlier_version_resumes_and_leftovers_are_removed(segsmith, points, tmp_path):
    out = tmp_path / "out"
    words = ["refine", "--dataset", points, "--out", out, "--no-train"]
    out.mkdir()
    (out / ".part-note").write_text("half")  # killed while it wrote refine.txt
    assert segsmith(*words)[0] == 0
    note = out / "refine.txt"
    before = note.read_text()
    note.write_text(
        before.replace('"writes_sentences"', '"able"').replace('"strong_view":"auto"', '"strong_view":true')
    )
    assert note.read_text() != before
    (out / ".part-voc").mkdir()
    (out / ".part-voc" / "x").write_text("half")
    assert segsmith(*words)[0] == 0
    assert not list(out.glob(".part-*"))


def test_without_training_sam_alone_makes_the_masks(segsmith, points, tmp_path):
    code, said, _ = segsmith("refine", "--dataset", points, "--out", tmp_path / "run", "--no-train", *SAM)
    assert (code, "components outlined by SAM" in said) == (0, True)
    assert (mask(tmp_path / "run" / "voc") != 255).mean() > 0.3
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_where_sams_masks_contradict_what_is_drawn_it_is_not_used(
    segsmith, full, weak_sets, tmp_path, monkeypatch
):
    monkeypatch.setattr("segsmith.segmentation.sam_trial.ENOUGH", 1)
    out = tmp_path / "run"
    strict = [*QUICK, "--set", "labeler.min_sam_agreement=1"]
    words = ["refine", "--dataset", weak_sets("scribbles"), "--out", out, "--truth", full, *strict]
    code, said, _ = segsmith(*words)
    assert (code, "SAM is not used: fewer than 100% of its masks agree" in said) == (0, True)
    assert "components outlined by SAM" not in said
    drawn, dense = mask(out / "given"), mask(out / "voc")
    assert np.array_equal(dense[drawn != 255], drawn[drawn != 255])
    assert (dense != 255).mean() > 0.3
    assert segsmith(*words)[0] == 0  # the stored trial leads to the same folder
    (out / "sam.json").write_text("{")
    code, _, complaint = segsmith(*words)
    assert (code, "sam.json" in complaint, complaint.count("\n")) == (2, True, 2)  # with the warning


def test_without_sam_the_masks_are_other_ones(segsmith, weak_sets, tmp_path):
    made = []
    for name, extra in (("with", SAM), ("without", ["--set", "labeler.use_sam=false"])):
        out = tmp_path / name
        words = ["refine", "--dataset", weak_sets("scribbles"), "--out", out, "--no-train", *extra]
        code, _, complaint = segsmith(*words)
        assert (code, complaint.startswith(WARNING)) == (0, name == "with")
        made.append(mask(out / "voc"))
    assert not np.array_equal(*made)


# -- skipped where that is safe, and named ----------------------------------------------------------


def wrong_size(root):
    save_mask(root, np.full((8, 8), 255, np.uint8))


def strange_index(root):
    pixels = mask(root)
    pixels[0, 0] = 77
    save_mask(root, pixels)


def corrupt(root):
    path = root / "JPEGImages" / "train0.png"
    Image.open(path).convert("RGB").save(path.with_suffix(".jpg"))
    whole = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").write_bytes(whole[: len(whole) // 3])
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(wrong_size, "wrong_size"), (strange_index, "77"), (corrupt, "cannot be decoded")],
    ids=["mask of another size", "class id outside the list", "corrupt JPEG"],
)
def test_a_file_that_cannot_be_used_is_skipped_and_named(segsmith, points, tmp_path, spoil, words):
    spoil(points)
    code, said, complaint = segsmith("refine", "--dataset", points, "--out", tmp_path / "run", "--no-train")
    assert (code, "images: train 5" in said) == (0, True)
    assert "files skipped, repaired or converted: 1" in complaint
    assert "train0" in complaint
    assert words in complaint
    assert not (tmp_path / "run/voc/SegmentationClass/train0.png").exists()


def test_an_image_on_which_nothing_is_drawn_is_named_and_stays_unknown(segsmith, points, tmp_path):
    save_mask(points, np.full((64, 64), 255, np.uint8))
    (points / "labels.csv").unlink(missing_ok=True)
    code, _, complaint = segsmith("refine", "--dataset", points, "--out", tmp_path / "run", "--no-train")
    assert code == 0
    assert "training images without a label: 1" in complaint
    assert "train0" in complaint
    assert (mask(tmp_path / "run" / "voc") == 255).all()


def test_a_class_without_labels_is_named(segsmith, points, tmp_path):
    (points / "classes.txt").write_text("cat\nbus\nzebra\n")
    code, _, complaint = segsmith("refine", "--dataset", points, "--out", tmp_path / "run", "--no-train")
    assert (code, "classes that no training image shows: 1\n  zebra" in complaint) == (0, True)


def test_one_image_is_enough(segsmith, points, tmp_path):
    (points / "ImageSets/Segmentation/train.txt").write_text("train0\n")
    code, said, _ = segsmith("refine", "--dataset", points, "--out", tmp_path / "run", *QUICK)
    assert (code, "images: train 1" in said) == (0, True)


def coco(root, polygon, image_size=(64, 64)):
    """One image with one polygon of a cat."""
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(root / "train" / "a.png")
    xs, ys = polygon[::2], polygon[1::2]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": image_size[0], "width": image_size[1]}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 5, "image_id": 1, "category_id": 1, "segmentation": [polygon], "bbox": box, "area": 400}
        ],
    }
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return root


def test_a_coco_polygon_is_a_coarse_label_and_the_rest_of_the_image_is_unknown(segsmith, tmp_path):
    root = coco(tmp_path / "coco", [20, 20, 40, 20, 40, 40, 20, 40])
    code, said, complaint = segsmith("refine", "--dataset", root, "--out", tmp_path / "run", "--no-train")
    assert (code, complaint.startswith(WARNING)) == (0, True)
    assert "weak labels: coarse" in said
    given = mask(tmp_path / "run" / "given", "a")
    assert set(np.unique(given)) == {1, 255}


def test_a_coco_polygon_out_of_bounds_is_named_and_cut(segsmith, tmp_path):
    root = coco(tmp_path / "coco", [40, 40, 90, 40, 90, 60, 40, 60])
    code, _, complaint = segsmith("refine", "--dataset", root, "--out", tmp_path / "run", "--no-train")
    assert code == 0
    assert "annotation 5" in complaint
    assert "leaves the image" in complaint
    assert (mask(tmp_path / "run" / "given", "a")[45, 41:63] == 1).all()


# -- refused where nothing else is safe -------------------------------------------------------------


def no_split(root):
    (root / "ImageSets/Segmentation/train.txt").unlink()
    (root / "ImageSets/Segmentation/trainval.txt").unlink()


def nothing_drawn(root):
    for path in (root / "SegmentationClass").glob("train*.png"):
        save_mask(root, np.full((64, 64), 255, np.uint8), path.stem)
    (root / "labels.csv").unlink(missing_ok=True)


def all_drawn(root):
    for path in (root / "SegmentationClass").glob("train*.png"):
        save_mask(root, np.ones((64, 64), np.uint8), path.stem)


def no_classes(root):
    (root / "classes.txt").unlink()


def a_name_that_leaves(root):
    (root / "ImageSets/Segmentation/train.txt").write_text("../points/JPEGImages/../train0\n")


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"),
    [
        (no_split, [], "no split train"),
        (nothing_drawn, [], "No class is labelled"),
        (all_drawn, [], "label every pixel"),
        (no_classes, [], "classes.txt"),
        (None, ["--weak", "image"], "Type --weak points"),
        (None, ["--weak", "dots"], "points, scribbles, coarse, image"),
        (None, ["--set", "trainer.refresh=3"], "refresh_every"),
        (None, ["--preset", "tpu"], "sim, cpu, gpu, hosted"),
        (None, ["--set", "labeler.epochs=3"], "labeler.epochs has no effect in `segsmith refine` on points"),
        (None, ["--set", "trainer.epochs=3", "--no-train"], "trainer.epochs has no effect"),
        (None, ["--set", "labeler.use_sam=false", "--set", "labeler.points=3"], "without SAM"),
        (None, ["--set", "images.size=64"], "images.size has no effect in `segsmith refine`"),
        (None, ["--set", "labeler.sam=/nowhere.pth"], "/nowhere.pth"),
        (None, ["--dataset", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_meant_costs_one_line_and_leaves_nothing(
    segsmith, points, tmp_path, spoil, arguments, words
):
    if spoil is not None:
        spoil(points)
    code, _, complaint = segsmith("refine", "--dataset", points, "--out", tmp_path / "run", *arguments)
    assert code == 2
    assert words in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "run").exists()
