"""Plain ViT encoders (DINOv2, DINOv3) under the DPT decoder: trained, saved, predicted in windows, exported."""

import numpy as np
import pytest
import timm
import torch

from segsmith.config import TrainerConfig
from segsmith.errors import SegsmithError
from segsmith.segmentation import inference, network
from segsmith.segmentation.checkpoint import load_segmenter
from segsmith.segmentation.inference import predict
from segsmith.segmentation.network import bare_segmenter, decoder_of, load_pretrained
from segsmith.segmentation.trainer import train
from segsmith.workflows.export_model import export_model
from tests.segmentation.squares_dataset import TINY, write_squares

SETTINGS = {**TINY, "architecture": "dpt", "encoder": "tu-test_vit", "epochs": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("vit")
    # 72 px is no multiple of the network's stride.
    squares = write_squares(folder / "squares", size=72, splits={"train": 4, "val": 2})
    return train(squares, folder / "out", TrainerConfig(**SETTINGS), seed=0).checkpoint


def test_images_of_any_size_are_predicted_and_large_ones_in_windows(checkpoint, monkeypatch):
    model, meta = load_segmenter(checkpoint)
    assert meta.decoder == decoder_of("dpt")
    monkeypatch.setattr(inference, "WINDOW", 64)
    monkeypatch.setattr(inference, "OVERLAP", 16)
    for size in ((50, 70), (130, 40)):
        labels = predict(model, np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8))
        assert labels.shape == (2, *size)


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_the_exported_model_has_the_size_of_the_training(checkpoint, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    written = export_model(checkpoint, format, tmp_path)
    assert written.difference < 1e-3
    assert "H is 96 and W 96" in written.card.read_text()


def test_pretrained_weights_are_resampled_to_the_decoders_patches(tmp_path, monkeypatch):
    """The weights are a file with patches of 14 pixels on a grid of 5, as DINOv2's are with a grid of 37."""
    source = timm.create_model("test_vit", patch_size=14, img_size=70)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    create = timm.create_model

    def from_file(name, pretrained=False, **settings):
        overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth")}} if pretrained else {}
        return create(name, pretrained=pretrained, **settings, **overlay)

    monkeypatch.setattr(network.timm, "create_model", from_file)
    model = bare_segmenter("dpt", "tu-test_vit", 2, decoder_of("dpt"))
    encoder = model.encoder.model
    load_pretrained(model, "tu-test_vit")
    found, given = encoder.patch_embed.proj.weight, source.patch_embed.proj.weight
    assert found.shape[-2:] == (16, 16)
    # A patch of one colour gets the same embedding.
    assert torch.allclose(found.sum((2, 3)), given.sum((2, 3)), atol=1e-3)
    assert torch.equal(encoder.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


def test_an_encoder_that_is_no_vit_is_rejected_with_one_that_is():
    with pytest.raises(SegsmithError, match="cannot be used in dpt") as caught:
        bare_segmenter("dpt", "tu-test_resnet", 2, decoder_of("dpt"))
    assert "dinov2" in caught.value.remedy
