"""The run context keeps on the GPU what the plan says, and starts the LLM server before anything else loads."""

import pytest

from segsmith.config import load_config
from segsmith.device_memory import GIB
from segsmith.graph.context import RunContext
from segsmith.graph.graph import draw, route_plan
from segsmith.memory.run_folder import RunFolder
from segsmith.tools.gpu_plan import GpuPlan, GpuStage, plan_gpu

CLASSES = {"classes": ("cat", "dog")}


class Watched:
    """A model that writes down what happens to it."""

    def __init__(self, name, seen):
        self.name, self.seen = name, seen

    def start(self):
        self.seen.append(f"{self.name} starts")

    def release(self):
        self.seen.append(f"{self.name} released")

    def close(self):
        self.seen.append(f"{self.name} released")


@pytest.fixture
def open_context(tmp_path):
    contexts, seen = [], []

    def make(plan):
        run = RunFolder(tmp_path / "run")
        run.create()
        parts = {name: Watched(name, seen) for name in ("chat", "backend", "encoder")}
        context = RunContext(load_config(preset="gpu", flags=CLASSES), run, parts={**parts, "gpu_plan": plan})
        contexts.append(context)
        return context, seen

    yield make
    for context in contexts:
        context._made.pop("chat")
        context.close()


def plan(gib):
    return plan_gpu(load_config(preset="gpu", flags=CLASSES), gib * GIB)


def test_the_server_starts_before_a_resumed_run_draws(open_context):
    context, seen = open_context(plan(24))
    context.enter(GpuStage.DRAW, asks=True)
    assert seen == ["chat starts"]


def test_drawing_alone_starts_no_server(open_context):
    context, seen = open_context(plan(24))
    context.enter(GpuStage.DRAW, asks=False)
    assert seen == []


@pytest.mark.parametrize("gib", [12, 24, 80])
def test_the_servers_share_is_given_back_before_labelling(open_context, gib):
    context, seen = open_context(plan(gib))
    context.enter(GpuStage.LABEL)
    assert {"chat released", "backend released"} <= set(seen)


def test_without_a_gpu_the_server_stops_before_labelling_too(open_context):
    context, seen = open_context(GpuPlan())
    context.enter(GpuStage.DRAW, asks=True)
    context.enter(GpuStage.LABEL)
    assert seen == ["chat starts", "chat released", "backend released"]


def test_on_a_small_card_the_language_and_image_models_take_turns(open_context):
    context, seen = open_context(plan(12))
    context.enter(GpuStage.WRITE, asks=True)
    assert seen.index("backend released") < seen.index("chat starts")
    seen.clear()
    context.enter(GpuStage.DRAW, asks=True)
    assert "chat released" in seen
    assert "chat starts" not in seen


@pytest.mark.parametrize(("gib", "beside"), [(12, False), (24, True)])
def test_prompts_are_written_while_images_are_drawn_only_where_both_models_fit(open_context, gib, beside):
    class Runtime:
        context, _ = open_context(plan(gib))

    state = {"reason": "draw", "draw": ["p1"], "write": {"cat": 3}, "round": 1, "writing": 2}
    steps = route_plan(state, Runtime)
    assert steps[0].node == "draw"
    assert (len(steps) == 2) is beside
    assert len(route_plan({**state, "reason": "need_prompts"}, Runtime)) == 1


@pytest.mark.parametrize(("gib", "ahead"), [(8, False), (24, True)])
def test_images_are_measured_while_others_are_drawn_only_where_clip_fits(open_context, gib, ahead):
    context, _ = open_context(plan(gib))
    given = {}

    class Images:
        def draw(self, prompts, round_, **options):
            given.update(options)

    class Runtime:
        pass

    Runtime.context = context
    context.use(image_agent=Images(), judge_agent=None)
    writer = "segsmith.graph.graph.get_stream_writer"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, lambda: print)
        draw({"draw": [], "write": {}, "round": 0}, Runtime)
    assert ("on_images" in given) is ahead
