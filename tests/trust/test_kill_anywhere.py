"""A build that is killed at random moments ends as one that was never stopped."""

import multiprocessing
import random

import pytest

from benchmarks import kill_anywhere as bench


def killed_six_times(folder):
    bench.preload()
    config = bench.small_config(trainer={"epochs": 2, "batch_size": 4}, evaluation={"images": 2})
    whole = folder / "whole"
    assert bench.sitting(config, whole, folder / "whole.txt", kill_after=None)
    run, journal = folder / "run", folder / "run.txt"
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


@pytest.mark.timeout(400)
def test_a_build_killed_anywhere_ends_as_if_it_had_not_been(tmp_path):
    # In a fresh process: this one has threads of other tests, and a fork of it could wait for them for ever.
    process = multiprocessing.get_context("spawn").Process(target=killed_six_times, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
