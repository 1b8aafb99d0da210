"""Incomplete, missing and too large pipelines are one-line errors; free memory decides about offloading."""

import shutil

import numpy as np
import pytest
import torch

from segsmith.config import ImagesConfig
from segsmith.devices import choose_dtype
from segsmith.errors import OutOfMemory, SegsmithError
from segsmith.tools.images import diffusion
from segsmith.tools.images.diffusion import (
    DiffusionBackend,
    check_diffusion,
    choose_offload,
    to_uint8,
)
from segsmith.types import ImageRequest
from tests import tiny_pipelines

GIB = 2**30


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_pipelines.save("sd", tmp_path_factory.mktemp("p") / "sd")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "sd")


def config(model, **settings):
    return ImagesConfig(**{"backend": "diffusion", "model": str(model), "size": 64, "steps": 2, **settings})


def test_a_whole_pipeline_passes(folder):
    check_diffusion(config(folder))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: cut(next(f.glob("unet/*.safetensors"))), "cannot be read"),
        (lambda f: (f / "model_index.json").unlink(), "contains no model_index.json"),
        (lambda f: (f / "model_index.json").write_text("{"), "does not describe a pipeline"),
        (lambda f: shutil.rmtree(f / "vae"), "has no folder 'vae'"),
        (lambda f: [p.rename(p.with_suffix(".bin")) for p in f.glob("*/*.safetensors")], "no safetensors"),
    ],
)
def test_a_damaged_pipeline_is_detected_before_the_run(folder, damage, says):
    damage(folder)
    with pytest.raises(SegsmithError, match=says) as caught:
        check_diffusion(config(folder))
    assert caught.value.remedy


def test_a_truncated_shard_and_a_missing_one_are_detected_before_the_run(tmp_path):
    folder = tmp_path / "flux"
    for name, content in tiny_pipelines.hub_repository("flux", tmp_path / "made").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    shards = sorted(folder.glob("transformer/*-of-*.safetensors"))
    assert len(shards) > 1
    check_diffusion(config(folder))
    cut(shards[1])
    with pytest.raises(SegsmithError, match=f"{shards[1].name} cannot be read"):
        check_diffusion(config(folder))
    shards[1].unlink()
    with pytest.raises(SegsmithError, match=f"lacks the weights transformer/{shards[1].name}"):
        check_diffusion(config(folder))


def test_missing_weights_of_one_part_are_detected_when_the_pipeline_is_loaded(folder):
    next(folder.glob("unet/*.safetensors")).unlink()
    with pytest.raises(SegsmithError, match="cannot be loaded"):
        list(DiffusionBackend(config(folder)).draw([ImageRequest("a cat", 1)]))


def test_no_such_folder():
    with pytest.raises(SegsmithError, match="is neither a folder nor a hub id"):
        check_diffusion(config("./nowhere"))
    with pytest.raises(SegsmithError, match="No image model"):
        check_diffusion(ImagesConfig(backend="diffusion"))


def test_offline_downloads_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("SEGSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(SegsmithError, match="not on this machine, and --offline allows no downloads"):
        check_diffusion(config("nobody/no-such-model"), offline=True)


def test_a_hub_that_does_not_answer(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SegsmithError, match=r"cannot be downloaded from http://127\.0\.0\.1:9"):
        check_diffusion(config("nobody/no-such-model"))


def test_the_filter_is_rejected_for_pipelines_whose_batches_cannot_shrink(tmp_path):
    flux = tiny_pipelines.save("flux", tmp_path / "flux")
    with pytest.raises(SegsmithError, match="filter cannot remove images"):
        check_diffusion(config(flux, filter={"enabled": True}))


def test_settings_that_change_images_change_the_name(folder):
    names = {
        DiffusionBackend(config(folder, **s)).name
        for s in ({}, {"steps": 3}, {"guidance": 1.0}, {"negative_prompt": "blur"}, {"revision": "x"})
    }
    assert len(names) == 5
    assert len({DiffusionBackend(config(folder, compile=c)).name for c in (True, False)}) == 1


def test_separate_unet_weights_are_used(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(next(folder.glob("unet/*.safetensors")))
    save_file({k: v + 0.05 for k, v in weights.items()}, tmp_path / "other.safetensors")
    request = [ImageRequest("a cat", 1)]
    (plain,) = DiffusionBackend(config(folder)).draw(request)
    (other,) = DiffusionBackend(config(folder, unet=str(tmp_path / "other.safetensors"))).draw(request)
    assert not np.array_equal(plain.image, other.image)


def test_out_of_memory_is_raised_as_our_own_error(folder, monkeypatch):
    it = DiffusionBackend(config(folder))
    unet = it._open().unet
    monkeypatch.setattr(
        unet, "forward", lambda *a, **k: (_ for _ in ()).throw(torch.OutOfMemoryError("full"))
    )
    with pytest.raises(OutOfMemory):
        list(it.draw([ImageRequest("a cat", 1)]))
    monkeypatch.undo()
    assert next(iter(it.draw([ImageRequest("a cat", 1)]))).image is not None


def test_a_model_that_is_closed_again_costs_no_second_collection(folder, monkeypatch):
    """A full garbage collection takes half a second with torch and diffusers in memory."""
    freed = []
    monkeypatch.setattr(diffusion, "free_device_memory", lambda: freed.append(True))
    backend, request = DiffusionBackend(config(folder)), [ImageRequest("a cat", 1)]
    backend.close()
    assert not freed
    (first,) = backend.draw(request)
    for _ in range(2):
        backend.close()
    assert len(freed) == 1
    (again,) = backend.draw(request)
    assert (again.image == first.image).all()


@pytest.mark.parametrize(
    ("free", "expected"),
    [(None, "none"), (16 * GIB, "none"), (8 * GIB, "model"), (2 * GIB, "sequential")],
)
def test_free_memory_decides_about_offloading(free, expected):
    assert choose_offload([5 * GIB, 2 * GIB, GIB // 2], free) == expected


def test_number_format_by_device():
    assert choose_dtype("cpu", "auto") is torch.float32
    assert choose_dtype("mps", "auto") is torch.float16
    assert choose_dtype("cpu", "bfloat16") is torch.bfloat16


def test_images_of_nan_become_black():
    assert to_uint8(np.full((2, 2, 3), np.nan)).max() == 0
    assert to_uint8(np.array([[[2.0, 0.5, -1.0]]])).tolist() == [[[255, 128, 0]]]
