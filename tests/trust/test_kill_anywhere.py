"""A build that is killed at random moments ends as one that was never stopped."""

import random

import pytest

from benchmarks import kill_anywhere as bench


@pytest.mark.timeout(400)
def test_a_build_killed_anywhere_ends_as_if_it_had_not_been(tmp_path):
    bench.preload()
    config = bench.small_config(trainer={"epochs": 2, "batch_size": 4}, evaluation={"images": 2})
    whole = tmp_path / "whole"
    assert bench.sitting(config, whole, tmp_path / "whole.txt", kill_after=None)
    run, journal = tmp_path / "run", tmp_path / "run.txt"
    rng = random.Random(7)
    kills = 0
    while kills < 6 and not bench.sitting(config, run, journal, kill_after=rng.uniform(0.2, 2.5)):
        bench.promised(run)
        kills += 1
    bench.sitting(config, run, journal, kill_after=None)
    want, got = bench.fingerprint(whole), bench.fingerprint(run)
    assert {k for k in want | got if want.get(k) != got.get(k)} == set()
    assert bench.leftovers(run) == []
    assert bench.memory_matches(run)
    again = bench.repeats(journal)
    assert kills
    assert again["draw"] <= kills * config.images.batch_size
    assert again["epoch"] <= kills
