"""A run whose first session failed before its first prompt can restart with other settings."""

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
    """A model file with a valid header, so that only the server, started in the first session, rejects it."""
    pytest.importorskip("xllamacpp")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    return str(path)


def test_settings_can_change_after_the_llm_failed_to_start(tmp_path, unservable):
    run = tmp_path / "run"
    wrong = small_config(per_class=1, llm={"gguf": unservable})
    with pytest.raises(SegsmithError, match="cannot serve"):
        list(build_run(wrong, run))
    assert read_record(run / "run.toml").asked.llm.gguf == unservable
    # The settings are checked before the first event.
    right = small_config(per_class=2, classes=("bus",))
    session = build_run(right, run)
    assert next(session) == SessionStarted(False, {"bus": 2}, {})
    session.close()
    assert read_record(run / "run.toml").asked == right


def test_settings_cannot_change_once_a_prompt_is_written(tmp_path, unservable):
    run = tmp_path / "run"
    wrong = small_config(per_class=1, llm={"gguf": unservable})
    with pytest.raises(SegsmithError, match="cannot serve"):
        list(build_run(wrong, run))
    ledger = Ledger(run / "ledger.db")
    ledger.add_prompts([PromptRow("p-1", "cat", "a cat", ("cat",), {}, None, 0, "admitted", {})])
    ledger.close()
    with pytest.raises(SegsmithError, match="was started with"):
        list(build_run(small_config(per_class=2), run))
