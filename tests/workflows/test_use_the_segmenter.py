"""`predict` and `export-model`: what a user does with a trained segmenter."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

import segsmith
from segsmith.config import TrainerConfig
from segsmith.review.terminal_image import bright_palette, overlay
from segsmith.segmentation.checkpoint import SegmenterMeta, load_segmenter, save_segmenter
from segsmith.segmentation.network import build_segmenter, decoder_of, normalisation


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained network in the files that training writes."""
    torch.manual_seed(0)
    config = TrainerConfig(encoder="tu-test_resnet", encoder_init="none")
    model = build_segmenter(config, 2)
    mean, std = normalisation(model)
    meta = SegmenterMeta(
        classes=("cat", "dog"),
        architecture=config.architecture,
        encoder=config.encoder,
        decoder=decoder_of(config.architecture),
        size=(64, 64),
        mean=mean,
        std=std,
        epochs=0,
        seed=0,
        trainer=config,
    )
    return save_segmenter(tmp_path_factory.mktemp("segmenter"), model.state_dict(), meta)


@pytest.fixture
def command(segsmith):
    """The fixture of tests/conftest.py under a name that leaves the package's free."""
    return segsmith


def test_predict_writes_masks_overlays_and_shares(command, checkpoint, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    for name in ("a.png", "b.png", "a.jpg"):
        Image.fromarray(pixels).save(folder / name)
    out = tmp_path / "out"
    code, said, _ = command("predict", checkpoint, folder, "--out", out)
    assert code == 0
    assert "3 label maps" in said
    assert sorted(p.name for p in (out / "masks").iterdir()) == ["a.png", "a.png.png", "b.png"]
    mask = np.array(Image.open(out / "masks" / "b.png"))
    assert mask.shape == (50, 70)
    assert np.array_equal(mask, segsmith.predict(checkpoint, pixels)[0])
    assert np.array(Image.open(out / "overlays" / "b.png")).shape == (50, 70, 3)
    shares = json.loads((out / "shares.json").read_text())
    assert shares["classes"] == ["background", "cat", "dog"]
    for index, name in enumerate(shares["classes"]):
        assert shares["images"]["b.png"].get(name, 0) == pytest.approx((mask == index).mean(), abs=1e-5)


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_an_exported_model_agrees_with_the_original(command, checkpoint, tmp_path, format):
    code, said, errors = command("export-model", checkpoint, "--format", format, "--out", tmp_path)
    assert code == 0, errors
    assert "largest difference" in said
    model, _ = load_segmenter(checkpoint)
    images = np.random.default_rng(1).random((1, 3, 64, 96)).astype(np.float32)
    mean, std = (np.array(x, np.float32).reshape(1, 3, 1, 1) for x in normalisation(model))
    with torch.inference_mode():
        expected = model(torch.from_numpy((images - mean) / std)).numpy()
        if format == "onnx":
            onnxruntime = pytest.importorskip("onnxruntime")
            session = onnxruntime.InferenceSession(tmp_path / "segmenter.onnx")
            written = session.run(None, {"images": images})[0]
        else:
            written = torch.jit.load(tmp_path / "segmenter.pt")(torch.from_numpy(images)).numpy()
    assert written == pytest.approx(expected, abs=1e-3)
    card = (tmp_path / "README.md").read_text()
    assert "| 2 | dog |" in card


def test_a_model_that_differs_is_not_written(checkpoint, tmp_path, monkeypatch):
    from segsmith.workflows import export_model

    monkeypatch.setattr(export_model, "TOLERANCE", -1.0)
    with pytest.raises(segsmith.SegsmithError, match="differs from the original"):
        segsmith.export_model(checkpoint, "torchscript", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_costs_one_line(command, checkpoint):
    code, _, said = command("export-model", checkpoint, "--format", "tflite")
    assert (code, said.strip().count("\n")) == (2, 0)
    assert "onnx, torchscript" in said


def test_evaluate_prints_nothing_but_json_when_asked_for_it(command, checkpoint, tmp_path):
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / name).mkdir(parents=True)
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "JPEGImages/a.png")
    Image.fromarray(np.full((40, 40), 3, np.uint8)).save(tmp_path / "SegmentationClass/a.png")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("a\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\nbus\n")
    code, said, notes = command("evaluate", checkpoint, "--dataset", tmp_path, "--json")
    assert code == 0, notes
    assert json.loads(said)["classes"] == ["background", "cat", "dog"]
    assert "counted as background: bus" in notes


def test_the_overlay_of_a_large_image_takes_little_more_than_the_overlay():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1500, 1000, 3)).astype(np.uint8)
    mask = rng.choice(np.array([0, 0, 1, 2, 255], np.uint8), image.shape[:2])
    tracemalloc.start()
    drawn = overlay(image, mask)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < image.nbytes + (64 << 20)  # in one piece it would take 200 MB
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    tinted = 0.45 * grey + 0.55 * bright_palette()[mask]
    assert np.array_equal(drawn, np.where((mask > 0)[..., None], tinted, 0.7 * grey).astype(np.uint8))
