"""The labels of a split: the dataset's, SAM's elsewhere, and the classes that each image can show."""

import shutil

import numpy as np
import pytest

from segsmith.datasets.voc_folder import VocFolder
from segsmith.errors import SegsmithError
from segsmith.segmentation.sources import LabelSources, load_maps, pixels_of, save_maps


@pytest.fixture
def squares_copy(squares, tmp_path):
    return shutil.copytree(squares, tmp_path / "data")


def test_label_maps_are_read_as_they_were_saved(tmp_path):
    maps = [np.random.default_rng(i).integers(0, 256, (5, 7 + i), np.uint8) for i in range(3)]
    save_maps(tmp_path / "m.zip", ["a", "b/c", "d"], maps)
    back = [pixels_of(png) for png in load_maps(tmp_path / "m.zip", ["a", "b/c", "d"])]
    assert all(np.array_equal(one, other) for one, other in zip(maps, back, strict=True))


@pytest.mark.parametrize("spoil", ["truncated", "missing", "other images"])
def test_the_error_for_damaged_label_maps_names_the_file(tmp_path, spoil):
    path = tmp_path / "m.zip"
    save_maps(path, ["a"], [np.zeros((4, 4), np.uint8)])
    if spoil == "truncated":
        path.write_bytes(path.read_bytes()[:30])
    if spoil == "missing":
        path.unlink()
    with pytest.raises(SegsmithError, match=r"m\.zip are damaged"):
        load_maps(path, ["b" if spoil == "other images" else "a"])


def test_sams_labels_count_only_where_the_dataset_has_none(squares, tmp_path):
    data = VocFolder(squares, "train")
    sources = LabelSources(data, drawn_classes_only=True)
    assert sources[0].labels.shape == (1, 64, 64)
    save_maps(tmp_path / "m.zip", data.ids, [np.full((64, 64), 2, np.uint8)] * len(data))
    sources.use(tmp_path / "m.zip")
    given, sam = sources[0].labels.numpy()
    assert np.array_equal(given, data.raw(0)[1])
    assert np.array_equal(sam, np.where(given == 255, 2, 255))
    both = np.stack([np.stack(sources[i].labels.numpy()) for i in range(len(data))])
    assert sources.class_pixels().tolist() == [(both == v).sum() for v in (0, 1, 2)]


def test_an_image_can_show_the_classes_it_is_labelled_with_and_all_if_unlabelled(squares_copy):
    from PIL import Image

    def paint(name, value):
        Image.fromarray(np.full((64, 64), value, np.uint8)).save(
            squares_copy / f"SegmentationClass/{name}.png"
        )

    paint("train0", 1)
    paint("train1", 255)
    paint("train2", 255)
    (squares_copy / "labels.csv").write_text("image_id,classes\ntrain2,blue\n")
    sources = LabelSources(VocFolder(squares_copy, "train"), drawn_classes_only=True)
    assert [sources.allowed(i).tolist() for i in range(3)] == [
        [True, True, False], [True, True, True], [True, False, True],
    ]  # fmt: skip
    unrestricted = LabelSources(VocFolder(squares_copy, "train"), drawn_classes_only=False)
    assert unrestricted.allowed(0).all()


def test_an_image_label_that_is_no_class_is_rejected(squares_copy):
    (squares_copy / "labels.csv").write_text("image_id,classes\ntrain2,zebra\n")
    with pytest.raises(SegsmithError, match=r"labels\.csv.*zebra"):
        VocFolder(squares_copy, "train")
