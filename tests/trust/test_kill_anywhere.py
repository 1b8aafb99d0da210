"""A build that is killed at random moments ends as one that was never stopped."""

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

from segsmith.memory.ledger import DecisionRow, Ledger
from segsmith.review import decisions as review
from segsmith.testing import ScriptedChat, fingerprint, small_config

FORK = multiprocessing.get_context("forkserver")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_build_killed_anywhere_ends_as_if_it_had_not_been(tmp_path):
    figures = tmp_path / "kills.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.kill_anywhere", "--kills", "3", "--seed", "7", "--out", str(figures)],
        cwd=ROOT, check=True, timeout=500,
    )  # fmt: skip
    found = json.loads(figures.read_text())["build"]
    assert found["different"] == []
    assert found["identical"] == found["memory consistent"] == 3
    assert found["half-written or unknown files"] == found["lost pictures"] == 0
    assert found["most again"]["draw"] <= small_config().images.batch_size
    assert found["most again"]["epoch"] <= 1


def a_person(event, die_at):
    """Decides otherwise about two verdicts and a label, then dies (SIGKILL) at a pause or a stage."""
    if event["kind"] == "pause":
        ledger, kind = event["deps"].ledger, event["review"]
        for subject, action, value in wanted(ledger, kind, sorted(event["subjects"])):
            row = DecisionRow(kind, subject, action, value, "mine", "terminal")
            review.record(event["deps"], review.check_decision(event["deps"], row))
        if kind == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        review.mark_seen(ledger, kind, event["subjects"])
    if event.get("name") == die_at:
        os.kill(os.getpid(), signal.SIGKILL)


def wanted(ledger, kind, subjects):
    """What the person decides: once about verdicts, once about a label."""
    if ledger.decisions(kind):
        return []
    if kind == "verdict":
        verdicts = ledger.verdicts()
        taken = [i for i in subjects if verdicts[i].accepted]
        refused = [i for i in subjects if not verdicts[i].accepted]
        return [(taken[0], "reject", {}), (refused[0], "accept", {})]
    return [(subjects[0], "edit", {"labels": ["cat", "dog"]})] if kind == "label" else []


def build_in_child(config, out, watch):
    """Build in a process that `watch` may kill; True if the build came to its end."""
    FORK.set_forkserver_preload(
        ["segsmith.graph.graph", "segsmith.tools.vision.clip", "segsmith.tools.vision.vit"]
    )
    child = FORK.Process(target=_child, args=(config, out, watch))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode == 0


def _child(config, out, watch):
    import torch

    from segsmith.workflows.build import build_run

    torch.set_num_threads(1)
    for event in build_run(config, out, step=watch is not None, parts={"chat": ScriptedChat()}):
        if watch is not None:
            watch(event)


@pytest.mark.slow
def test_decisions_of_a_run_that_is_killed_stand_and_outrank_the_agents(tmp_path):
    config = small_config(**SMALL)
    never = partial(a_person, die_at="never")
    assert build_in_child(config, tmp_path / "whole", never)
    want = fingerprint(tmp_path / "whole")
    for die_at in ("label", "training"):
        run = tmp_path / die_at
        assert not build_in_child(config, run, partial(a_person, die_at=die_at))
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
