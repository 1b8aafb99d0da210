"""What --preset auto picks."""

import pytest

from segsmith.tools.machine import Gpu, Machine
from segsmith.workflows import preset_selection as auto
from segsmith.workflows.preset_selection import GB, choose


def machine(*gpu_gb, disk=500):
    gpus = tuple(Gpu("a GPU", n * GB, n * GB) for n in gpu_gb)
    return Machine(8, 64 * GB, disk * GB, gpus)


@pytest.fixture
def world(monkeypatch):
    """What is installed and fetched, and how often the hub was looked at."""

    class World:
        here: tuple = ()
        vllm = True
        online = True
        looks = 0

        def hub(self):
            self.looks += 1
            return self.online

    world = World()
    monkeypatch.setattr(auto, "present", lambda config: config.preset in world.here)
    monkeypatch.setattr(auto, "vllm_problem", lambda llm: "" if world.vllm else "vLLM is not installed")
    return world


@pytest.mark.parametrize(
    ("gpus", "here", "online", "offline", "vllm", "picked", "words", "looks"),
    [
        ((), (), True, False, True, "sim", "no GPU", 0),
        ((), ("cpu",), False, True, True, "cpu", "on this machine", 0),
        ((8,), (), True, False, True, "sim", "8 GB", 0),
        ((8, 24), (), True, False, True, "gpu", "hub answers", 1),
        ((24,), (), False, False, True, "sim", "does not answer", 1),
        ((24,), ("gpu",), False, True, True, "gpu", "models are on this machine", 0),
        ((24,), (), True, True, True, "sim", "nothing may be fetched", 0),
        ((80,), (), True, False, False, "sim", "vLLM is not installed", 0),
        ((80,), ("cpu",), False, False, True, "cpu", "does not answer", 1),
    ],
)
def test_auto_picks_what_the_machine_can_run_and_says_why(
    world, gpus, here, online, offline, vllm, picked, words, looks
):
    world.here, world.online, world.vllm = here, online, vllm
    choice = choose(machine(*gpus), offline=offline, hub=world.hub)
    assert choice.preset == picked
    assert words in choice.why
    assert world.looks == looks


def test_auto_never_picks_what_costs_money(world, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    world.here = ("hosted",)
    assert choose(machine(), hub=world.hub).preset == "sim"
