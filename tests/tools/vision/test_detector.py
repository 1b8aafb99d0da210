"""Detectors of transformers as witnesses, with tiny random checkpoints of the real layouts."""

import json

import numpy as np
import pytest
import torch

from segsmith.errors import SegsmithError
from segsmith.protocols import Releasable, Witness
from segsmith.tools.vision.detector import DetectorWitness, class_of

LOW = 1e-4
CLASSES = ("cat", "dog", "potted plant")


def write_owlv2(folder):
    from transformers import (
        CLIPTokenizer,
        Owlv2Config,
        Owlv2ForObjectDetection,
        Owlv2ImageProcessor,
        Owlv2Processor,
    )

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["!", "<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config={**tower, "vocab_size": len(words), "max_position_embeddings": 16},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = Owlv2ForObjectDetection(config)
    torch.nn.init.zeros_(
        model.box_head.dense2.weight
    )  # boxes of a patch's size, where random weights give none
    model.save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def write_grounding_dino(folder):
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "cat", "dog", "potted", "plant"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=32, window_size=2, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32,
        ),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=9, num_feature_levels=3, max_text_len=32,
    )  # fmt: skip
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    processor = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    GroundingDinoProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[write_owlv2, write_grounding_dino])
def folder(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("detector") / "tiny")


def load(folder, classes=CLASSES, **options):
    return DetectorWitness.load(folder, classes, name="tiny", device="cpu", **options)


def images(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def test_it_speaks_about_every_class_of_every_image(folder):
    witness = load(folder, min_score=LOW)
    assert isinstance(witness, Witness)
    assert isinstance(witness, Releasable)
    answers = witness.testify(images((48, 64), (80, 40)), ["a", "b"])
    assert [set(answer.scores) for answer in answers] == [set(CLASSES)] * 2
    assert any(answer.sightings for answer in answers), "a threshold this low keeps boxes"
    for answer in answers:
        for seen in answer.sightings:
            x0, y0, x1, y1 = seen.box_xyxy
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
            assert LOW <= seen.score <= answer.scores[seen.class_name]


def test_an_image_does_not_depend_on_the_others(folder):
    pair = images((48, 64), (48, 64))
    witness = load(folder, min_score=LOW)
    together, alone = witness.testify(pair, ["a", "b"]), witness.testify(pair[1:], ["b"])
    assert together[1].scores == pytest.approx(alone[0].scores, abs=1e-4)


def test_boxes_below_the_threshold_do_not_count(folder):
    (many,) = load(folder, min_score=LOW).testify(images((48, 64)), ["a"])
    level = float(np.median([seen.score for seen in many.sightings]))
    (few,) = load(folder, min_score=level).testify(images((48, 64)), ["a"])
    assert len(few.sightings) < len(many.sightings)
    assert few.sightings == tuple(seen for seen in many.sightings if seen.score > level)
    assert all(p == 0 or p > level for p in few.scores.values())


def test_a_long_class_list_is_asked_about_in_parts(folder, monkeypatch):
    monkeypatch.setattr("segsmith.tools.vision.detector.MOST_CLASSES", 2)
    (answer,) = load(folder, min_score=LOW).testify(images((48, 64)), ["a"])
    assert set(answer.scores) == set(CLASSES)


@pytest.mark.parametrize("damage", ["empty", "config", "weights"])
def test_a_folder_without_a_detector_costs_one_line(tmp_path, folder, damage):
    broken = tmp_path / "broken"
    broken.mkdir()
    if damage != "empty":
        for file in folder.iterdir():
            (broken / file.name).write_bytes(file.read_bytes())
        (broken / ("config.json" if damage == "config" else "model.safetensors")).write_text('{"a": 1}')
    with pytest.raises(SegsmithError) as caught:
        load(broken)
    assert "\n" not in str(caught.value)
    assert "witnesses.detector" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "name"),
    [("cat", "cat"), ("Potted  plant", "potted plant"), ("plant", None), ("cat dog", "cat"), ("", None)],
)
def test_texts_name_classes(text, name):
    assert class_of(text, CLASSES) == name
