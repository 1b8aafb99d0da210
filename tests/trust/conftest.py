"""One small finished build that the tests of this folder copy and question."""

import shutil

import pytest
from small_run import KEY, SMALL, scripted

from benchmarks import kill_anywhere as bench
from segsmith.workflows import build as run_module


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run, built with a key in the environment. Not to be changed: copy it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        list(run_module.build_run(bench.small_config(**SMALL), out, "segsmith build", parts=scripted()))
    return out


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run that a test may change."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def build():
    """Build with the scripted language model; returns the last event."""
    return lambda config, out: list(run_module.build_run(config, out, "segsmith build", parts=scripted()))[-1]
