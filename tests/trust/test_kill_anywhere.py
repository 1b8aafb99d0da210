"""Commands that are killed at random moments and given again end like commands that were never stopped."""

import json
import os
import signal
from functools import partial

import pytest
from small_run import SMALL

from benchmarks.kill_anywhere import FORK, kill_anywhere, preload
from benchmarks.kill_commands import SCENARIOS, kill_commands
from segsmith.events import StageStarted
from segsmith.memory.ledger import DecisionRow, Ledger
from segsmith.review import decisions as review
from segsmith.testing import ScriptedChat, fingerprint, small_config


def check(found, kills):
    assert found["different"] == []
    assert found["identical"] == kills
    assert found["half-written or unknown files"] == 0


@pytest.mark.slow
def test_a_killed_build_ends_like_an_untouched_one(tmp_path):
    found = kill_anywhere(tmp_path, 2, seed=7)
    check(found, 2)
    assert found["memory consistent"] == 2
    assert found["lost images"] == 0
    # One batch is being drawn while the one before is being written.
    assert found["most again"]["draw"] <= 2 * small_config().images.batch_size
    assert found["most again"]["epoch"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_so_does_every_other_command_that_takes_long(tmp_path, scenario):
    """Once each; `python -m benchmarks.kill_anywhere --scenario all` kills them more often."""
    check(kill_commands(scenario, tmp_path, 1, seed=7), 1)


def overrule(pause, die_at):
    """A reviewer that overrules two verdicts and a label, and kills its process at the pause `die_at`."""
    for subject, action, value in wanted(pause.run.ledger, pause.kind, sorted(pause.subjects)):
        row = DecisionRow(pause.kind, subject, action, value, "mine", "terminal")
        review.record(pause.run, review.check_decision(pause.run, row))
    if pause.kind == die_at:
        os.kill(os.getpid(), signal.SIGKILL)


def wanted(ledger, kind, subjects):
    """What the reviewer decides: once about verdicts, once about a label."""
    if ledger.decisions(kind):
        return []
    if kind == "verdict":
        verdicts = ledger.verdicts()
        taken = [i for i in subjects if verdicts[i].accepted]
        refused = [i for i in subjects if not verdicts[i].accepted]
        return [(taken[0], "reject", {}), (refused[0], "accept", {})]
    return [(subjects[0], "edit", {"labels": ["cat", "dog"]})] if kind == "label" else []


def build_in_child(config, out, reviewer, die_at=""):
    """Build in a process that dies at a stage or in its reviewer; True if the build came to its end."""
    preload()
    child = FORK.Process(target=_child, args=(config, out, reviewer, die_at))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode == 0


def _child(config, out, reviewer, die_at):
    import torch

    from segsmith.workflows.build import build_run

    torch.set_num_threads(1)
    for event in build_run(config, out, reviewer=reviewer, parts={"chat": ScriptedChat()}):
        if isinstance(event, StageStarted) and event.stage == die_at:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_decisions_survive_a_kill_and_outrank_the_agents(tmp_path):
    config = small_config(**SMALL)
    never = partial(overrule, die_at="never")
    assert build_in_child(config, tmp_path / "whole", never)
    want = fingerprint(tmp_path / "whole")
    for die_at in ("label", "training"):
        run = tmp_path / die_at
        assert not build_in_child(config, run, partial(overrule, die_at=die_at), die_at)
        assert build_in_child(config, run, None)  # the same command, without pauses
        got = fingerprint(run)
        assert {k for k in want | got if want.get(k) != got.get(k)} == set(), die_at
    ledger = Ledger(run / "ledger.db")
    verdicts, labels = ledger.decisions("verdict"), ledger.decisions("label")
    exported = [json.loads(line) for line in (run / "dataset" / "provenance.jsonl").read_text().splitlines()]
    ids = {record["image_id"] for record in exported}
    assert {i: row.action == "accept" for i, row in verdicts.items()} == {i: i in ids for i in verdicts}
    assert sorted(row.action for row in verdicts.values()) == ["accept", "reject"]
    assert [ledger.labels("relabel")[i].classes for i in labels] == [("cat", "dog")]
    ledger.close()
