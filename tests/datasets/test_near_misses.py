import shutil

import numpy as np
import pytest
from PIL import Image as PILImage

from segsmith.datasets.detect import detect
from segsmith.datasets.validate import validate
from segsmith.datasets.voc_folder import VocFolder
from segsmith.errors import SegsmithError


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(np.zeros((4, 4), np.uint8)).save(path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["train/a.png", "trainannot/a.png"], r"CamVid's layout \(train/ beside trainannot/\)"),
        (["test/a.png", "test_labels/a.png"], r"CamVid's layout \(test/ beside test_labels/\)"),
        (["JPEGImages/a.png", "SegmentationClass/a.png", "ImageSets/Main/x.png"], "only ImageSets/Main"),
        (["JPEGImages/a.png", "SegmentationClass/a.png"], "has no ImageSets/Segmentation/"),
        (["leftImg8bit/train/x/a.png", "gtFine/train/x/a.png"], "Cityscapes"),
        (["images/a.png", "masks/a.png"], "masks in masks/"),
        (["images/training/a.png", "annotations/training/a.png"], "masks in annotations/"),
    ],
)
def test_layouts_that_are_almost_right_are_named(tmp_path, files, words):
    for name in files:
        save(tmp_path / name)
    with pytest.raises(SegsmithError, match=words):
        detect(tmp_path)


@pytest.mark.parametrize("names", [("train", "bus"), ("images", "cat"), ("masks", "images")])
def test_classes_may_have_such_names(tmp_path, names):
    for name in names:
        save(tmp_path / name / f"{name}-1.png")
    assert detect(tmp_path).name == "folders"


def test_ids_with_extensions_are_one_problem_and_read_without(made_up, tmp_path):
    root = shutil.copytree(
        made_up.folders["voc"], tmp_path / "voc", ignore=shutil.ignore_patterns("manifest.json")
    )
    suffix = next((root / "JPEGImages").iterdir()).suffix
    for path in (root / "ImageSets/Segmentation").iterdir():
        path.write_text("".join(f"{name}{suffix}\n" for name in path.read_text().split()))
    found = validate(root, made_up.data)
    assert [p.kind for p in found.problems] == ["bad_split"]
    assert "test.txt, train.txt, trainval.txt, val.txt" in found.problems[0].where
    with pytest.raises(SegsmithError, match="Remove the extensions"):
        VocFolder(root, "train")


def test_background_in_the_class_list_is_reported(made_up, tmp_path):
    root = shutil.copytree(
        made_up.folders["voc"], tmp_path / "voc", ignore=shutil.ignore_patterns("manifest.json")
    )
    names = (root / "classes.txt").read_text()
    (root / "classes.txt").write_text(f"background\n{names}")
    assert "background_class" in {p.kind for p in validate(root).problems}
