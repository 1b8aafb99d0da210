"""A build whose images and masks are made by workers is the build of one process, whatever happens to the workers."""

from contextlib import closing

import pytest

from segsmith.agents.judge.ahead import MeasuringAhead
from segsmith.engine.plane import adopt
from segsmith.engine.store import UnitStore
from segsmith.engine.work import Setup
from segsmith.errors import Cancelled, SegsmithError
from segsmith.events import Notice, WorkersBusy
from segsmith.files import read_index_map
from segsmith.graph.context import REMOTE_PARTS, RunContext
from segsmith.memory.ledger import LabelRow, Ledger, PromptRow
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import InstantScenes, fingerprint, instant_config, instant_parts, leftovers
from segsmith.types import IGNORE
from tests.engine.inline_pool import InlinePool

CONFIG = instant_config(("cat", "dog", "bus"), 1000)
PROMPTS = 70
"""Two images each: five units of drawing, the last one smaller."""


def stages(out, pool=None, config=CONFIG, between=lambda ledger: None, opened=lambda context: None):
    """Draw, judge, relabel and make masks in `out`, as a build does; returns its events.

    `pool` are the workers, None for the local engine. The same call resumes. `opened` is called with the context first, and
    `between` with the ledger before masks.
    """
    run = RunFolder(out)
    run.create()
    events = []
    parts = {**instant_parts(config, out), **({} if pool is None else {"pool": pool})}
    with RunContext(config, run, parts=parts) as context:
        opened(context)
        if not context.ledger.has_prompts:
            context.ledger.add_prompts(prompts())
        context.show = events.append
        plane, ledger = context.data_plane, context.ledger
        todo = ledger.prompts()
        if plane is None:
            adopt(run, ledger)
            with MeasuringAhead(context.judge_agent, ledger, run) as measuring:
                context.image_agent.draw(todo, 0, on_images=measuring.add)
        else:
            plane.draw_round(context.image_agent, context.judge_agent, todo, 0)
        context.judge_agent.judge()
        context.labeler_agent.relabel()
        between(ledger)
        if plane is None:
            context.labeler_agent.segment()
        else:
            plane.make_masks(context.labeler_agent)
    return events


def prompts():
    found = []
    for n in range(PROMPTS):
        name = CONFIG.classes[n % 3]
        text = f"a photo of a {name} in calm light, number {n}"
        found.append(PromptRow(f"p-{n:012x}", name, text, (name,), {}, None, 0, "admitted", {}))
    return found


def pool_for(out, config=CONFIG, **options):
    parts = instant_parts(config, out)
    return InlinePool(
        Setup(config, out, {name: part for name, part in parts.items() if name in REMOTE_PARTS}), **options
    )


def warnings(events):
    return [event.message for event in events if isinstance(event, Notice) and event.warning]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "run"
    stages(out)
    return fingerprint(out)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_run_does_not_depend_on_the_workers(out, local, workers):
    events = stages(out, pool_for(out, workers=workers, latest_first=True))
    assert fingerprint(out) == local
    assert leftovers(out) == []
    assert not (out / "units").exists()
    last = [event for event in events if isinstance(event, WorkersBusy)][-1]
    assert (last.done, last.workers) == (last.total, workers)
    assert warnings(events) == []


def test_units_of_workers_that_die_or_fail_are_done_by_others(out, local):
    seen = []

    def faults(unit, worker):
        seen.append(unit.id)
        return {3: "die", 4: "fail", 6: "fail"}.get(len(seen), "")

    pool = pool_for(out, workers=4, latest_first=True, faults=faults)
    stages(out, pool)
    assert fingerprint(out) == local
    assert len(pool._names) == 3


class Killed(BaseException):
    """Stands for the end of the driver."""


@pytest.mark.parametrize("engine", ["local", "workers"])
@pytest.mark.parametrize("moment", [1, 3, 5, 7, 10, 16])
def test_a_driver_that_ends_at_any_moment_is_resumed_by_either_engine(out, local, moment, engine):
    """The last unit is done first, so what is committed is never what may be folded next."""
    done = 0

    def faults(unit, worker):
        nonlocal done
        done += 1
        if done > moment:
            raise Killed
        return ""

    with pytest.raises(Killed):
        stages(out, pool_for(out, workers=4, latest_first=True, faults=faults))
    committed = UnitStore(out).units()
    pool = pool_for(out, workers=2) if engine == "workers" else None
    stages(out, pool)
    assert fingerprint(out) == local
    assert leftovers(out) == []
    assert not (out / "units").exists()
    if pool is not None:
        assert not set(committed) & {unit for _, unit in pool.done}, "no committed unit is done again"


def stops_after_two(kind, out, contexts, done):
    """Workers that do the last units first, so that what is committed waits for others, until the user stops the run."""

    def stops(unit, worker):
        if unit.kind == kind:
            done.append(unit.id)
            if len(done) == 2:
                contexts[0].stopping.set()
        return ""

    return pool_for(out, workers=2, latest_first=True, faults=stops)


def test_images_committed_before_the_user_stopped_the_run_are_not_drawn_again(out, local):
    contexts, done = [], []
    with pytest.raises(Cancelled):
        stages(out, stops_after_two("draw", out, contexts, done), opened=contexts.append)
    again = pool_for(out)
    stages(out, again)
    assert not {unit for _, unit in again.done} & set(done)
    assert fingerprint(out) == local
    assert leftovers(out) == []


def test_masks_committed_before_the_user_stopped_the_run_are_not_made_again(out, local):
    contexts, done = [], []
    with pytest.raises(Cancelled):
        stages(out, stops_after_two("masks", out, contexts, done), opened=contexts.append)
    again = pool_for(out)
    parts = {**instant_parts(CONFIG, out), "pool": again}
    with RunContext(CONFIG, RunFolder(out), parts=parts) as context:  # as the graph does: it has its labels
        context.data_plane.make_masks(context.labeler_agent)
    assert not {unit for _, unit in again.done} & set(done)
    assert fingerprint(out) == local
    assert leftovers(out) == []


def test_a_run_of_one_process_is_resumed_by_workers(out, local, monkeypatch):
    drawn, draw = [], InstantScenes.draw

    def stopping(self, requests, *watching):
        for result in draw(self, requests, *watching):
            drawn.append(requests[result.index])
            if len(drawn) > 50:
                raise Killed
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(InstantScenes, "draw", stopping)
        with pytest.raises(Killed):
            stages(out)
    pool = pool_for(out, workers=2)
    again = []
    pool._shop._made["backend"] = Watched(pool._shop.backend, again)
    stages(out, pool)
    assert fingerprint(out) == local
    assert leftovers(out) == []
    assert not set(again) & set(drawn[:48]), "what had a file is not drawn again"


class Watched:
    def __init__(self, inner, asked):
        self.inner, self.asked, self.name = inner, asked, inner.name

    def draw(self, requests, *watching):
        self.asked += requests
        return self.inner.draw(requests, *watching)

    def close(self):
        pass


def test_a_unit_that_fails_three_times_is_set_aside_counted_and_done_on_the_next_run(out):
    bad, images = [], []

    def faults(unit, worker):
        if not bad:
            bad.append(unit.id)
            images.extend(item.id for item in unit.items)
        return "fail" if unit.id in bad else ""

    events = stages(out, pool_for(out, workers=4, faults=faults))
    assert warnings(events)[0] == (
        f"{len(images)} images could not be made and are tried again when the command is rerun: OSError: no space left"
    )
    with closing(Ledger(RunFolder(out).ledger)) as ledger:
        assert ledger.set_aside == {"images": len(images)}
        assert ledger.drawn_among(images) == set()
    stages(out, pool_for(out))
    with closing(Ledger(RunFolder(out).ledger)) as ledger:
        assert ledger.drawn_among(images) == set(images)


def test_masks_that_were_set_aside_are_made_on_the_next_run(out, local):
    bad = []

    def faults(unit, worker):
        if unit.kind == "masks" and not bad:
            bad.append(unit.id)
        return "fail" if unit.id in bad else ""

    events = stages(out, pool_for(out, workers=4, faults=faults))
    assert warnings(events) == [
        "32 masks could not be made and are tried again when the command is rerun: OSError: no space left"
    ]
    assert fingerprint(out) != local
    stages(out, pool_for(out, workers=2))
    assert fingerprint(out) == local


def doubt(ledger):
    """As if the witnesses had disagreed about what every third image shows, and about a bus in every fifth one."""
    rows = []
    for image_id, row in ledger.labels("relabel").items():
        number = int(image_id[2:], 16)
        scores = dict.fromkeys(row.classes, 0.5 if number % 3 == 0 else 1.0)
        rows.append(
            LabelRow(
                image_id, "agreement", row.classes, {**scores, **({"bus": 0.5} if number % 5 == 0 else {})}
            )
        )
    ledger.add_labels(rows)


@pytest.mark.parametrize("region_doubt", [0.0, 0.05], ids=["masks", "masks and region check"])
def test_masks_of_doubted_classes_do_not_depend_on_the_workers(tmp_path, region_doubt):
    config = instant_config(CONFIG.classes, 1000, labeler={"region_doubt": region_doubt})
    local, out = tmp_path / "local", tmp_path / "run"
    stages(local, config=config, between=doubt)
    stages(out, pool_for(out, config, workers=3, latest_first=True), config, between=doubt)
    assert fingerprint(out) == fingerprint(local)
    with closing(Ledger(RunFolder(out).ledger)) as ledger:
        masks = ledger.masks()
    doubted = [i for i, mask in masks.items() if mask.sources.get("doubted")]
    assert 0 < len(doubted) < len(masks)
    assert any((read_index_map(RunFolder(out).mask(i)) == IGNORE).any() for i in doubted)


def test_a_worker_without_its_model_is_named_once_and_others_go_on(out, local):
    events = stages(out, pool_for(out, workers=3, broken=("w2",)))
    assert fingerprint(out) == local
    assert warnings(events) == ["A worker on node node-of-w2 is left out: no such model"] * 5, "once a batch"


def test_no_usable_worker_ends_the_run_with_one_line(out):
    with pytest.raises(SegsmithError) as caught:
        stages(out, pool_for(out, workers=2, broken=("w1", "w2")))
    assert str(caught.value) == (
        "No worker can go on: no such model (node node-of-w2). "
        "Fix that, then run the same command again; it resumes from here."
    )


def test_what_a_late_attempt_commits_does_not_outlive_the_session(out):
    pool = pool_for(out)
    stages(out, pool)
    store = UnitStore(out)
    with RunContext(CONFIG, RunFolder(out), parts={**instant_parts(CONFIG, out), "pool": pool}) as context:
        assert context.data_plane is not None
        image = context.ledger.images()[0]
        store.begin("u-late", "s-9")
        store.commit("u-late", "s-9", {"images": {image.id: {"sha256": image.sha256}}})
    assert not (out / "units").exists()
    assert leftovers(out) == []
