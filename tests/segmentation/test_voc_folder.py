import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from squares_dataset import write_item, write_squares

from segsmith.datasets.voc_folder import VocFolder
from segsmith.errors import SegsmithError
from segsmith.segmentation.sampler import EpochSampler
from segsmith.segmentation.sources import Sample, stack
from segsmith.segmentation.transforms import place, restyle


@pytest.fixture
def copy(squares, tmp_path):
    return shutil.copytree(squares, tmp_path / "copy")


def test_items_have_the_content_of_the_files(squares):
    data = VocFolder(squares, "val")
    image, label = data[2]
    stored = np.asarray(Image.open(squares / "JPEGImages/val2.png"))
    assert data.classes == ("red", "blue")
    assert len(data) == 6
    assert image.shape == (3, 64, 64)
    assert torch.equal((image * 255).round().byte().permute(1, 2, 0), torch.from_numpy(stored.copy()))
    assert label.dtype == torch.int64
    assert set(label.unique().tolist()) <= {0, 1, 2, 255}


def test_palette_pngs_and_jpegs_are_read(tmp_path):
    root = write_squares(tmp_path / "d", splits={"train": 1})
    label = Image.open(root / "SegmentationClass/train0.png")
    indices = np.asarray(label).copy()
    palette = label.convert("P")
    palette.putpalette(list(range(256)) * 3)
    palette.save(root / "SegmentationClass/train0.png")
    Image.open(root / "JPEGImages/train0.png").save(root / "JPEGImages/train0.jpg")
    (root / "JPEGImages/train0.png").unlink()
    assert np.array_equal(VocFolder(root, "train").raw(0)[1], indices)


def test_class_pixels_count_known_pixels(squares):
    data = VocFolder(squares, "val")
    labels = np.stack([data.raw(i)[1] for i in range(len(data))])
    assert data.class_pixels().tolist() == [(labels == v).sum() for v in (0, 1, 2)]


def test_the_fingerprint_follows_the_pixels(copy):
    before = VocFolder(copy, "val").fingerprint()
    assert VocFolder(copy, "val").fingerprint() == before
    write_item(copy, "val0", np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8))
    assert VocFolder(copy, "val").fingerprint() != before


def spoil_size(root):
    Image.new("L", (32, 64)).save(root / "SegmentationClass/val1.png")


def spoil_index(root):
    Image.new("L", (64, 64), 3).save(root / "SegmentationClass/val1.png")


def spoil_mode(root):
    Image.new("RGB", (64, 64)).save(root / "SegmentationClass/val1.png")


def spoil_label(root):
    (root / "SegmentationClass/val1.png").unlink()


def spoil_image(root):
    (root / "JPEGImages/val1.png").unlink()


def spoil_bytes(root):
    (root / "JPEGImages/val1.png").write_bytes(b"not an image")


def spoil_classes(root):
    (root / "classes.txt").unlink()


def spoil_names(root):
    (root / "classes.txt").write_text("red\nred\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_size, ["val1.png", "32 x 64", "64 x 64"]),
        (spoil_index, ["val1.png", "index 3", "2 classes"]),
        (spoil_mode, ["val1.png", "index map"]),
        (spoil_label, ["SegmentationClass/val1.png", "missing"]),
        (spoil_image, ["JPEGImages", "val1"]),
        (spoil_bytes, ["JPEGImages/val1.png"]),
        (spoil_classes, ["classes.txt"]),
        (spoil_names, ["classes.txt"]),
    ],
)
def test_errors_name_the_file_and_the_problem(copy, spoil, words):
    spoil(copy)
    with pytest.raises(SegsmithError) as caught:
        VocFolder(copy, "val")
    assert all(word in str(caught.value) for word in words)
    assert caught.value.remedy


def test_the_error_for_a_missing_split_lists_the_existing_ones(squares):
    with pytest.raises(SegsmithError, match=r"minival.txt.*test, train, val"):
        VocFolder(squares, "minival")


def test_large_datasets_are_read_on_access(squares, monkeypatch):
    kept = VocFolder(squares, "val")
    monkeypatch.setattr("segsmith.datasets.voc_folder.RAM_BYTES", 0)
    read = VocFolder(squares, "val")
    assert kept.in_memory
    assert not read.in_memory
    assert torch.equal(kept[3][0], read[3][0])
    assert torch.equal(kept[3][1], read[3][1])
    assert kept.class_pixels().tolist() == read.class_pixels().tolist()
    assert len(read.fingerprint()) == 64


@pytest.mark.parametrize(("length", "batch"), [(24, 6), (10, 4), (1, 2), (3, 16)])
def test_an_epoch_has_every_image_in_full_batches(length, batch):
    sampler = EpochSampler(length, batch, 1, [-(-length // batch)])
    order = list(sampler)
    assert len(order) == len(sampler)
    assert len(order) % batch == 0
    assert set(order) == set(range(length))
    assert order[:length] != list(range(length)) or length < 10


def test_orders_differ_by_epoch_and_repeat_by_seed():
    sampler, again = EpochSampler(50, 5, 1, [10, 10]), EpochSampler(50, 5, 1, [10, 10])
    first = list(sampler)
    assert first == list(again)
    sampler.epoch = 1
    assert list(sampler) != first


def test_epochs_of_steps_are_shorter_or_longer_than_a_pass():
    """Few images are shown in a new order each time, and of many an epoch shows a part."""
    sampler = EpochSampler(6, 3, 1, [5, 4])
    orders = [list(sampler)]
    sampler.epoch = 1
    orders.append(list(sampler))
    assert [len(order) for order in orders] == [15, 12]
    for order in orders:
        assert set(order[:6]) == set(order[6:12]) == set(range(6))
        assert order[:6] != order[6:12]
    part = EpochSampler(1000, 4, 1, [3, 3])
    assert len(set(part)) == 12
    assert part.rates == [12 / 1000] * 1000


@pytest.mark.parametrize(
    ("n_real", "least", "share"), [(4, 0.5, 0.5), (30, 0.5, 0.75), (4, 0.25, 0.25), (4, 1.0, 1.0)]
)
def test_real_images_have_their_share_of_every_epoch(n_real, least, share):
    length = 40
    real = [i < n_real for i in range(length)]
    sampler = EpochSampler(length, 8, 1, [5] * 4, real, least)
    for sampler.epoch in range(3):
        order = list(sampler)
        assert len(order) == 40
        assert sum(real[i] for i in order) == round(40 * share)
        times = np.bincount([i for i in order if real[i]], minlength=n_real)[:n_real]
        assert times.max() - times.min() <= 1  # as evenly as possible


def test_repeated_real_images_even_out_the_classes():
    labels = [(1,)] * 9 + [(2,)] + [(1, 2)] * 30  # only one of the ten real images shows class 2
    real = [i < 10 for i in range(40)]
    sampler = EpochSampler(40, 8, 1, [5] * 4, real, 0.5, labels)
    for sampler.epoch in range(3):
        order = [i for i in sampler if real[i]]
        assert len(order) == 20
        assert set(order) == set(range(10)), "each once before any again"
        assert Counter(labels[i] for i in order) == {(1,): 10, (2,): 10}
    assert sampler.rates[9] == 10
    assert sum(sampler.rates) == 40


def test_class_pixels_count_images_as_often_as_they_are_drawn(squares):
    data = VocFolder(squares, "train")
    real = [i < 6 for i in range(24)]
    sampler = EpochSampler(24, 6, 1, [4] * 4, real, 1.0)
    assert sampler.rates == [4.0] * 6 + [0.0] * 18
    of_real = sum(np.bincount(data.raw(i)[1].ravel(), minlength=256) for i in range(6))[:3]
    assert data.class_pixels(sampler.rates).tolist() == (4 * of_real).tolist()


@pytest.mark.parametrize("kind", [True, False])
def test_images_of_one_kind_are_all_drawn(kind):
    assert sorted(EpochSampler(10, 5, 1, [2], [kind] * 10, 0.5)) == list(range(10))


def test_the_source_column_tells_real_images_from_generated_ones(copy, squares):
    (copy / "labels.csv").write_text("image_id,classes,source\ntrain0,red,generated\ntrain1,,real\n")
    before = VocFolder(squares, "train").fingerprint()
    data = VocFolder(copy, "train")
    assert data.real[:3] == [False, True, True]
    assert data.fingerprint() != before


def test_stacking_resizes_images_and_labels():
    label = torch.zeros(10, 12, dtype=torch.int64)
    label[5:] = 255
    allowed = torch.tensor([True, False])
    small = Sample(torch.rand(3, 6, 6), torch.ones(2, 6, 6, dtype=torch.int64), allowed)
    items = [Sample(torch.rand(3, 10, 12), torch.stack([label, label]), allowed), small]
    images, labels, _ = stack(items, (6, 6))
    assert images.shape == (2, 3, 6, 6)
    assert torch.equal(images[1], small.image)
    assert labels[0].tolist() == [[[0] * 6] * 3 + [[255] * 6] * 3] * 2


def augment(images, labels, size, generator):
    images, labels = place(images, labels[:, None], size, generator)
    return restyle(images, "sprites", generator)[0], labels[:, 0]


def batch():
    """Class 1 is bright everywhere, so that after any augmentation pixels and labels can be compared."""
    labels = torch.zeros(8, 48, 64, dtype=torch.int64)
    labels[:, 10:30, 12:40] = 1
    labels[:, 40:, :] = 255
    images = torch.full((8, 3, 48, 64), 0.3)
    images.permute(0, 2, 3, 1)[labels == 1] = 0.9
    return images, labels


def test_augmentation_moves_pixels_and_labels_together():
    images, labels = augment(*batch(), (32, 48), torch.Generator().manual_seed(0))
    assert images.shape == (8, 3, 32, 48)
    assert labels.shape == (8, 32, 48)
    assert labels.dtype == torch.int64
    assert set(labels.unique().tolist()) <= {0, 1, 255}
    assert 0 <= images.min() <= images.max() <= 1
    for image, label in zip(images.mean(1), labels, strict=True):
        if (label == 1).any() and (label == 0).any():
            assert image[label == 1].mean() > image[label == 0].mean() + 0.05


def test_augmentation_repeats_by_seed_and_varies():
    one = augment(*batch(), (32, 32), torch.Generator().manual_seed(0))
    same = augment(*batch(), (32, 32), torch.Generator().manual_seed(0))
    other = augment(*batch(), (32, 32), torch.Generator().manual_seed(1))
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[1], other[1])
    assert not torch.equal(one[1][0], one[1][1])
