"""A run whose first sitting failed before its first prompt may begin again with what is typed now."""

import struct

import pytest

from segsmith.errors import SegsmithError
from segsmith.events import SessionStarted
from segsmith.memory.ledger import Ledger, PromptRow
from segsmith.memory.run_config import read_record
from segsmith.testing import small_config
from segsmith.workflows.build import build_run


@pytest.fixture
def unservable(tmp_path):
    """Whole by its header, so the failure comes from the server, in the middle of the first sitting."""
    pytest.importorskip("xllamacpp")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    return str(path)


def test_other_settings_after_a_language_model_that_could_not_start(tmp_path, unservable):
    run = tmp_path / "run"
    wrong = small_config(per_class=1, llm={"gguf": unservable})
    with pytest.raises(SegsmithError, match="cannot serve"):
        list(build_run(wrong, run))
    assert read_record(run / "run.toml").asked.llm.gguf == unservable
    # The next sitting gets as far as its first event, which is all that could be refused.
    right = small_config(per_class=2, classes=("bus",))
    session = build_run(right, run)
    assert next(session) == SessionStarted(False, {"bus": 2}, {})
    session.close()
    assert read_record(run / "run.toml").asked == right


def test_once_a_prompt_is_written_the_settings_stand(tmp_path, unservable):
    run = tmp_path / "run"
    wrong = small_config(per_class=1, llm={"gguf": unservable})
    with pytest.raises(SegsmithError, match="cannot serve"):
        list(build_run(wrong, run))
    ledger = Ledger(run / "ledger.db")
    ledger.add_prompts([PromptRow("p-1", "cat", "a cat", ("cat",), {}, None, 0, "admitted", {})])
    ledger.close()
    with pytest.raises(SegsmithError, match="was started with"):
        list(build_run(small_config(per_class=2), run))
