"""A foreign dataset as the real images of a run: read, copied, and exported beside the generated ones."""

import csv
import shutil
from contextlib import closing

import numpy as np
import pytest
from PIL import Image as PILImage

from segsmith.datasets.detect import EXPORTS
from segsmith.datasets.export import export_dataset
from segsmith.datasets.imports import import_dataset
from segsmith.datasets.run_dataset import collect
from segsmith.datasets.survey import keep, survey
from segsmith.datasets.validate import validate
from segsmith.errors import SegsmithError
from segsmith.memory.real_images import RealSet
from segsmith.testing import made_up_run
from segsmith.workflows.verify import verify

SHARES = (0.8, 0.1, 0.1)


def write_noise(path, seed, size=(40, 56)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    PILImage.fromarray(noise).save(path)


@pytest.fixture
def folders(tmp_path):
    """20 cats, 3 dogs, JPEG and PNG, one corrupt, and two files of the same name."""
    for i in range(20):
        write_noise(tmp_path / "set" / "cat" / f"{i}.{'jpg' if i % 2 else 'png'}", i)
    for i in range(3):
        write_noise(tmp_path / "set" / "dog" / f"{i}.jpg", 100 + i)
    (tmp_path / "set" / "dog" / "broken.jpg").write_bytes(b"\xff\xd8 not an image")
    return tmp_path / "set"


def test_a_folder_per_class_is_divided_and_the_corrupt_file_named(folders, tmp_path):
    found = survey(folders, tmp_path / "run", SHARES, 0)
    assert [i.labels for i in found.real.images].count(("dog",)) == 3
    assert len(found.real.skipped) == 1
    assert "broken.jpg" in found.real.skipped[0]
    splits = [i.split for i in found.real.images]
    assert {"train", "val", "test"} == set(splits)
    assert not (tmp_path / "run").exists()  # surveying writes nothing
    assert len({i.id for i in found.real.images}) == 23


def test_the_copy_is_byte_for_byte_and_made_once(folders, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    found = survey(folders, run, SHARES, 0)
    real = keep(found)
    assert RealSet.open(run / "real") == real
    for item, image in zip(found.source.records, real.images, strict=True):
        assert real.image(image).read_bytes() == item.image_path.read_bytes()
    shutil.rmtree(folders)
    assert keep(found) == real
    assert sorted(p.name for p in run.iterdir()) == ["real"]


@pytest.mark.parametrize("form", ["voc", "coco"])
def test_splits_labels_and_label_maps_are_those_of_the_dataset(made_up, tmp_path, form):
    data, exports = made_up.data, made_up.folders
    real = keep(survey(exports[form], tmp_path, SHARES, 0))
    records = {r.id: r for r in data.records}
    assert len(real.images) == len(records)
    for image in real.images:
        record = records[image.original]
        assert (image.split, image.labels, image.masked) == (record.split, record.labels, True)
        np.testing.assert_array_equal(real.read_mask(image), record.load().label_map)


@pytest.fixture(scope="module")
def enlarged(made_up, tmp_path_factory):
    """The made-up run again, as one that enlarges its own VOC export."""
    run, ledger, config = made_up_run(tmp_path_factory.mktemp("enlarged") / "run", 40, size=64)
    keep(survey(made_up.folders["voc"], run.root, SHARES, 0))
    yield run, ledger, config
    ledger.close()


@pytest.mark.parametrize("form", EXPORTS)
def test_every_format_holds_both_and_tells_them_apart(enlarged, form):
    run, ledger, config = enlarged
    records = collect(run, ledger, config).records
    assert [r.origin.source for r in records] == ["real"] * 40 + ["generated"] * 40
    assert {r.split for r in records if r.origin.source == "generated"} == {"train"}
    folder = export_dataset(run, ledger, config, form).folder
    texts = [p.read_text("utf-8") for p in folder.rglob("*") if p.suffix in (".csv", ".json", ".jsonl")]
    if form != "webdataset":  # inside its shards
        assert any("generated" in text and "real" in text for text in texts)
    found = validate(folder)
    assert found.images == 80
    # Both parts hold the same images here, which is all that validate may notice.
    assert {p.kind for p in found.problems} <= {"near_duplicate"}


def test_swapped_label_maps_are_noticed(made_up, tmp_path):
    run, ledger, config = made_up_run(tmp_path / "run", 8, size=64)
    real = keep(survey(made_up.folders["voc"], run.root, SHARES, 0))
    first, second = real.images[:2]
    assert first.mask_sha256 != second.mask_sha256
    content = real.mask(second).read_bytes()
    real.mask(second).write_bytes(real.mask(first).read_bytes())
    with pytest.raises(SegsmithError, match="is not the one"):
        real.read_mask(second)
    with closing(ledger), pytest.raises(SegsmithError, match=second.id):
        export_dataset(run, ledger, config, "voc")
    found = verify(run.root).findings
    assert f"real/masks/{second.id}.png" in {finding.where for finding in found}
    real.mask(second).write_bytes(content)
    assert not [f for f in verify(run.root).findings if f.where.startswith("real/")]


def test_in_voc_real_images_stay_the_files_they_were(enlarged, made_up):
    run, ledger, config = enlarged
    folder = export_dataset(run, ledger, config, "voc").folder
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    real = {row["image_id"] for row in rows if row["source"] == "real"}
    assert len(real) == 40
    for name in real:
        original = made_up.folders["voc"] / "JPEGImages" / f"{name.removeprefix('real-')}.png"
        assert (folder / "JPEGImages" / f"{name}.png").read_bytes() == original.read_bytes()
    assert len(import_dataset(folder).records) == 80


def spoilt(folders, how):
    if how == "one image":
        for path in list(folders.rglob("*.*"))[1:]:
            path.unlink()
        write_noise(folders / "cat" / "0.png", 0)
        shutil.rmtree(folders / "dog")
        for path in (folders / "cat").glob("*"):
            if path.name != "0.png":
                path.unlink()
    elif how == "a name no prompt can hold":
        (folders / "dog").rename(folders / "dog;rm")


@pytest.mark.parametrize("how", ["one image", "a name no prompt can hold"])
def test_unusable_datasets_are_rejected(folders, tmp_path, how):
    spoilt(folders, how)
    with pytest.raises(SegsmithError, match=r"too few|may only contain"):
        survey(folders, tmp_path / "run", SHARES, 0)


def test_an_image_in_two_lists_is_taken_once(made_up, tmp_path):
    root = shutil.copytree(made_up.folders["voc"], tmp_path / "voc")
    lists = root / "ImageSets" / "Segmentation"
    (lists / "val.txt").unlink()  # so that trainval is a list of its own
    found = survey(root, tmp_path / "run", SHARES, 0)
    names = [image.original for image in found.real.images]
    assert len(names) == len(set(names))
    train = set((lists / "train.txt").read_text().split())
    assert train <= {image.original for image in found.real.images if image.split == "train"}


def test_splits_are_known_by_their_beginning(tmp_path):
    for split, count in (("train", 6), ("valid", 3)):
        for i in range(count):
            write_noise(tmp_path / "set" / split / "cat" / f"{i}.png", i + len(split) * 100)
    found = survey(tmp_path / "set", tmp_path / "run", SHARES, 0)
    assert [i.split for i in found.real.images] == ["train"] * 6 + ["val"] * 3
