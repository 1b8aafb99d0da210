"""Datasets that reach outside their folder or ask for too much memory, and exports that meet."""

import json
import os
import shutil
import tempfile
import threading
import tracemalloc

import numpy as np
import pytest
from PIL import Image as PILImage
from planted_defects import edit_json, first, train_json

from segsmith.datasets.formats.coco_masks import MaskError, parse
from segsmith.datasets.imports import import_dataset
from segsmith.datasets.staging import replace_folder
from segsmith.datasets.validate import validate
from segsmith.datasets.voc_folder import VocFolder
from segsmith.datasets.voc_layout import write_voc
from segsmith.datasets.weak_labels import kind_of
from segsmith.errors import SegsmithError
from segsmith.files import Conversion


@pytest.fixture
def copy(made_up, tmp_path):
    """`copy(form)`: an export to change."""

    def copied(form):
        root = shutil.copytree(made_up.folders[form], tmp_path / form)
        (root / "manifest.json").unlink()
        return root

    return copied


def kinds(root):
    return {problem.kind for problem in validate(root).problems}


@pytest.mark.parametrize("name", ["pipe:touch {}; cat train-000000.tar", "file:{}", "../x.tar", "/x.tar"])
def test_a_shard_is_a_file_of_the_dataset(copy, tmp_path, name):
    root, trace = copy("webdataset"), tmp_path / "trace"
    edit_json(root / "dataset.json", lambda c: c["shards"].__setitem__(name.format(trace), 3))
    assert {"outside_path", "missing_file"} & kinds(root)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["../../../secret.png", "{}/secret.png"])
def test_coco_reads_no_file_outside_its_folder(copy, tmp_path, name):
    PILImage.new("RGB", (64, 64)).save(tmp_path / "secret.png")
    root = copy("coco")
    edit_json(train_json(root), lambda c: c["images"][0].__setitem__("file_name", name.format(tmp_path)))
    assert "outside_path" in kinds(root)
    assert "outside_path" in {problem.kind for problem in import_dataset(root).skipped}


@pytest.mark.parametrize("name", ["../../secret", "a/../../../secret", "a\x1b[2Jb", "/etc/passwd"])
def test_voc_ids_are_plain_names(copy, name):
    root = copy("voc")
    with (root / "ImageSets/Segmentation/train.txt").open("a") as file:
        file.write(f"{name}\n")
    assert "bad_name" in kinds(root)
    assert "bad_name" in {problem.kind for problem in import_dataset(root).skipped}
    with pytest.raises(SegsmithError, match="the id"):
        VocFolder(root, "train")


def test_yolo_folders_lie_in_the_dataset(copy):
    root = copy("yolo")
    (root / "data.yaml").write_text((root / "data.yaml").read_text().replace("images/train", "../../.."))
    assert "outside_path" in kinds(root)


@pytest.mark.parametrize("form", ["voc", "yolo", "hf", "cvat"])
def test_links_that_leave_the_dataset_are_reported(copy, tmp_path, form):
    root = copy(form)
    path = next(p for p in sorted(root.rglob("*")) if p.suffix in (".png", ".jpg"))
    shutil.move(path, tmp_path / f"elsewhere{path.suffix}")
    path.symlink_to(tmp_path / f"elsewhere{path.suffix}")
    assert "outside_path" in kinds(root)


def test_a_writer_rejects_ids_that_leave_its_folder(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(SegsmithError, match="is not a plain path"):
        write_voc(tmp_path / "a" / "out", ["cat"], {"train": [("../../../x", pixels, pixels[:, :, 0])]})
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a"]


@pytest.mark.parametrize(
    "segmentation",
    [
        [[float("nan")] * 6],
        [[float("inf"), 1, 2, 3, 4, 5]],
        [[-1e9, 1, 2, 3, 4, 5]],
        [[1e300, 1, 2, 3, 4, 5]],
        [[0, 0, 64, 64] * 10_000],
        [[1, 2, 3]],
        {"size": [60_000, 60_000], "counts": [0, 3_600_000_000]},
        {"size": [64, 64], "counts": [-4096, 8192]},
        {"size": [64, 64], "counts": [10**12]},
        {"size": [64, 64], "counts": "oooooooooooooooooooo"},
        None,
    ],
)
def test_masks_out_of_bounds_are_rejected_before_native_code(segmentation):
    with pytest.raises(MaskError):
        parse(segmentation, (64, 64))


def test_deep_nesting_is_a_problem_not_a_traceback(copy):
    root = copy("coco")
    train_json(root).write_text("[" * 200_000)
    assert kinds(root) == {"bad_file"}
    root = copy("yolo")
    (root / "data.yaml").write_text("[" * 200_000)
    assert kinds(root) == {"bad_file"}


def test_validate_leaves_nothing_in_the_temporary_folder(made_up, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for folder in made_up.folders.values():
        validate(folder)
    assert os.listdir(tmp_path) == []


def test_conversions_are_counted_alike_and_said(copy, segsmith):
    root = copy("voc2012") / "VOCdevkit/VOC2012"
    path = first(root, "JPEGImages/*.jpg")
    exif = PILImage.Exif()
    exif[0x0112] = 3
    with PILImage.open(path) as image:
        image.convert("CMYK").save(path, exif=exif)
    expected = {Conversion.ORIENTED: 1, Conversion.COLOUR_SPACE: 1}
    assert validate(root).conversions == expected
    assert import_dataset(root).conversions == expected
    split = next(s for s in ("train", "val", "test") if path.stem in VocFolder(root, s).ids)
    assert VocFolder(root, split).conversions == expected
    assert VocFolder(root, split, keep=False).conversions == expected
    assert "1 image was rotated by the EXIF orientation." in segsmith("validate", root)[1]


def test_sixteen_bit_masks_are_rejected_alike(copy):
    root = copy("voc")
    name = VocFolder(root, "train").ids[0]
    PILImage.fromarray(np.ones((64, 64), np.uint16)).save(root / f"SegmentationClass/{name}.png")
    assert "colour_mask" in kinds(root)
    assert "colour_mask" in {problem.kind for problem in import_dataset(root).skipped}
    with pytest.raises(SegsmithError, match="16-bit"):
        VocFolder(root, "train")


def test_a_mask_of_noise_costs_no_mask_per_component():
    noise = np.random.default_rng(0).choice(np.array([1, 255], np.uint8), (700, 700), p=[0.15, 0.85])
    tracemalloc.start()
    assert kind_of([noise]) == "points"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_two_exports_to_one_folder_do_not_mix(tmp_path):
    started, go_on = threading.Event(), threading.Event()

    def slow(sink):
        sink.put("first.txt", b"1")
        started.set()
        go_on.wait(30)

    thread = threading.Thread(target=replace_folder, args=(tmp_path / "out", "first", slow))
    thread.start()
    started.wait(30)
    with pytest.raises(SegsmithError, match="Another process is exporting"):
        replace_folder(tmp_path / "out", "second", lambda sink: sink.put("second.txt", b"2"))
    go_on.set()
    thread.join()
    assert list(json.loads((tmp_path / "out/manifest.json").read_text())["files"]) == ["first.txt"]
    assert os.listdir(tmp_path) == ["out"]
    assert replace_folder(tmp_path / "out", "second", lambda sink: sink.put("second.txt", b"2"))
    assert sorted(os.listdir(tmp_path / "out")) == ["manifest.json", "second.txt"]
