"""The clean image a step implies, for every kind of model; batches that shrink without touching who stays."""

import diffusers
import numpy as np
import pytest
import torch

from segsmith.config import ImagesConfig
from segsmith.tools.images.denoising import clean_latents, shrink, shrink_scheduler
from segsmith.tools.images.diffusion import DiffusionBackend
from segsmith.types import ImageRequest
from tests import tiny_pipelines

SHAPE = (2, 4, 8, 8)
STEPS = 10


def at_step(scheduler, index):
    """The scheduler as the pipeline finds it before step `index`, and that step's timestep."""
    scheduler.set_timesteps(STEPS)
    if hasattr(scheduler, "_step_index"):
        scheduler._step_index = index
    return scheduler.timesteps[index]


def noise():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("index", [1, 4, 8])
@pytest.mark.parametrize("name", ["DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete"])
def test_it_agrees_with_schedulers_that_tell_their_own_prediction(name, index, prediction):
    kind = getattr(diffusers, f"{name}Scheduler")
    more = {} if name not in ("DDIM", "DDPM") else {"clip_sample": False}
    scheduler = kind(prediction_type=prediction, **more)
    timestep = at_step(scheduler, index)
    output, sample = noise()
    ours = clean_latents(scheduler, output, timestep, sample)
    own = scheduler.step(output, timestep, sample).pred_original_sample
    assert torch.allclose(ours, own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"])
def test_it_agrees_with_the_data_prediction_of_multistep_solvers(name, prediction):
    more = {"algorithm_type": "dpmsolver++"} if name == "DPMSolverMultistep" else {}
    scheduler = getattr(diffusers, f"{name}Scheduler")(prediction_type=prediction, **more)
    timestep = at_step(scheduler, 4)
    output, sample = noise()
    ours = clean_latents(scheduler, output, timestep, sample)
    own = scheduler.convert_model_output(output, sample=sample)
    if name == "DEISMultistep":  # this one converts to noise; convert it back
        a, s = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[4])
        own = (sample - s * own) / a
    assert torch.allclose(ours, own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("index", [0, 3, 9])
@pytest.mark.parametrize(
    "scheduler",
    [
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    ],
    ids=["euler", "dpm"],
)
def test_a_flow_model_that_predicts_right_gives_the_clean_image_back(scheduler, index):
    scheduler = scheduler()
    timestep = at_step(scheduler, index)
    clean, dirt = noise()
    sigma = scheduler.sigmas[index]
    found = clean_latents(scheduler, dirt - clean, timestep, (1 - sigma) * clean + sigma * dirt)
    assert torch.allclose(found, clean, atol=1e-5)


def test_an_unknown_prediction_type_is_an_error():
    scheduler = diffusers.DDIMScheduler()
    scheduler.register_to_config(prediction_type="riddle")
    with pytest.raises(ValueError, match="riddle"):
        clean_latents(scheduler, *noise()[:1], at_step(scheduler, 3), noise()[1])


def test_guidance_halves_shrink_alike():
    rows = torch.arange(8).reshape(8, 1)  # negative prompts 0-3, prompts 4-7
    assert shrink(rows, 4, [1, 3]).flatten().tolist() == [1, 3, 5, 7]
    assert shrink(rows[:4], 4, [0]).flatten().tolist() == [0]


def test_a_multistep_scheduler_forgets_the_dropped_and_nothing_else():
    scheduler = diffusers.UniPCMultistepScheduler()
    scheduler.set_timesteps(STEPS)
    sample = torch.randn(3, 4, 8, 8)
    for timestep in scheduler.timesteps[:3]:
        sample = scheduler.step(torch.randn(3, 4, 8, 8), timestep, sample).prev_sample
    before, sigmas = [m.clone() for m in scheduler.model_outputs], scheduler.sigmas.clone()
    shrink_scheduler(scheduler, 3, 4, [0, 2])
    assert all(torch.equal(m, b[[0, 2]]) for m, b in zip(scheduler.model_outputs, before, strict=True))
    assert scheduler.last_sample.shape[0] == 2
    assert torch.equal(scheduler.sigmas, sigmas)


REQUESTS = [ImageRequest(f"picture {i}", 50 + i) for i in range(4)]
SAMPLERS = ["ddim", "euler", "euler_ancestral", "dpm++", "unipc"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {k: tiny_pipelines.save(k, tmp_path_factory.mktemp("p") / k) for k in ("sd", "sdxl", "sd3")}


def backend(folder, scheduler=None, **settings):
    return DiffusionBackend(
        ImagesConfig(
            backend="diffusion", model=str(folder), size=64, steps=6, guidance=3.0, scheduler=scheduler,
            filter={"enabled": True, "at": 0.5}, **settings,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "scheduler"), [*[("sd", s) for s in SAMPLERS], ("sdxl", None), ("sdxl", "dpm++"), ("sd3", None)]
)
def test_remaining_images_are_unchanged_and_cost_the_expected_steps(folders, kind, scheduler):
    it = backend(folders[kind], scheduler)
    whole = [d.image for d in it.draw(REQUESTS)]
    seen, rows = [], []

    def gate(indices, previews):
        seen.append((list(indices), [p.shape for p in previews]))
        return ["filtered" if i in (0, 2) else None for i in indices]

    pipe = it._open()
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    hook = denoiser.register_forward_pre_hook(
        lambda m, args, kwargs: rows.append(len(args[0] if args else kwargs["hidden_states"])),
        with_kwargs=True,
    )
    drawn = {d.index: d for d in it.draw(REQUESTS, gate)}
    hook.remove()
    assert seen == [([0, 1, 2, 3], [(64, 64, 3)] * 4)]
    assert [drawn[i].reason for i in range(4)] == ["filtered", None, "filtered", None]
    assert rows == [8, 8, 8, 4, 4, 4]  # both halves of guidance: four samples, then two
    for index in (1, 3):
        assert np.abs(drawn[index].image.astype(int) - whole[index]).max() <= 1


def test_a_batch_that_loses_all_ends_at_once(folders):
    it = backend(folders["sd"])
    heard = []
    drawn = list(it.draw(REQUESTS, lambda indices, previews: ["filtered"] * len(indices), heard.append))
    assert {d.index for d in drawn} == {0, 1, 2, 3}
    assert all(d.image is None for d in drawn)
    assert max(heard) == 0.5
    assert all(d.image is not None for d in it.draw(REQUESTS[:1]))  # and the next batch is whole


def test_previews_are_close_to_the_final_image(folders):
    """In the last steps the clean prediction is close to the final image; with a wrong formula it would not be."""
    it = DiffusionBackend(
        ImagesConfig(
            backend="diffusion", model=str(folders["sd3"]), size=64, steps=20,
            filter={"enabled": True, "at": 0.95},
        )
    )  # fmt: skip
    kept = []
    final = [
        d.image for d in it.draw(REQUESTS[:2], lambda i, previews: kept.extend(previews) or [None] * len(i))
    ]
    for preview, image in zip(kept, final, strict=True):
        assert np.abs(preview.astype(int) - image).mean() < 8
