"""Commands that are killed at random moments and given again end like commands that were never stopped."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from small_run import SMALL

from segsmith.events import StageStarted
from segsmith.memory.ledger import DecisionRow, Ledger
from segsmith.review import decisions as review
from segsmith.testing import ScriptedChat, fingerprint, small_config

FORK = multiprocessing.get_context("forkserver")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Scenario of the benchmark -> its figures, from one process, which imports the heavy libraries once.

    One kill each; `python -m benchmarks.kill_anywhere --scenario all --kills 20` kills more often.
    """
    path = tmp_path_factory.mktemp("kills") / "kills.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill_anywhere", "--scenario", "all", "--kills", "1", "--seed", "7",
         "--out", str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip
    assert path.exists(), done.stderr[-3000:]
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["build", "train", "refine", "augment", "rejudge", "export"])
def test_a_killed_command_ends_like_an_untouched_one(figures, scenario):
    found = figures[scenario]
    assert found["different"] == []
    assert found["identical"] == found["kills"] == 1
    assert found["half-written or unknown files"] == 0


def test_a_killed_build_loses_nothing_and_repeats_little(figures):
    found = figures["build"]
    assert found["memory consistent"] == 1
    assert found["lost images"] == 0
    # One batch is being drawn while the one before is being written.
    assert found["most again"]["draw"] <= 2 * small_config().images.batch_size
    assert found["most again"]["epoch"] <= 1


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
    FORK.set_forkserver_preload(
        ["segsmith.graph.graph", "segsmith.tools.vision.clip", "segsmith.tools.vision.vit"]
    )
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
