import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from planted_defects import edit_json, edit_mask, first, set_pixel, train_json, truncate
from pycocotools.mask import decode, frPyObjects, merge

from segsmith.datasets.formats import coco
from segsmith.datasets.imports import ImportedSplit, import_dataset, match_classes
from segsmith.datasets.instances import without_specks
from segsmith.datasets.mask_objects import find_objects, pack, unpack
from segsmith.datasets.objects import number_objects, object_map
from segsmith.errors import SegsmithError


@pytest.fixture
def copy(made_up, tmp_path):
    """`copy(form)`: an export to spoil."""
    return lambda form: shutil.copytree(made_up.folders[form], tmp_path / form)


@pytest.mark.parametrize("form", ["voc", "coco", "yolo", "cvat", "hf"])
def test_an_export_comes_back_as_the_run(made_up, form):
    data, folders = made_up.data, made_up.folders
    imported = import_dataset(folders[form])
    assert imported.classes == data.classes
    assert imported.skipped == ()
    records = {r.id: r for r in data.records}
    assert {i.id for i in imported.records} == set(records)
    for item in imported.records:
        record = records[item.id]
        assert (item.split, item.labels) == (record.split, record.labels)
        sample, original = item.load(), record.load()
        np.testing.assert_array_equal(sample.label_map, original.label_map)
        if form != "voc2012":
            np.testing.assert_array_equal(sample.image, original.image)


def pixels_of(segmentation, height, width):
    if isinstance(segmentation, list):
        segmentation = merge(frPyObjects(segmentation, height, width))
    return decode(segmentation).astype(bool)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_coco_annotations_give_the_label_map_back_with_right_areas_and_boxes(height, width, data):
    values = st.sampled_from([0, 1, 2, 255])
    rows = data.draw(
        st.lists(st.lists(values, min_size=width, max_size=width), min_size=height, max_size=height)
    )
    label_map = np.array(rows, np.uint8)
    rebuilt = np.zeros_like(label_map)
    for members in coco.object_annotations(unpack(pack(find_objects(label_map))), [1], 2):
        a = json.loads(f"{{{members}}}")
        mask = pixels_of(a["segmentation"], height, width)
        ys, xs = np.nonzero(mask)
        assert a["area"] == len(xs)
        assert a["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        rebuilt[mask] = 255 if a["iscrowd"] else a["category_id"]
    np.testing.assert_array_equal(rebuilt, without_specks(label_map))
    rebuilt = np.zeros_like(label_map)
    for members in coco.class_annotations(label_map, [1], 2):
        a = json.loads(f"{{{members}}}")
        rebuilt[pixels_of(a["segmentation"], height, width)] = 255 if a["iscrowd"] else a["category_id"]
    np.testing.assert_array_equal(rebuilt, label_map)


def test_objects_are_the_connected_parts_of_a_class():
    label_map = np.array([[1, 0, 1], [0, 1, 2], [255, 0, 2]], np.uint8)
    numbers = number_objects(label_map)
    assert numbers[0, 0] == numbers[1, 1] == numbers[0, 2] != numbers[1, 2] == numbers[2, 2]
    assert object_map(label_map)[2].tolist() == [255, 0, numbers[2, 2]]
    many = np.zeros((40, 80), np.uint8)
    many[::2, ::2] = 1
    assert set(np.unique(object_map(many))) == {*range(255), 255}


def test_unsound_files_are_named_counted_and_skipped(copy):
    root = copy("voc")
    truncate(first(root, "JPEGImages/*"))
    edit_mask(sorted(root.glob("SegmentationClass/*.png"))[1], set_pixel(77))
    edit_mask(sorted(root.glob("SegmentationClass/*.png"))[2], lambda m: m[:-3])
    imported = import_dataset(root)
    assert sorted(p.kind for p in imported.skipped) == ["corrupt_image", "undefined_index", "wrong_size"]
    assert len(imported.records) == 37
    bad = first(root, "JPEGImages/*").name
    assert any(bad in str(p) for p in imported.skipped)


def test_an_unlisted_category_costs_its_image_and_a_repeated_one_the_dataset(copy):
    root = copy("coco")
    edit_json(train_json(root), lambda c: c["annotations"][0].__setitem__("category_id", 91))
    imported = import_dataset(root)
    assert len(imported.records) == 39
    assert "unknown_class" in {p.kind for p in imported.skipped}
    edit_json(train_json(root), lambda c: c["categories"][0].__setitem__("name", "dog"))
    with pytest.raises(SegsmithError, match="dog"):
        import_dataset(root)


def test_classes_are_matched_by_name_never_by_index(copy):
    root = copy("coco")

    def renumber(content):
        new = {1: 40, 2: 17, 3: 3, 4: 88}
        for c in content["categories"]:
            c["id"] = new[c["id"]]
        content["categories"].reverse()
        for a in content["annotations"]:
            a["category_id"] = new[a["category_id"]]

    for path in root.glob("annotations/*.json"):
        edit_json(path, renumber)
    ours = ("pottedplant", "unicorn", "Cat")
    split = ImportedSplit(root, "train", ours)
    truth = ImportedSplit(copy("yolo"), "train", ours)
    assert set(split.ignored_classes) == {"dog", "bus"}
    assert split.sizes == [(64, 64)] * len(split)
    by_id = {item.id: truth.raw(i)[1] for i, item in enumerate(truth.source.records)}
    seen = set()
    for i, item in enumerate(split.source.records):
        np.testing.assert_array_equal(split.raw(i)[1], by_id[item.id])
        seen |= set(np.unique(split.raw(i)[1]).tolist())
    assert seen == {0, 1, 3, 255}


def test_no_common_class_or_two_equal_ones_are_rejected():
    assert match_classes(("pottedplant", "tv"), ("potted plant",)) == {"pottedplant": "potted plant"}
    with pytest.raises(SegsmithError, match="None of the classes"):
        match_classes(("dog",), ("cat",))
    with pytest.raises(SegsmithError, match="same name"):
        match_classes(("a b", "a-b"), ("ab",))


def test_voc_without_class_names_is_voc_only_if_its_annotations_say_so(copy):
    root = copy("voc")
    for name in ("classes.txt", "labelmap.txt"):
        (root / name).unlink()
    shutil.rmtree(root / "Annotations")
    with pytest.raises(SegsmithError, match="write one class a line"):
        import_dataset(root)
    (root / "Annotations").mkdir()
    (root / "Annotations/a.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    assert import_dataset(root).classes[7] == "cat"
    (root / "Annotations/b.xml").write_text("<annotation><object><name>unicorn</name></object></annotation>")
    with pytest.raises(SegsmithError, match="write one class a line"):
        import_dataset(root)


@pytest.mark.parametrize("splits", [(), ("train", "valid")])
def test_a_folder_per_class_gives_image_labels(tmp_path, splits):
    for base in [tmp_path / s for s in splits] or [tmp_path]:
        for name in ("cat", "potted plant"):
            (base / name).mkdir(parents=True)
            for k in range(2):
                PILImage.new("RGB", (8 + k, 8), "red").save(base / name / f"{k}.png")
        (base / "cat/2.png").write_bytes(b"not an image")
    imported = import_dataset(tmp_path)
    assert imported.classes == ("cat", "potted plant")
    assert {i.labels for i in imported.records} == {("cat",), ("potted plant",)}
    assert imported.splits == ({"train": 4, "val": 4} if splits else {"": 4})
    assert {p.kind for p in imported.skipped} == {"corrupt_image"}
    with pytest.raises(SegsmithError, match="image labels only"):
        ImportedSplit(tmp_path, "train" if splits else "", ("cat",))


def test_coco_polygons_and_overlaps(tmp_path):
    PILImage.new("RGB", (20, 10)).save(tmp_path / "a.png")
    square = lambda x, y, s: [[x, y, x + s, y, x + s, y + s, x, y + s]]  # noqa: E731
    rows = [(1, square(2, 2, 4)), (2, square(4, 2, 4))]
    content = {
        "images": [{"id": 5, "file_name": "a.png", "width": 20, "height": 10}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": c, "segmentation": s, "area": 16, "bbox": [s[0][0], 2, 4, 4], "iscrowd": 0}
            for i, (c, s) in enumerate(rows)
        ],
    }  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(content))
    (item,) = import_dataset(tmp_path).records
    label_map = item.load().label_map
    assert [label_map[3, 3], label_map[3, 5], label_map[3, 7], label_map[3, 9]] == [1, 255, 2, 0]


def test_no_dataset_at_all_says_what_is_looked_for(tmp_path):
    with pytest.raises(SegsmithError, match=r"annotations/\*\.json"):
        import_dataset(tmp_path)
    with pytest.raises(SegsmithError, match="not a folder"):
        import_dataset(tmp_path / "gone")
