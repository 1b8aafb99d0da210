"""Where the files of images and masks are, in which format, and that runs of earlier versions keep theirs."""

import io

import numpy as np
import pytest
from PIL import Image as PILImage

from segsmith.errors import SegsmithError
from segsmith.files import PART, SUFFIXES, image_bytes, png_bytes, read_image
from segsmith.memory.run_config import RunRecord, resumed
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import leftovers, small_config, small_run

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create()
    return folder


@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
def test_a_new_image_is_in_a_sub_folder_named_by_its_id(run, form):
    path = run.new_image("i-ab12cd", form)
    assert path == run.images / "ab" / f"i-ab12cd{SUFFIXES[form]}"
    path.write_bytes(b"x")
    assert run.image("i-ab12cd") == path
    assert list(run.image_files()) == [path]
    assert run.new_mask("i-ab12cd") == run.masks / "ab" / "i-ab12cd.png"


def test_an_image_of_an_earlier_version_stays_where_it_is(run):
    flat = run.images / "i-ab12cd.png"
    flat.write_bytes(b"old")
    assert run.image("i-ab12cd") == run.new_image("i-ab12cd", "png") == flat
    assert run.mask("i-ab12cd") == run.masks / "ab" / "i-ab12cd.png"


def test_an_id_with_path_parts_is_rejected(run):
    for path_of in (run.image, run.mask, run.new_mask):
        with pytest.raises(SegsmithError, match="not an id"):
            path_of("i-../../x")


def test_unfinished_files_in_sub_folders_are_removed(run):
    left = run.new_image("i-ab12cd", "png").with_name(f"{PART}x")
    left.write_bytes(b"half")
    assert list(run.image_files()) == []
    with run.held():
        assert not left.exists()


@pytest.mark.parametrize(("form", "stored_as"), [("png", "PNG"), ("webp", "WEBP"), ("jpeg", "JPEG")])
def test_the_formats_are_what_they_say_and_only_jpeg_loses_pixels(form, stored_as):
    data = image_bytes(PIXELS, form, 95)
    assert PILImage.open(io.BytesIO(data)).format == stored_as
    assert image_bytes(PIXELS, form, 95) == data
    assert np.array_equal(read_image(data), PIXELS) == (form != "jpeg")


def test_index_maps_are_compressed_more_than_images():
    stripes = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    assert len(png_bytes(stripes)) < len(png_bytes(np.repeat(stripes[..., None], 3, 2)))


@pytest.mark.parametrize("form", ["webp", "jpeg"])
def test_a_build_in_another_format_resumes_and_is_exported(tmp_path, form):
    config = small_config(
        per_class=2,
        judge={"enabled": False},
        evaluation={"images": 0},
        trainer={"epochs": 1, "batch_size": 4},
        images={"size": 64, "batch_size": 4, "format": form},
    )
    run = small_run(tmp_path / "run", config)
    files = list(RunFolder(tmp_path / "run").image_files())
    assert {path.suffix for path in files} == {SUFFIXES[form]}
    assert len(list((tmp_path / "run/dataset/voc/JPEGImages").iterdir())) == len(run.images)
    assert leftovers(tmp_path / "run") == []
    assert run.export("coco", tmp_path / "coco")
    small_run(tmp_path / "run", config)
    assert list(RunFolder(tmp_path / "run").image_files()) == files


def test_another_format_is_rejected_by_name(tmp_path):
    before = RunRecord(small_config())
    now = small_config(images={"size": 64, "batch_size": 4, "format": "webp"})
    with pytest.raises(SegsmithError, match=r"images\.format = 'png', now it is 'webp'"):
        resumed(before, now, tmp_path)
