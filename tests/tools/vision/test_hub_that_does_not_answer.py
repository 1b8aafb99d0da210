"""Models in the hub's cache load without the hub; for others, a hub that does not answer gives one line."""

import json
import socket
import threading
from contextlib import contextmanager

import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants, hf_hub_download
from safetensors.torch import save

from segsmith.config import LabelerConfig, TrainerConfig
from segsmith.errors import SegsmithError
from segsmith.segmentation.network import build_segmenter
from segsmith.tools.vision.clip import OpenClipEncoder
from segsmith.tools.vision.vit import TimmPatchClassifier
from tests.tools.weights.hub_server import serving

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
VIT, ENCODER = "vit_tiny_patch16_224.augreg_in21k", "resnet10t.c3_in1k"
LOADS = {
    "lab/clip": lambda: OpenClipEncoder.load("hf-hub:lab/clip", "cpu"),
    f"timm/{VIT}": lambda: TimmPatchClassifier.from_timm(
        VIT, 2, LabelerConfig(), 0, pretrained=True, device="cpu"
    ),
    f"timm/{ENCODER}": lambda: build_segmenter(
        TrainerConfig(encoder=f"tu-{ENCODER}", encoder_init="pretrained"), 2
    ),
}
WEIGHTS = {"lab/clip": "open_clip_model.safetensors"}


@contextmanager
def mute(*, hangs_up):
    """A server that accepts connections and never answers: it closes them, or keeps them open."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept = []

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if hangs_up:
                connection.close()
            else:
                kept.append(connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
        for connection in kept:
            connection.close()


@pytest.fixture(scope="module")
def repositories():
    torch.manual_seed(0)
    config = json.dumps({"model_cfg": MODEL, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    clip = open_clip.CLIP(16, MODEL["vision_cfg"], MODEL["text_cfg"])
    return {
        "lab/clip": {
            "open_clip_config.json": config.encode(),
            WEIGHTS["lab/clip"]: save(clip.state_dict()),
        },
        **{
            f"timm/{name}": {"model.safetensors": save(timm.create_model(name).state_dict())}
            for name in (VIT, ENCODER)
        },
    }


@pytest.fixture
def point_at(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def point(url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return point


@pytest.mark.parametrize("name", LOADS)
def test_a_model_in_the_cache_needs_no_hub(name, repositories, point_at):
    with serving(repositories=repositories) as hub:
        point_at(hub.url)
        for file in repositories[name]:
            hf_hub_download(name, file)
        hub.asked.clear()
        LOADS[name]()
        assert hub.asked == []
    with mute(hangs_up=True) as url:
        point_at(url)
        LOADS[name]()


@pytest.mark.parametrize("hangs_up", [True, False])
@pytest.mark.parametrize("name", LOADS)
def test_a_hub_that_does_not_answer_costs_one_line(name, hangs_up, point_at, monkeypatch):
    monkeypatch.setattr("segsmith.model_loading.ANSWER_TIMEOUT_S", 0.5)
    with mute(hangs_up=hangs_up) as url:
        point_at(url)
        with pytest.raises(SegsmithError) as error:
            LOADS[name]()
    assert "\n" not in str(error.value)
    assert error.value.remedy


def test_a_model_that_the_cache_lacks_is_downloaded(repositories, point_at):
    with serving(repositories=repositories) as hub:
        point_at(hub.url)
        encoder = LOADS["lab/clip"]()
        assert encoder.dim == MODEL["embed_dim"]
        assert hub.asked
