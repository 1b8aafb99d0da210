"""The graph's walk, with agents that only count: loop to the quota, stop with a reason, resume after a crash."""

import errno
import itertools
import threading

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Send

from segsmith.agents.prompt.draft import Draft
from segsmith.config import Config
from segsmith.graph.context import RunContext
from segsmith.graph.graph import WRITTEN_TOGETHER, build_graph
from segsmith.ids import make_id
from segsmith.memory.ledger import Evidence, PromptRow, VerdictRow
from segsmith.memory.run_folder import RunFolder
from segsmith.reasons import PromptProblem
from segsmith.testing import InstantEncoder, InstantImages, ScriptedChat, small_config
from segsmith.types import Evaluation

SCORE = Evaluation(1.0, {"cat": 1.0}, 1.0, ("cat",))


class Prompts:
    """Writes what is asked, or, for classes in `mute`, drafts that always fail."""

    def __init__(self, ledger, mute=()):
        self.ledger, self.mute, self.calls = ledger, mute, []
        self.number = itertools.count()

    def returned(self, prompt_ids):
        return []

    def propose(self, class_name, wanted, round_, first=0, judged=None):
        self.calls.append((class_name, wanted))
        return [
            Draft(make_id("p", class_name, n), class_name, f"a {class_name} {n}")
            for n in itertools.islice(self.number, wanted)
        ]

    def critique(self, drafts):
        return [
            d.rejected(PromptProblem.IRRATIONAL, "not sensible") if d.class_name in self.mute else d
            for d in drafts
        ]

    def refine(self, drafts):
        return drafts

    def _write(self, drafts, status):
        self.ledger.add_prompts(
            PromptRow(d.id, d.class_name, d.text, (d.class_name,), {}, None, 0, status, {}) for d in drafts
        )
        return [d.id for d in drafts]

    def admit(self, drafts):
        return self._write(drafts, "admitted")

    def drop(self, drafts):
        self._write(drafts, "dropped")


class Judge:
    """Accepts every second image of a class, and none of the classes in `refuse`."""

    def __init__(self, ledger, quota, refuse=()):
        self.ledger, self.quota, self.refuse = ledger, quota, refuse
        self.judged = []
        self.crash_once = None

    def measure(self, rows, images):
        self.ledger.add_evidence(Evidence(r.id, r.prompt_id, "", (), (), 1.0, False, -1.0) for r in rows)

    def judge(self):
        if self.crash_once:
            error, self.crash_once = self.crash_once, None
            raise error
        count = {}
        for row in self.ledger.images():
            name = self.ledger.prompt(row.prompt_id).class_name
            count[name] = count.get(name, 0) + 1
            good = count[name] % 2 == 0 and count[name] <= 2 * self.quota and name not in self.refuse
            self.ledger.add_verdicts([VerdictRow(row.id, good, "ok" if good else "not_there", {})])

    def returned(self, prompt_ids):
        self.judged.append(list(prompt_ids))
        return {"cat": list(prompt_ids)} if prompt_ids else {}


class Labeler:
    def __init__(self):
        self.steps = []

    def relabel(self, elsewhere=None):
        self.steps.append("label")
        return 0

    def segment(self, on_batch):
        self.steps.append("segment")


class Finalizer:
    def __init__(self, labeler):
        self.steps = labeler.steps

    def export(self):
        self.steps.append("export")

    def train(self, on_epoch):
        self.steps.append("train")

    def evaluate(self):
        return {"test_set": SCORE}


@pytest.fixture
def make(tmp_path):
    made = []

    def make(mute=(), refuse=(), **settings):
        config = Config(**{"classes": ("cat", "dog"), "per_class": 6, **settings})
        run = RunFolder(tmp_path / "run")
        run.create()
        context = RunContext(config, run)
        steps = Labeler()
        context.use(
            prompt_agent=Prompts(context.ledger, mute),
            backend=InstantImages(size=8),
            judge_agent=Judge(context.ledger, config.per_class, refuse),
            labeler_agent=steps,
            finalizer=Finalizer(steps),
        )
        made.append(context)
        return context

    yield make
    for context in made:
        context.close()


def run(context, graph=None, start=True):
    options = {"configurable": {"thread_id": "t"}, "recursion_limit": 500}
    return (graph or build_graph(InMemorySaver())).invoke(
        {"round": 0} if start else None, options, context=context
    )


def accepted(context):
    return {c: t.accepted for c, t in context.ledger.tallies().items()}


def test_it_goes_round_until_every_class_has_its_quota_and_then_to_the_end(make):
    context = make()
    state = run(context)
    assert state["reason"] == "quota_met"
    assert accepted(context) == {"cat": 6, "dog": 6}
    assert context.labeler_agent.steps == ["label", "segment", "export", "train"]
    assert context.ledger.evaluation == {"test_set": SCORE}
    assert context.backend.closed  # labelling has the device to itself
    assert state["admitted"] == len(context.ledger.prompts("admitted"))


def test_a_class_that_is_never_accepted_stalls_and_the_rest_is_labelled(make):
    context = make(refuse=("dog",), budget={"patience": 2})
    state = run(context)
    assert state["reason"] == "stalled"
    assert state["missing"] == {"dog": 6}
    assert context.labeler_agent.steps[-1] == "train"
    assert [d["class"] for _, _, d in context.ledger.events("missing")] == ["dog"]


def test_a_class_without_usable_prompts_is_abandoned(make):
    context = make(mute=("dog",), budget={"patience": 2})
    assert run(context)["missing"] == {"dog": 6}
    dropped = context.ledger.prompts("dropped")
    assert dropped
    assert {p.class_name for p in dropped} == {"dog"}


def test_nothing_accepted_ends_without_labelling(make):
    context = make(refuse=("cat", "dog"), budget={"patience": 1})
    assert run(context)["reason"] == "nothing_accepted"
    assert context.labeler_agent.steps == []


def test_the_image_budget_holds(make):
    context = make(budget={"max_images": 9})
    assert run(context)["reason"] == "budget_spent"
    assert len(context.backend.requests) == 9


def test_after_a_crash_nothing_is_made_twice(make):
    context = make()
    graph = build_graph(InMemorySaver())
    context.judge_agent.crash_once = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(context, graph)
    drawn = len(context.backend.requests)
    assert drawn > 0
    state = run(context, graph, start=False)
    assert state["reason"] == "quota_met"
    assert len(context.backend.requests) == len(context.ledger.images())
    assert accepted(context) == {"cat": 6, "dog": 6}


def test_a_checkpoint_of_an_earlier_version_holds_the_prompts_of_its_round(make, monkeypatch):
    context = make(per_class=1)
    context.ledger.add_prompts(
        PromptRow(f"p{k}", "cat", f"a cat {k}", ("cat",), {}, None, 0, "admitted", {}) for k in range(6)
    )
    saver, chosen = InMemorySaver(), ["p4", "p2"]

    def direct(state):
        return {"reason": "draw", "draw": chosen, "write": {}}

    def route_plan(state):
        return [Send("draw", state)]

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as earlier:
        earlier.setattr("segsmith.graph.graph.direct", direct)
        earlier.setattr("segsmith.graph.graph.route_plan", route_plan)
        earlier.setattr(context.backend, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(context, build_graph(saver))
    run(context, build_graph(saver), start=False)
    drawn = [row.prompt_id for row in context.ledger.images() if row.round == 0]
    assert list(dict.fromkeys(drawn)) == context.judge_agent.judged[0] == chosen
    assert set(chosen).isdisjoint(context.judge_agent.judged[1])


def test_checkpoints_do_not_grow_with_the_rounds(make):
    """The prompts of a round are in the ledger; what the judge sends back is cut to what is rewritten."""

    def longest(context):
        saver = InMemorySaver()
        run(context, build_graph(saver))
        lists = [
            item
            for checkpoint in saver.list(None)
            for value in checkpoint.checkpoint["channel_values"].values()
            for item in [value, *(value.values() if isinstance(value, dict) else ())]
            if isinstance(item, list)
        ]
        return max(map(len, lists))

    context = make(per_class=120, classes=("cat",))
    assert longest(context) <= WRITTEN_TOGETHER
    assert max(map(len, context.judge_agent.judged)) > WRITTEN_TOGETHER
    planned = context.ledger.planned(len(context.judge_agent.judged) - 1)
    assert planned == context.judge_agent.judged[-1]
    assert sorted(context.ledger.planned(0)) == sorted(context.judge_agent.judged[0])


def test_an_error_that_passes_is_tried_again(make, monkeypatch):
    monkeypatch.setattr("langgraph.pregel._retry.time.sleep", lambda seconds: None)
    context = make()
    context.judge_agent.crash_once = OSError(errno.ESTALE, "Stale file handle")
    assert run(context)["reason"] == "quota_met"
    assert len(context.backend.requests) == len(context.ledger.images())


def test_an_error_that_stays_is_not_tried_again(make):
    context = make()
    context.judge_agent.crash_once = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        run(context)


def test_only_the_first_round_waits_for_prompts(make):
    context = make(per_class=30)
    options = {"configurable": {"thread_id": "t"}, "recursion_limit": 500}
    updates = build_graph(InMemorySaver()).stream(
        {"round": 0}, options, context=context, stream_mode="updates"
    )
    reasons = [update["direct"]["reason"] for update in updates if "direct" in update]
    assert reasons[0] == "need_prompts"
    assert reasons.count("need_prompts") == 1
    assert reasons.count("draw") > 1


def test_drawing_starts_before_writers_that_take_long(make):
    """However many classes write: with fewer threads than writers, drawing must not be the last to get one."""
    classes = tuple(f"class {letter}" for letter in "abcdefgh")
    context = make(classes=classes, per_class=40)
    drawing, late = threading.Event(), []
    draw, propose = context.backend.draw, context.prompt_agent.propose

    def note_and_draw(*args, **options):
        drawing.set()
        return draw(*args, **options)

    def propose_slowly(class_name, wanted, round_, first=0, judged=None):
        if context.ledger.prompts("admitted") and not first and wanted > context.config.prompts.batch:
            late.append(not drawing.wait(5))
        return propose(class_name, wanted, round_, first)

    context.backend.draw = note_and_draw
    context.prompt_agent.propose = propose_slowly
    options = {"configurable": {"thread_id": "t"}, "recursion_limit": 500, "max_concurrency": 2}
    reasons = []
    for update in build_graph(InMemorySaver()).stream(
        {"round": 0}, options, context=context, stream_mode="updates"
    ):
        if "direct" in update:
            reasons.append(update["direct"]["reason"])
            if len(reasons) == 3:
                break
    assert reasons == ["need_prompts", "draw", "draw"]
    assert late
    assert not any(late)


def test_no_prompt_is_asked_for_twice(tmp_path):
    """Prompts are written before the first round and again while it is drawn; both belong to round 0 of drawing."""
    asked = []
    config = small_config(per_class=30, judge={"enabled": False}, prompts={"remember": False})
    run_folder = RunFolder(tmp_path / "run")
    run_folder.create()
    labeler = Labeler()
    parts = {
        "chat": ScriptedChat(on_ask=lambda user, seed: asked.append(seed)),
        "encoder": InstantEncoder(config.classes),
        "backend": InstantImages(size=64),
        "labeler_agent": labeler,
        "finalizer": Finalizer(labeler),
    }
    with RunContext(config, run_folder, parts=parts) as context:
        state = run(context)
        assert state["admitted"] == len(context.ledger.prompts("admitted"))
    assert len(asked) == len(set(asked))
