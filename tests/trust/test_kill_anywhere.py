"""A build that is killed at random moments ends as one that was never stopped."""

import json
import os
import random
import signal
from functools import partial

from small_run import SMALL

from benchmarks import kill_anywhere as bench
from segsmith.memory.ledger import DecisionRow, Ledger
from segsmith.review import decisions as review


def test_a_build_killed_anywhere_ends_as_if_it_had_not_been(tmp_path):
    bench.preload()
    config = bench.small_config(trainer={"epochs": 2, "batch_size": 4}, evaluation={"images": 2})
    whole = tmp_path / "whole"
    assert bench.sitting(config, whole, tmp_path / "whole.txt")
    run, journal = tmp_path / "run", tmp_path / "run.txt"
    rng = random.Random(7)
    kills = 0
    while kills < 6 and not bench.sitting(config, run, journal, kill_after=rng.uniform(0.2, 2.5)):
        bench.promised(run)
        kills += 1
    bench.sitting(config, run, journal)
    want, got = bench.fingerprint(whole), bench.fingerprint(run)
    assert {k for k in want | got if want.get(k) != got.get(k)} == set()
    assert bench.leftovers(run) == []
    assert bench.memory_matches(run)
    again = bench.repeats(journal)
    assert kills
    assert again["draw"] <= kills * config.images.batch_size
    assert again["epoch"] <= kills


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


def test_decisions_of_a_run_that_is_killed_stand_and_outrank_the_agents(tmp_path):
    bench.preload()
    config = bench.small_config(**SMALL)
    never = partial(a_person, die_at="never")
    assert bench.sitting(config, tmp_path / "whole", tmp_path / "whole.txt", watch=never)
    want = bench.fingerprint(tmp_path / "whole")
    for die_at in ("label", "training"):
        run, journal = tmp_path / die_at, tmp_path / f"{die_at}.txt"
        assert not bench.sitting(config, run, journal, watch=partial(a_person, die_at=die_at))
        assert bench.sitting(config, run, journal)  # the same command, and nobody is asked any more
        got = bench.fingerprint(run)
        assert {k for k in want | got if want.get(k) != got.get(k)} == set(), die_at
    ledger = Ledger(run / "ledger.db")
    verdicts, labels = ledger.decisions("verdict"), ledger.decisions("label")
    exported = [json.loads(line) for line in (run / "dataset" / "provenance.jsonl").read_text().splitlines()]
    ids = {record["image_id"] for record in exported}
    assert {i: row.action == "accept" for i, row in verdicts.items()} == {i: i in ids for i in verdicts}
    assert sorted(row.action for row in verdicts.values()) == ["accept", "reject"]
    assert [ledger.labels("relabel")[i].classes for i in labels] == [("cat", "dog")]
    ledger.close()
