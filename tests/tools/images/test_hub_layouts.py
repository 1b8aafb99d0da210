"""Pipelines laid out as on the hub: fetched, loaded and drawn with, as the commands in docs/models.md name them."""

import pytest
from huggingface_hub import constants

from segsmith.commands.console import settings_of
from segsmith.config import load_config
from segsmith.errors import SegsmithError
from segsmith.tools.images.diffusion import DiffusionBackend, check_diffusion
from segsmith.types import ImageRequest
from segsmith.workflows.settings import nested
from tests import tiny_pipelines
from tests.tools.weights.hub_server import serving

FLUX = ["images.model=lab/flux", "images.steps=4", "images.guidance=0"]
LCM = ["images.model=lab/lcm", "images.steps=4", "images.guidance=8"]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    return {
        f"lab/{kind}": tiny_pipelines.hub_repository(kind, tmp_path_factory.mktemp(kind))
        for kind in ("sdxl", "flux", "lcm")
    }


@pytest.fixture
def hub(repositories, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving(repositories=repositories) as server:
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


def images(preset, *pairs):
    settings = nested(settings_of([*pairs, "images.size=64"]))
    return load_config(preset=preset, flags=settings).images


def fetched(hub):
    return {path.partition("/resolve/main/")[2] for method, path, _ in hub.asked if method == "GET"} - {""}


def draw(config):
    (drawn,) = DiffusionBackend(config).draw([ImageRequest("a cat", 1)])
    return drawn.image


@pytest.mark.parametrize(
    ("preset", "pairs"),
    [("gpu", FLUX), ("cpu", LCM), ("gpu", ["images.model=lab/sdxl", "images.steps=2"])],
    ids=["flux", "lcm", "sdxl"],
)
def test_the_model_of_a_preset_can_be_replaced(hub, preset, pairs):
    config = images(preset, *pairs)
    check_diffusion(config)
    assert draw(config).std() > 1
    weights = {name for name in fetched(hub) if name.endswith(".safetensors")}
    assert all(("fp16" in name) == ("sdxl" in str(config.model)) for name in weights)
    assert not [name for name in fetched(hub) if "/" not in name and name != "model_index.json"]
    assert not [name for name in fetched(hub) if name.startswith("vae_1_0")]


def test_a_start_with_everything_in_the_cache_sends_no_request(hub):
    config = images("gpu", "images.model=lab/sdxl", "images.steps=2")
    check_diffusion(config)
    del hub.asked[:]
    check_diffusion(config)
    draw(config)
    assert hub.asked == []


def test_weights_that_an_earlier_version_fetched_are_used_as_they_are(hub):
    check_diffusion(images("gpu", "images.model=lab/sdxl", "images.variant=plain"))
    del hub.asked[:]
    check_diffusion(images("gpu", "images.model=lab/sdxl"))
    assert hub.asked == []


def test_a_variant_can_be_unset_on_the_command_line_and_in_toml(tmp_path):
    assert images("gpu", "images.variant=").variant is None
    file = tmp_path / "config.toml"
    file.write_text('[images]\nsteps = ""\nmodel = "a/b"\n')
    assert load_config(preset="gpu", file=file).images.steps is None


def test_a_variant_that_the_hub_lacks_fails_before_weights_are_fetched(hub):
    with pytest.raises(SegsmithError, match="no weights of variant 'fp16'"):
        check_diffusion(images("gpu", "images.model=lab/flux", "images.variant=fp16"))
    assert fetched(hub) == {"model_index.json"}


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (b'{"unet": ["own_unet", "OwnUNet"]}', "runs code from its repository .its part 'unet'"),
        (b'{"_class_name": ["own", "OwnPipeline"]}', "runs code from its repository"),
        (b'{"_class_name": "Sd9Pipeline", "unet": ["diffusers", "X"]}', "needs Sd9Pipeline"),
        (b"[]", "does not describe a pipeline"),
    ],
)
def test_a_pipeline_that_cannot_be_used_is_rejected_before_weights_are_fetched(
    hub, repositories, index, says
):
    changed = {"model_index.json": index, "unet/own_unet.py": b"raise SystemExit(1)"}
    hub.repositories = {"lab/bad": repositories["lab/lcm"] | changed}
    with pytest.raises(SegsmithError, match=says):
        check_diffusion(images("gpu", "images.model=lab/bad"))
    assert fetched(hub) == {"model_index.json"}
