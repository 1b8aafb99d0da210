"""What every `PointSegmenter` promises, asked of the mini SAM and of a full-size official file."""

import json
from itertools import chain

import numpy as np
import pytest
import torch
import transformers
from segment_anything import build_sam_vit_b

from segsmith.config import Config
from segsmith.errors import SegsmithError
from segsmith.protocols import PointSegmenter
from segsmith.tools.vision.mask_refiner import MaskRefiner
from segsmith.tools.vision.sam import SamSegmenter, check_sam, load_segmenter
from segsmith.tools.vision.sam_views import ViewAveraging
from segsmith.tools.weights.model_requirements import requirements_of


@pytest.fixture(scope="module")
def official_file(tmp_path_factory):
    """375 MB in the format of Meta's file, with random weights."""
    file = tmp_path_factory.mktemp("sam") / "sam_vit_b_01ec64.pth"
    torch.manual_seed(0)
    torch.save(build_sam_vit_b().state_dict(), file)
    yield file
    file.unlink()


PROMPT = {"hidden_size": 32, "image_size": 64, "patch_size": 16}
DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32}


def hub_sam(folder, kind):
    """A tiny SAM 2.1 or SAM-HQ with the files, key names and model types of the repositories on the hub."""
    torch.manual_seed(0)
    if kind == "SAM 2.1":
        hiera = {
            "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64],
            "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 4, 4, 4],
            "global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4],
        }  # fmt: skip
        vision = {
            "model_type": "sam2_vision_model", "backbone_config": hiera, "fpn_hidden_size": 32,
            "backbone_channel_list": [64, 32, 16, 8], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        }  # fmt: skip
        make, config = transformers.Sam2Model, transformers.Sam2Config
    else:
        vision = {
            "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1],
            "num_pos_feats": 16, "mlp_dim": 32,
        }  # fmt: skip
        make, config = transformers.SamHQModel, transformers.SamHQConfig
    decoder = DECODER if kind == "SAM 2.1" else {**DECODER, "vit_dim": 32}
    model = make(config(vision_config=vision, prompt_encoder_config=PROMPT, mask_decoder_config=decoder))
    model.save_pretrained(folder)
    if (
        kind == "SAM 2.1"
    ):  # facebook/sam2.1-hiera-* state the video model, whose weights contain the image model's
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "sam2_video"}))
    return folder


@pytest.fixture(
    scope="module",
    params=[
        "mini",
        "mini, bfloat16",
        "mini, views",
        "mini, refined",
        "SAM 2.1",
        "SAM-HQ",
        pytest.param("vit_b", marks=pytest.mark.slow),
    ],
)
def segmenter(request, tmp_path_factory):
    if request.param in ("SAM 2.1", "SAM-HQ"):
        folder = hub_sam(tmp_path_factory.mktemp("sam"), request.param)
        check_sam(str(folder))
        return load_segmenter(str(folder), "cpu")
    if request.param == "vit_b":
        return SamSegmenter.load(str(request.getfixturevalue("official_file")), device="cpu")
    sam = SamSegmenter.load("mini", "cpu", "bfloat16" if "bfloat16" in request.param else "auto")
    if "refined" in request.param:
        return MaskRefiner(ViewAveraging(sam), sam.refiner)
    return ViewAveraging(sam) if "views" in request.param else sam


def skip_full_size(segmenter):
    if "vit_b" in segmenter.name:
        pytest.skip("an image takes seconds; the mini model goes through the same code")


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
    if isinstance(segmenter, ViewAveraging | MaskRefiner):
        pytest.skip("each prompt has a crop of its own")
    calls = []
    model = getattr(segmenter, "_sam", None)
    encoder = segmenter._model.vision_encoder if model is None else model.image_encoder
    forward = encoder.forward

    def embed(pixels=None, pixel_values=None, **options):
        pixels = pixel_values if pixels is None else pixels
        calls.append(len(pixels))
        return forward(pixels, **options)

    monkeypatch.setattr(encoder, "forward", embed)
    found = segmenter.segment(random_image(), [points((x, 20)) for x in range(5, 75, 5)])
    assert len(found) == 14
    assert sum(calls) == 1


def test_several_images_are_answered_in_order(segmenter):
    skip_full_size(segmenter)
    images = [random_image(seed) for seed in range(3)]
    sets = [[points((10, 10), (30, 40))], [], [points((60, 20)), points((5, 50))]]
    together = segmenter.segment_many(images, sets)
    alone = [segmenter.segment(image, wanted) for image, wanted in zip(images, sets, strict=True)]
    assert [len(found) for found in together] == [1, 0, 2]
    for a, b in zip(chain(*together), chain(*alone), strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-2)
        assert (a.masks == b.masks).mean() > 0.99


def test_no_prompt_no_candidates(segmenter):
    assert segmenter.segment(random_image(), []) == []


def test_several_images_give_what_each_gives_alone(segmenter):
    if isinstance(segmenter, ViewAveraging | MaskRefiner):
        pytest.skip("it takes one image at a time")
    skip_full_size(segmenter)
    images = [random_image(0), random_image(1)[:40], random_image(2)[:, :50]]
    sets = [[points((10, 10))], [], [points((10, 10), (30, 20)), points((40, 30))]]
    together = segmenter.segment_many(images, sets, images_per_batch=2)
    for image, asked, found in zip(images, sets, together, strict=True):
        alone = segmenter.segment(image, asked)
        assert len(found) == len(alone) == len(asked)
        for one, other in zip(found, alone, strict=True):
            assert one.masks.shape == (len(one.scores), *image.shape[:2])
            assert (one.masks != other.masks).mean() < 0.01
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-2)


@pytest.mark.parametrize("damage", ["none", "cut", "no weights", "other kind", "other sizes"])
@pytest.mark.parametrize("kind", ["SAM 2.1", "SAM-HQ"])
def test_a_damaged_sam_of_transformers_costs_one_line(tmp_path, kind, damage):
    folder = hub_sam(tmp_path, kind)
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "other kind":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))
    elif damage == "other sizes":
        config["mask_decoder_config"]["mlp_dim"] = 48
        (folder / "config.json").write_text(json.dumps(config))
    if damage == "none":
        assert load_segmenter(str(folder), "cpu").name == folder.name
        return
    for open_it in (check_sam, load_segmenter) if damage != "other sizes" else (load_segmenter,):
        with pytest.raises(SegsmithError) as error:
            open_it(str(folder))
        assert "\n" not in str(error.value)
        assert error.value.remedy


def test_a_sam_on_the_hub_is_a_requirement_with_its_configuration():
    found = {
        need.role: need for need in requirements_of(Config(labeler={"sam": "facebook/sam2.1-hiera-large"}))
    }["masks"]
    assert (found.kind, found.source) == ("hub", "facebook/sam2.1-hiera-large")
    assert (found.patterns, found.config) == (("model.safetensors",), "config.json")


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
