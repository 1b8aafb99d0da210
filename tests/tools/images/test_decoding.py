"""Running out of memory while decoding costs no denoising steps and leaves the autoencoder as it was."""

import numpy as np
import pytest
import torch

from segsmith.config import ImagesConfig
from segsmith.errors import OutOfMemory
from segsmith.tools.images import decoding
from segsmith.tools.images.decoding import SlicedDecoder, sliced_decoder
from segsmith.tools.images.diffusion import DiffusionBackend
from segsmith.types import ImageRequest
from tests import tiny_pipelines

REQUESTS = [ImageRequest(f"a photo of thing {i}", 10 + i) for i in range(4)]
STEPS = 3
LATENT_CELLS = 32 * 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {k: tiny_pipelines.save(k, tmp_path_factory.mktemp("p") / k) for k in ("sd", "sdxl", "flux")}


def backend(folder, **settings):
    return DiffusionBackend(
        ImagesConfig(backend="diffusion", model=str(folder), size=64, steps=STEPS, guidance=3.0, **settings)
    )


def limited(vae, cells, monkeypatch):
    """Let the autoencoder run out of memory for more latent cells than `cells`; returns the sizes that it tried."""
    inner, tried = vae.decoder.forward, []

    def forward(latents, *args, **more):
        tried.append(len(latents) * latents.shape[-1] * latents.shape[-2])
        if tried[-1] > cells:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(latents, *args, **more)

    monkeypatch.setattr(vae.decoder, "forward", forward)
    return tried


def count_steps(pipe):
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    calls = []
    denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("kind", ["sd", "sdxl", "flux"])
@pytest.mark.parametrize(
    ("images_that_fit", "largest_difference"), [(2, 1), (1, 1), (0.3, 255)], ids=["two", "one", "tile"]
)
def test_the_images_of_a_batch_are_decoded_in_the_slices_that_fit(
    folders, kind, images_that_fit, largest_difference, monkeypatch
):
    whole = [d.image for d in backend(folders[kind]).draw(REQUESTS)]
    it = backend(folders[kind])
    pipe = it._open()
    limited(pipe.vae, images_that_fit * LATENT_CELLS, monkeypatch)
    steps = count_steps(pipe)
    drawn = [d.image for d in it.draw(REQUESTS)]
    assert len(steps) == STEPS
    apart = [np.abs(a.astype(int) - b.astype(int)) for a, b in zip(whole, drawn, strict=True)]
    assert max(a.max() for a in apart) <= largest_difference
    assert max(a.mean() for a in apart) < (1 if largest_difference == 1 else 25)


def test_a_slice_that_was_too_large_is_not_tried_again_in_the_next_batch(folders, monkeypatch):
    it = backend(folders["sd"])
    tried = limited(it._open().vae, LATENT_CELLS, monkeypatch)
    list(it.draw(REQUESTS))
    del tried[:]
    list(it.draw(REQUESTS))
    assert tried == [LATENT_CELLS] * 4


def test_at_most_a_megapixel_is_decoded_at_once(monkeypatch):
    monkeypatch.setattr(decoding, "SLICE_PX", 2 * 64 * 64)
    tried = []

    class Autoencoder:
        dtype = torch.float32

        def decode(self, latents, return_dict=True, generator=None):
            tried.append((len(latents), generator))
            return (latents,)

    decoder = SlicedDecoder(Autoencoder(), 8)
    (pixels,) = decoder.decode(torch.ones(5, 4, 8, 8), return_dict=False, generator=[*"abcde"])
    assert tried == [(2, ["a", "b"]), (2, ["c", "d"]), (1, ["e"])]
    assert pixels.shape == (5, 4, 8, 8)


@pytest.mark.parametrize("filtering", [False, True])
def test_a_float16_autoencoder_is_float16_again_after_it_ran_out_of_memory(tmp_path, monkeypatch, filtering):
    folder = tiny_pipelines.save("sdxl", tmp_path / "sdxl")
    it = backend(folder, dtype="float16", filter={"enabled": filtering, "at": 0.5})
    vae = it._open().vae
    assert vae.dtype == torch.float16
    assert vae.config.force_upcast
    limited(vae, 0, monkeypatch)
    with pytest.raises(OutOfMemory):
        list(it.draw(REQUESTS[:1], (lambda i, _: [None] * len(i)) if filtering else None))
    assert vae.dtype == torch.float16
    assert "decode" not in vars(vae)
    monkeypatch.undo()
    assert all(d.image is not None for d in it.draw(REQUESTS[:1]))


def test_a_pipeline_without_an_autoencoder_has_no_decoder():
    assert sliced_decoder(object()) is None
