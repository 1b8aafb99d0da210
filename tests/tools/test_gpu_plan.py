"""Plans of the presets for cards of several sizes."""

import pytest

from segsmith.config import load_config
from segsmith.device_memory import GIB
from segsmith.tools.gpu_plan import GpuStage, Part, plan_gpu, read_figures, usable
from segsmith.types import MEASURED_TOGETHER


def config(preset="gpu", **settings):
    return load_config(preset=preset, flags={"classes": ("cat", "dog"), **settings})


@pytest.mark.parametrize("gib", [8, 12, 16, 22.5, 24, 80])
@pytest.mark.parametrize("preset", ["sim", "cpu", "gpu", "hosted"])
def test_no_stage_needs_more_than_the_card_has(preset, gib):
    plan = plan_gpu(config(preset), int(gib * GIB))
    assert not plan.problem
    assert [stage.stage for stage in plan.stages] == [s for s in GpuStage if s is not GpuStage.HEAR]
    for stage in plan.stages:
        assert stage.size <= usable(int(gib * GIB))


def test_a_detector_has_a_stage_of_its_own():
    witnesses = {"detector": "google/owlv2-base-patch16-ensemble"}
    plan = plan_gpu(config(witnesses=witnesses), 12 * GIB)
    assert [stage.stage for stage in plan.stages] == list(GpuStage)
    assert [part for part, _ in plan.of(GpuStage.HEAR).loads] == [Part.DETECTOR]
    assert not plan.keeps(GpuStage.LABEL, Part.DETECTOR)
    assert plan.releases_images(GpuStage.HEAR)


def test_attention_takes_what_drawing_takes():
    plan = plan_gpu(config(witnesses={"attention": "generator"}), 12 * GIB)
    assert plan.of(GpuStage.HEAR).loads == ((Part.IMAGES, dict(plan.of(GpuStage.DRAW).loads)[Part.IMAGES]),)


def test_a_24_gib_card_draws_full_batches_beside_the_language_model():
    plan = plan_gpu(config(), 24 * GIB)
    draw = plan.of(GpuStage.DRAW)
    assert not plan.alternates
    assert plan.offload == "none"
    assert draw.batch == 8
    assert draw.loads[0][0] is Part.LLM


def test_an_l4_needs_no_offloading():
    assert plan_gpu(config(), int(22.5 * GIB)).offload == "none"


def test_small_cards_take_turns():
    assert plan_gpu(config(), 12 * GIB).alternates
    assert plan_gpu(config(), 8 * GIB).alternates


def test_the_language_model_is_gone_after_drawing():
    for gib in (8, 24, 80):
        plan = plan_gpu(config(), gib * GIB)
        for stage in (GpuStage.LABEL, GpuStage.SEGMENT, GpuStage.TRAIN):
            assert not plan.keeps(stage, Part.LLM)


def test_the_share_holds_the_model_and_its_cache():
    share = plan_gpu(config(), 24 * GIB).llm_share
    assert 7 / 24 < share < 12 / 24
    fixed = config(llm={"gpu_memory_share": 0.3})
    assert plan_gpu(fixed, 24 * GIB).llm_share == 0.3


@pytest.mark.parametrize(
    ("settings", "gib", "words"),
    [
        ({}, 4, "language model"),
        ({"llm": {"server": "openai", "base_url": "http://127.0.0.1:1/v1"}}, 2, "image"),
        ({"llm": {"server": "openai", "base_url": "http://127.0.0.1:1/v1"}, "images": {"offload": "none"}}, 6, "image"),
    ],
    ids=["language model", "image", "without offloading"],
)  # fmt: skip
def test_a_card_that_is_too_small_is_named_with_what_it_lacks(settings, gib, words):
    plan = plan_gpu(config(**settings), gib * GIB)
    assert words in plan.problem
    assert "GiB" in plan.problem
    assert plan.remedy


def test_memory_that_other_programs_use_is_not_planned_with():
    assert plan_gpu(config(), 80 * GIB, 12 * GIB).alternates


def test_more_classes_make_the_trainers_batch_smaller():
    few = plan_gpu(config(), 8 * GIB).of(GpuStage.TRAIN)
    many = config(classes=tuple(f"class {n}" for n in range(80)))
    assert plan_gpu(many, 8 * GIB).of(GpuStage.TRAIN).batch <= few.batch


def test_decoding_in_slices_is_what_the_figures_are_for():
    decoding = read_figures()["images:stabilityai/stable-diffusion-xl-base-1.0:decoding"]
    assert 1.0 < decoding.needs(1) / GIB < 2.5


def test_clip_is_counted_beside_the_image_model_because_it_measures_while_images_are_drawn():
    judge = read_figures()["judge:ViT-L-14"]
    plan = plan_gpu(config(), 24 * GIB)
    assert dict(plan.of(GpuStage.DRAW).loads)[Part.JUDGE] == judge.weights + judge.needs(MEASURED_TOGETHER)
    assert plan.judges_while_drawing


def test_where_clip_does_not_fit_beside_the_image_model_it_measures_afterwards():
    plan = plan_gpu(config(), 8 * GIB)
    assert Part.JUDGE not in dict(plan.of(GpuStage.DRAW).loads)
    assert not plan.judges_while_drawing
    on_the_cpu = plan_gpu(config(compute={"device": "cpu"}), 8 * GIB)
    assert on_the_cpu.judges_while_drawing


def test_a_mixture_is_planned_with_its_largest_model():
    sdxl, turbo = "stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/sd-turbo"
    mixed = config(images={"models": [{"model": turbo, "share": 0.5}, {"model": sdxl, "share": 0.5}]})
    for gib in (8, 12, 24):
        assert plan_gpu(mixed, gib * GIB).stages == plan_gpu(config(), gib * GIB).stages
    one_lacks = config(
        images={**mixed.images.model_dump(include={"models"}), "offload": "none"},
        llm={"server": "openai", "base_url": "http://127.0.0.1:1/v1"},
    )
    plan = plan_gpu(one_lacks, 6 * GIB)
    assert sdxl in plan.problem
    assert "images.models" in plan.remedy
