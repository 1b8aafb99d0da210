"""One small finished build that the tests of this folder copy and question."""

import shutil

import pytest
from small_run import KEY, SMALL

from segsmith.testing import ScriptedChat, small_config
from segsmith.workflows.build import build_run
from segsmith.workflows.run import Run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run, built with a key in the environment. Not to be changed: copy it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        list(build_run(small_config(**SMALL), out, "segsmith build", parts={"chat": ScriptedChat()}))
    return out


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run that a test may change."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def build():
    """Build with the scripted language model; returns the run."""

    def build(config, out):
        *_, ended = build_run(config, out, "segsmith build", parts={"chat": ScriptedChat()})
        return Run(out, ended)

    return build
