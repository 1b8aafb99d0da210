"""Settings that give the stored data its meaning cannot change under a run."""

import re
from contextlib import closing

import pytest

from segsmith.config import load_config
from segsmith.errors import SegsmithError
from segsmith.graph.context import RunContext
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_config import check_fixed_settings
from segsmith.testing import made_up_run


@pytest.fixture
def run(tmp_path):
    """A run that has been opened for writing once."""
    folder, ledger, config = made_up_run(tmp_path / "run", 4, size=64)
    check_fixed_settings(ledger, config, folder.root)
    ledger.close()
    return folder


CHANGES = {
    "classes": (r"classes = \[[^]]*\]", 'classes = ["dog", "cat", "bus", "potted plant"]'),
    "seed": ("seed = 0", "seed = 5"),
    "judge.clip": (r'clip = "\w+"', 'clip = "ViT-B-32/openai"'),
}


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("key", CHANGES)
def test_a_run_whose_settings_were_edited_gives_one_line_that_names_the_difference(run, key, read_only):
    with RunContext(_config(run), run, read_only=read_only):
        pass  # as it is, it opens
    text = run.config.read_text()
    changed, found = re.subn(*CHANGES[key], text, count=1)
    assert found == 1
    run.config.write_text(changed)
    with pytest.raises(
        SegsmithError, match=f"run.toml says {key} = .*, but the data of this run was made with"
    ):
        RunContext(_config(run), run, read_only=read_only)


def _config(run):
    from segsmith.memory.run_config import read_record

    return read_record(run.config).config


def test_other_settings_may_change(run):
    RunContext(load_config(flags={"classes": _config(run).classes, "per_class": 3}), run).close()


def test_a_run_without_prompts_takes_the_settings_over(tmp_path):
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        for classes in (("cat",), ("dog", "cat")):
            check_fixed_settings(ledger, load_config(flags={"classes": classes}), tmp_path)
            assert ledger.fixed_settings["classes"] == list(classes)


def test_a_run_of_an_earlier_version_is_read_and_takes_the_settings_over_when_it_resumes(run):
    with closing(Ledger(run.ledger)) as ledger:
        ledger.fixed_settings = {}
    RunContext(_config(run), run, read_only=True).close()
    with closing(Ledger(run.ledger, read_only=True)) as ledger:
        assert ledger.fixed_settings == {}
    RunContext(_config(run), run).close()
    with closing(Ledger(run.ledger, read_only=True)) as ledger:
        assert ledger.fixed_settings["seed"] == 0
