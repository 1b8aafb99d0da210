"""A run grows: more images, more classes, a higher cap. What it has is kept, and what follows is made again."""

import json
import shutil
from contextlib import closing

import numpy as np
import pytest

import segsmith
from segsmith.agents.judge.measure import background_prompts
from segsmith.errors import SegsmithError
from segsmith.events import Status
from segsmith.memory.ledger import DecisionRow, Ledger
from segsmith.memory.prompt_memory import stored_vectors
from segsmith.testing import ScriptedChat, small_config

SMALL = {
    "per_class": 2,
    "labeler": {"epochs": 1, "folds": 2},
    "trainer": {"epochs": 1, "batch_size": 4},
    "evaluation": {"images": 4},
}


def build(out, **arguments):
    return segsmith.build(out=out, parts={"chat": ScriptedChat()}, progress=False, **arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of cats and dogs. Not to be changed: copy it."""
    out = tmp_path_factory.mktemp("growing") / "run"
    build(out, config=small_config(**SMALL))
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def ledger_of(run):
    return closing(Ledger(run / "ledger.db", read_only=True))


def images_of(run):
    with ledger_of(run) as ledger:
        return {row.id: row.sha256 for row in ledger.images()}


def test_a_finished_run_grows_and_keeps_what_it_has(run):
    before = images_of(run)
    shutil.rmtree(run / "memory")  # it is made anew from the ledger
    with closing(Ledger(run / "ledger.db")) as ledger:
        rejected = next(row.id for row in ledger.images() if row.id not in {i.id for i in ledger.accepted()})
        ledger.add_decision(DecisionRow("verdict", rejected, "accept"))
    grown = build(run, per_class=7)
    assert grown.ended.status is Status.FINISHED
    assert {name: tally.accepted for name, tally in grown.tallies.items()} == {"cat": 7, "dog": 7}
    assert images_of(run).items() > before.items()
    with ledger_of(run) as ledger:
        assert ledger.verdicts()[rejected].accepted
        assert ledger.finished_at is not None
        admitted = [prompt.id for prompt in ledger.prompts("admitted")]
    assert stored_vectors(run / "memory", admitted).keys() == set(admitted)
    assert len(grown.images) == 14
    assert rejected in {image.id for image in grown.images}
    assert grown.config.per_class == 7
    assert build(run).ended.status is Status.ALREADY_FINISHED


def test_a_class_is_added_and_the_measurements_get_its_column(run):
    with ledger_of(run) as ledger:
        before = ledger.evidence()
    grown = build(run, classes="cat,dog,bus")
    assert grown.ended.status is Status.FINISHED
    assert {name: tally.accepted for name, tally in grown.tallies.items()} == {"cat": 2, "dog": 2, "bus": 2}
    assert grown.evaluation.classes == ("background", "cat", "dog", "bus")
    with ledger_of(run) as ledger:
        after = ledger.evidence()
    for image_id, old in before.items():
        new = after[image_id]
        assert (*new.cosines[:2], *new.cosines[3:]) == old.cosines
        assert len(new.cosines) == 3 + len(background_prompts())
        assert sum(new.text_shares) == pytest.approx(1)
    test_images = (run / "evaluation/real/ImageSets/Segmentation/test.txt").read_text().split()
    assert len(test_images) == 4


def test_the_added_column_is_what_measuring_the_images_gives(run):
    from segsmith.graph.context import RunContext
    from segsmith.memory.run_config import read_record
    from segsmith.memory.run_folder import RunFolder

    config = read_record(run / "run.toml").config.model_copy(update={"classes": ("cat", "dog", "bus")})
    with RunContext(config, RunFolder(run), growing=True) as context:
        assert context.measure_added_classes() == ("bus",)
        widened = context.ledger.evidence()
        row = context.ledger.images()[0]
        image = context.run.read_image(row)
        texts = context.judge_agent._texts
        (cosines,) = context.encoder.embed_images([image]) @ texts.T
        assert np.allclose(widened[row.id].cosines, cosines, atol=1e-5)
        assert context.measure_added_classes() == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": "cat"}, "class 'dog' is missing now.*Type --classes \"cat,dog\""),
        ({"classes": "bus,cat,dog"}, 'another order now.*Type --classes "cat,dog,bus"'),
        ({"per_class": 1}, "has 2 accepted images of class 'cat', and 1 are wanted now"),
        ({"settings": {"images.size": 128}}, "was started with images.size = 64, now it is 128.*--from"),
        ({"seed": 3}, "was started with seed = 0"),
    ],
)
def test_what_would_change_the_run_is_rejected_by_name(finished, arguments, message):
    config = small_config(**SMALL)
    if "classes" in arguments:
        arguments = {"config": config, "settings": {"classes": arguments["classes"].split(",")}}
    with pytest.raises(SegsmithError, match=message):
        build(finished, **arguments)


def test_a_quota_that_is_lowered_to_what_there_is_leaves_a_capped_run_finished(tmp_path):
    config = small_config(**{**SMALL, "per_class": 4, "budget": {"max_images": 6}})
    capped = build(tmp_path / "run", config=config)
    assert capped.missing
    most = max(tally.accepted for tally in capped.tallies.values())
    lowered = build(tmp_path / "run", per_class=most)
    assert lowered.ended.status is Status.ALREADY_FINISHED
    raised = build(tmp_path / "run", per_class=most, max_images=60)
    assert raised.ended.status is Status.FINISHED
    assert not raised.missing


def test_settings_of_a_rejudged_run_build_it_again(run):
    """`segsmith rejudge`, then the documented ``build --from RUN/run.toml --out RUN``."""
    segsmith.rejudge(run, thresholds={"cat": 0.9})
    again = build(run, from_run=run / "run.toml")
    assert again.config.judge.thresholds == {"cat": 0.9}
    segsmith.rejudge(run, settings={"judge.top_k": 1})
    again = build(run, from_run=run / "run.toml", per_class=3)
    assert again.config.judge.top_k == 1
    assert again.config.per_class == 3
    assert build(run).ended.status is Status.ALREADY_FINISHED


def test_growing_continues_after_a_kill_between_the_ledger_and_run_toml(run):
    before = (run / "run.toml").read_bytes()
    events = segsmith.workflows.build.build_run(
        small_config(**{**SMALL, "classes": ("cat", "dog", "bus")}), run, parts={"chat": ScriptedChat()}
    )
    next(events)
    events.close()
    (run / "run.toml").write_bytes(before)  # as if the process had ended before it was written
    with pytest.raises(SegsmithError, match='Rerun it, with --classes "cat,dog,bus"'):
        _ = segsmith.open_run(run).tallies
    grown = build(run, config=small_config(**{**SMALL, "classes": ("cat", "dog", "bus")}))
    assert grown.tallies["bus"].accepted == 2
    exported = [json.loads(line) for line in (run / "dataset/provenance.jsonl").read_text().splitlines()]
    assert {line["class"] for line in exported} == {"cat", "dog", "bus"}
