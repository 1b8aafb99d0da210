"""Arguments by the signatures of diffusers' own pipelines; models that diffusers does not map."""

import inspect

import diffusers
import pytest

from segsmith.config import ImagesConfig
from segsmith.tools.images.diffusion import DiffusionBackend, check_diffusion
from segsmith.tools.images.pipeline_calls import arguments, default_steps
from segsmith.types import ImageRequest
from tests import tiny_pipelines


def given(pipeline, **settings):
    parameters = inspect.signature(getattr(diffusers, pipeline).__call__).parameters
    config = ImagesConfig(backend="diffusion", model="org/x", size=512, **settings)
    return arguments(parameters, config, ["a cat", "a dog"])


@pytest.mark.parametrize(
    ("pipeline", "name"),
    [
        ("StableDiffusionXLPipeline", "guidance_scale"),
        ("FluxPipeline", "guidance_scale"),
        ("Flux2KleinPipeline", "guidance_scale"),
        ("QwenImagePipeline", "true_cfg_scale"),
        ("HunyuanImagePipeline", "distilled_guidance_scale"),
    ],
)
def test_guidance_has_the_name_that_the_pipeline_reads(pipeline, name):
    found = given(pipeline, guidance=3.5)
    assert found[name] == 3.5
    assert sum("guidance" in key or "cfg" in key for key in found) == 1


def test_true_guidance_comes_with_a_negative_prompt_without_which_it_has_no_effect():
    assert given("QwenImagePipeline", guidance=4.0)["negative_prompt"] == [" ", " "]
    assert given("QwenImagePipeline", negative_prompt="blur")["negative_prompt"] == ["blur", "blur"]
    assert "negative_prompt" not in given("SanaSprintPipeline", negative_prompt="blur")


def test_prompts_are_not_rewritten():
    assert given("ErnieImagePipeline")["use_pe"] is False
    assert given("SanaSprintPipeline")["complex_human_instruction"] is None
    assert given("LongCatImagePipeline")["enable_prompt_rewrite"] is False


def test_steps_other_than_two_leave_out_the_timestep_that_fits_two_only():
    assert "intermediate_timesteps" not in given("SanaSprintPipeline", steps=2)
    assert given("SanaSprintPipeline", steps=1)["intermediate_timesteps"] is None
    assert default_steps(inspect.signature(diffusers.SanaSprintPipeline.__call__).parameters) == 2


def test_every_text_to_image_pipeline_of_diffusers_gets_arguments_that_it_has():
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    for pipeline in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values():
        parameters = inspect.signature(pipeline.__call__).parameters
        found = arguments(parameters, ImagesConfig(steps=4, guidance=1.0, negative_prompt="x"), ["a"])
        assert found["prompt"] == ["a"]
        assert set(found) <= set(parameters)


def test_a_pipeline_that_diffusers_does_not_map_draws(tmp_path):
    folder = tiny_pipelines.save("sprint", tmp_path / "sprint")
    config = ImagesConfig(backend="diffusion", model=str(folder), size=64, steps=1)
    check_diffusion(config)
    heard = []
    (drawn,) = DiffusionBackend(config).draw([ImageRequest("a cat", 1)], on_step=heard.append)
    assert drawn.image.shape == (64, 64, 3)
    assert heard[-1] == 1


@pytest.mark.parametrize("option", ["channels_last", "fuse_qkv"])
@pytest.mark.parametrize("kind", ["sdxl", "flux"])
def test_options_for_speed_change_an_image_by_rounding_only(tmp_path, kind, option):
    folder = tiny_pipelines.save(kind, tmp_path / kind)
    request = [ImageRequest("a cat", 1)]
    config = ImagesConfig(backend="diffusion", model=str(folder), size=64, steps=2)
    (plain,) = DiffusionBackend(config).draw(request)
    fast = DiffusionBackend(config.model_copy(update={option: True}))
    (drawn,) = fast.draw(request)
    assert abs(plain.image.astype(int) - drawn.image).max() <= 2
    assert fast.name == DiffusionBackend(config).name
