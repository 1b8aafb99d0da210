"""What every `PointSegmenter` promises, asked of the mini SAM and of a full-size official file."""

import numpy as np
import pytest
import torch
from segment_anything import build_sam_vit_b

from segsmith.errors import SegsmithError
from segsmith.protocols import PointSegmenter
from segsmith.tools.vision.sam import SamSegmenter


@pytest.fixture(scope="module")
def official_file(tmp_path_factory):
    """375 MB in the format of Meta's file, with random weights."""
    file = tmp_path_factory.mktemp("sam") / "sam_vit_b_01ec64.pth"
    torch.manual_seed(0)
    torch.save(build_sam_vit_b().state_dict(), file)
    yield file
    file.unlink()


@pytest.fixture(
    scope="module", params=["mini", "mini, bfloat16", pytest.param("vit_b", marks=pytest.mark.slow)]
)
def segmenter(request):
    if request.param == "vit_b":
        return SamSegmenter.load(str(request.getfixturevalue("official_file")), device="cpu")
    return SamSegmenter.load("mini", "cpu", "bfloat16" if "bfloat16" in request.param else "auto")


def random_image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def points(*pairs):
    return np.array(pairs, np.float32)


def test_candidates_have_the_images_size_and_scores_between_0_and_1(segmenter):
    assert isinstance(segmenter, PointSegmenter)
    (one, three) = segmenter.segment(random_image(), [points((10, 10)), points((10, 10), (40, 30), (70, 50))])
    for candidates in (one, three):
        assert candidates.masks.dtype == bool
        assert candidates.masks.shape[1:] == (60, 80)
        assert len(candidates.masks) == len(candidates.scores) >= 1
        assert candidates.scores.dtype == np.float32
        assert 0 <= candidates.scores.min() <= candidates.scores.max() <= 1


def test_an_image_is_embedded_once_for_any_number_of_prompts(segmenter, monkeypatch):
    calls = []
    encoder = segmenter._sam.image_encoder
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda x: calls.append(len(x)) or forward(x))
    found = segmenter.segment(random_image(), [points((x, 20)) for x in range(5, 75, 5)])
    assert len(found) == 14
    assert sum(calls) == 1


def test_no_prompt_no_candidates(segmenter):
    assert segmenter.segment(random_image(), []) == []


@pytest.mark.parametrize("damage", ["text", "cut", "other weights"])
def test_a_file_that_is_not_a_sam_costs_one_line(tmp_path, damage):
    file = tmp_path / "sam.pth"
    if damage == "text":
        file.write_bytes(b"hello")
    elif damage == "other weights":
        torch.save({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}, file)
    else:
        torch.save({"a": torch.zeros(10_000)}, file)
        file.write_bytes(file.read_bytes()[:5_000])
    with pytest.raises(SegsmithError) as error:
        SamSegmenter.load(str(file), device="cpu")
    assert "\n" not in str(error.value)
    assert "labeler.sam" in str(error.value)


def test_an_official_name_that_was_not_fetched_says_how_to_fetch_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGSMITH_CACHE", str(tmp_path))
    with pytest.raises(SegsmithError, match="segsmith models pull"):
        SamSegmenter.load("sam_vit_h", device="cpu")
