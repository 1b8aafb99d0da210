"""`doctor`, `auto`, `plan` and the checks before a run, on machines that are described and not there."""

import pytest

from segsmith.config import load_config
from segsmith.device_memory import GIB
from segsmith.errors import SegsmithError
from segsmith.tools.machine import Gpu, Machine
from segsmith.tools.weights.catalogue import GB
from segsmith.workflows import doctor, preset_selection
from segsmith.workflows.estimate import estimate
from segsmith.workflows.preflight import check_machine


def machine(gpu_gib=0, memory=64, disk=500):
    gpus = (Gpu("a GPU", gpu_gib * GIB, gpu_gib * GIB),) if gpu_gib else ()
    return Machine(8, memory * GB, disk * GB, gpus)


@pytest.fixture
def vllm(tmp_path):
    """A vLLM in an environment that this Python cannot import from."""
    program = tmp_path / "elsewhere" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho 0.19.0\n")
    program.chmod(0o755)
    return str(program)


def config(preset, vllm="no-such-vllm", **settings):
    return load_config(preset=preset, flags={"classes": ("cat",), "llm": {"vllm_command": vllm}, **settings})


@pytest.fixture
def examined(monkeypatch):
    """What doctor says of a config on a machine, by check, with or without a hub; no model is on the machine."""

    def look(settings, where, hub=True):
        monkeypatch.setattr(doctor, "look", lambda folder: where)
        monkeypatch.setattr(doctor, "hub_answers", lambda: hub)
        monkeypatch.setattr(
            doctor, "find", lambda need: object() if need.kind in ("package", "wheel", "service") else None
        )
        skipped = doctor.Line("answers", True, "skipped")
        if settings.llm.server != "vllm":
            monkeypatch.setattr(doctor, "_language_model", lambda config, here: skipped)
        return {line.what: line for line in doctor.examine(settings)}

    return look


@pytest.mark.parametrize(
    ("preset", "gpu", "ok"),
    [
        ("sim", 0, True), ("cpu", 0, True), ("gpu", 0, False), ("hosted", 0, True),
        ("sim", 8, True), ("cpu", 8, True), ("gpu", 8, True), ("gpu", 24, True), ("hosted", 8, True),
        ("gpu", 4, False),
    ],
)  # fmt: skip
def test_doctor_says_whether_the_gpu_is_large_enough(examined, vllm, preset, gpu, ok):
    assert examined(config(preset, vllm), machine(gpu))["gpu"].ok is ok


def test_doctor_says_that_models_take_turns(examined, vllm):
    assert "take turns" in examined(config("gpu", vllm), machine(12))["gpu"].found
    assert "take turns" not in examined(config("gpu", vllm), machine(24))["gpu"].found


def test_doctor_finds_a_vllm_in_its_own_environment(examined, vllm):
    line = examined(config("gpu", vllm), machine(24))["answers"]
    assert line.ok
    assert "0.19.0" in line.found
    assert not examined(config("gpu"), machine(24))["answers"].ok


def test_doctor_says_that_the_hub_does_not_answer(examined, vllm):
    line = examined(config("gpu", vllm), machine(24), hub=False)["images"]
    assert not line.ok
    assert "hub does not answer" in line.found


@pytest.mark.parametrize(("memory", "ok"), [(4, False), (8, False), (12, True)])
def test_the_cpu_preset_needs_more_than_eight_gb(examined, memory, ok):
    assert examined(config("cpu"), machine(memory=memory))["memory"].ok is ok


def test_the_simulator_runs_with_four_gb(examined):
    assert examined(config("sim"), machine(memory=4))["memory"].ok


def test_auto_finds_a_vllm_in_its_own_environment(vllm, monkeypatch):
    monkeypatch.setattr(preset_selection, "present", lambda settings: settings.preset == "gpu")
    found = preset_selection.choose(machine(24), hub=lambda: True, configs=lambda name: config(name, vllm))
    assert found.preset == "gpu"
    without = preset_selection.choose(machine(24), hub=lambda: True, configs=config)
    assert without.preset == "sim"
    assert "vLLM is not installed" in without.why


def test_a_missing_vllm_is_noticed_before_anything_is_fetched():
    with pytest.raises(SegsmithError, match="vLLM is not installed"):
        check_machine(config("gpu"), machine=machine(24))


def test_a_card_that_is_too_small_is_noticed_before_anything_is_fetched(vllm):
    with pytest.raises(SegsmithError, match="GiB"):
        check_machine(config("gpu", vllm), machine=machine(4))


def test_a_full_disk_is_noticed_before_anything_is_fetched(vllm):
    with pytest.raises(SegsmithError, match="GB of disk are free"):
        check_machine(config("gpu", vllm), machine=machine(24, disk=5))


def test_a_missing_key_is_noticed_before_anything_is_fetched(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(SegsmithError, match="needs a key"):
        check_machine(config("hosted"), machine=machine())


def test_a_plan_shows_every_stage_on_every_card(vllm):
    made = estimate(config("gpu", vllm), None)
    assert list(made.gpu_plans) == [8, 12, 16, 24, 80]
    assert all(plan.stages for plan in made.gpu_plans.values())
    assert not estimate(config("sim"), None).gpu_plans


def test_nothing_is_checked_on_the_gpu(monkeypatch):
    from segsmith.tools.vision.clip import OpenClipEncoder
    from segsmith.workflows.preflight import check_models

    devices = []
    load = OpenClipEncoder.load
    monkeypatch.setattr(
        OpenClipEncoder, "load", lambda spec, device="auto", *a: devices.append(device) or load(spec, device)
    )
    check_models(config("sim"))
    assert devices == ["cpu"]


def test_a_mixture_on_the_cpu_needs_the_memory_of_its_largest_model():
    models = ("stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/sd-turbo")

    def needed(*names):
        images = {"models": [{"model": name, "share": 1 / len(names)} for name in names]}
        return doctor.memory_bytes(config("cpu", images=images), gpu=False)

    assert needed(*models) == needed(*reversed(models)) == max(needed(models[0]), needed(models[1]))
