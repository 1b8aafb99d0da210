"""--offline asks nobody; plan's figures are those of runs that were; provenance names every model."""

import hashlib
import socket

import pytest

from segsmith.config import Config, load_config
from segsmith.errors import SegsmithError
from segsmith.memory.ledger import ImageRow, Ledger, PromptRow, RunSummary, VerdictRow
from segsmith.memory.run_folder import RunFolder
from segsmith.tools.vision.mini_clip import packaged_checkpoint
from segsmith.tools.weights.catalogue import SAM_FILES
from segsmith.workflows import estimate as estimates
from segsmith.workflows.estimate import (
    OTHER_SECONDS,
    Figures,
    estimate,
    measure,
    plan_build,
    recall,
    remember,
)
from segsmith.workflows.model_provenance import model_rows
from segsmith.workflows.preflight import check_models


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))


@pytest.fixture
def no_network(monkeypatch):
    """Any address but this machine's own fails, and is written down."""
    tried = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            tried.append(address)
            raise OSError("no network in this test")
        return connect(self, address)

    def looked_up(host, *rest, **options):
        if host not in ("127.0.0.1", "::1", "localhost", None):
            tried.append(host)
            raise OSError("no network in this test")
        return look_up(host, *rest, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    return tried


def test_the_simulators_models_open_offline_without_network_access(no_network):
    check_models(load_config(flags={"classes": ("cat",), "offline": True}))
    assert no_network == []


@pytest.mark.parametrize(
    "setting",
    [
        {"judge": {"clip": "hf-hub:lab/nothing"}},
        {"judge": {"clip": "ViT-B-16:datacomp_xl_s13b_b90k"}},
        {"labeler": {"sam": "sam_vit_b"}},
        {"labeler": {"vit": "vit_tiny_patch16_224"}},
        {"llm": {"gguf": "hf:lab/repo/file.gguf"}},
        {"llm": {"server": "openai", "model": "x"}},
        {"trainer": {"encoder": "tu-resnet50.a1_in1k", "encoder_init": "pretrained"}},
    ],
    ids=str,
)
def test_offline_a_missing_model_is_refused_before_anybody_is_asked(no_network, setting):
    with pytest.raises(SegsmithError, match="--offline"):
        check_models(load_config(flags={"classes": ("cat",), "offline": True, **setting}))
    assert no_network == []


def test_every_model_of_a_run_is_in_its_provenance(tmp_path):
    weights = tmp_path / "my.pth"
    weights.write_bytes(b"weights")
    rows = {row.role: row for row in model_rows(Config(labeler={"sam": str(weights)}))}
    assert set(rows) == {"llm", "images", "judge", "masks", "segmenter"}
    assert rows["masks"].sha256 == hashlib.sha256(b"weights").hexdigest()
    assert rows["masks"].source == "file"
    mini = packaged_checkpoint("mini_clip") / "open_clip_model.safetensors"
    assert rows["judge"].sha256 == hashlib.sha256(mini.read_bytes()).hexdigest()
    assert rows["llm"].licence == "Apache-2.0"


def test_an_official_sam_is_named_before_it_is_fetched():
    row = {r.role: r for r in model_rows(Config(labeler={"sam": "sam_vit_h"}))}["masks"]
    assert row.source == "url"
    assert row.sha256.startswith("a7bf3b02")
    assert SAM_FILES["sam_vit_h"].endswith("4b8939.pth")


def test_a_plan_follows_from_its_figures():
    figures = Figures(0.5, 2.0, 4.0, 100.0, 10.0, 1000.0, usd_per_image=0.04)
    config = Config(classes=("cat", "dog"), per_class=50, images={"per_prompt": 4})
    made = estimate(config, figures)
    assert (made.images, made.prompts) == (200, 50)
    assert (made.tokens_in, made.tokens_out) == (5000, 500)
    assert made.hours == pytest.approx((200 * 2 + 100 * 4) / 3600)
    assert made.usd == pytest.approx(8.0)
    assert made.disk == 200_000
    assert made.sources["time"] == "measured on this machine"


def test_without_a_run_the_plan_says_that_its_figures_are_stated():
    made = estimate(load_config(preset="gpu", flags={"classes": ("cat",), "per_class": 60}), None)
    assert made.images == 100
    assert "prior" in made.sources["yield"]
    assert "L4" in made.sources["time"]
    assert made.gpu > 15e9


def run_with(tmp_path, images, accepted):
    """A run folder with `images` judged images, drawn in ten of thirty seconds."""
    run = RunFolder(tmp_path / "run")
    run.create()
    ledger = Ledger(run.ledger)
    ledger.add_prompts([PromptRow("p", "cat", "a cat", ("cat",), {}, None, 0, "admitted", {})])
    ledger.add_images([ImageRow(f"i{n}", "p", n, "b", 0, "") for n in range(images)])
    ledger.add_verdicts([VerdictRow(f"i{n}", n < accepted, "ok", {}) for n in range(images)])
    ledger.log("drawn", images=images, seconds=10.0)
    ledger.summary = RunSummary(wall_seconds=30.0)
    return run, ledger


def test_a_runs_figures_are_kept_and_found_by_its_models(tmp_path):
    config = Config(classes=("cat",))
    run, ledger = run_with(tmp_path, 40, 30)
    figures = measure(ledger, run, config)
    assert figures.accepted_share == 0.75
    assert figures.seconds_per_image == pytest.approx(0.25)
    assert figures.other_seconds_per_accepted == pytest.approx(20 / 30)
    assert recall(config) is None
    remember(config, figures)
    assert recall(config) == figures
    assert recall(Config(classes=("dog",), per_class=7)) == figures
    assert recall(Config(classes=("cat",), judge={"clip": "hf-hub:lab/other"})) is None


def test_a_run_of_a_few_images_measures_nothing(tmp_path):
    run, ledger = run_with(tmp_path, 5, 5)
    assert measure(ledger, run, Config(classes=("cat",))) is None


def test_a_damaged_figures_file_is_as_good_as_none():
    estimates.figures_file().parent.mkdir(parents=True)
    estimates.figures_file().write_text("{")
    assert recall(Config()) is None


def test_a_mixture_takes_the_weighted_time_of_its_models():
    """sd-turbo is in the catalogue with a time, SDXL too; a model without a time leaves the whole unknown."""
    sdxl, turbo = "stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/sd-turbo"

    def seconds(*models):
        images = {"models": [{"model": name, "share": share} for name, share in models]}
        made = estimate(
            load_config(preset="gpu", flags={"classes": ("cat",), "per_class": 60, "images": images}), None
        )
        return made.hours * 3600 - 60 * OTHER_SECONDS, made.sources["time"]

    alone = {name: seconds((name, 1.0))[0] for name in (sdxl, turbo)}
    mixed, source = seconds((sdxl, 0.75), (turbo, 0.25))
    assert mixed == pytest.approx(0.75 * alone[sdxl] + 0.25 * alone[turbo])
    assert "unknown" not in source
    unknown, source = seconds((sdxl, 0.75), ("lab/new-model", 0.25))
    assert unknown == pytest.approx(0)
    assert "unknown" in source


def test_the_cap_of_the_hosted_preset_is_in_the_plan():
    made = estimate(load_config(preset="hosted", flags={"classes": ("cat",), "per_class": 600}), None)
    assert made.usd > 10
    assert any("max_usd = 10" in line for line in made.warnings)


def test_a_plan_refuses_a_class_and_doubts_a_class_as_a_build_does(capsys):
    with pytest.raises(SegsmithError, match="no sprite for class 'axolotl'"):
        plan_build(("cat", "axolotl"), preset="sim")
    found = plan_build(("cat", "backpack"), preset="sim")
    assert "was not trained on backpack" in capsys.readouterr().err
    assert "was not trained on backpack" in found.warnings[0]
