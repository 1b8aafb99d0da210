"""A language-model server that hangs, dies or sends broken replies: one line, or the run continues; then it finishes."""

import pytest
from small_run import KEY, SMALL

from segsmith.errors import SegsmithError
from segsmith.memory.ledger import Ledger
from segsmith.testing import leftovers, small_config
from segsmith.workflows.build import build_run
from segsmith.workflows.run import Run
from tests.tools.llm.scripted_chat_server import ScriptedChatServer

STAMMER = ("half", None, "half", None, None, None, "garbage", None, "half", None)
"""30 % half JSON, and some garbage."""


@pytest.mark.slow
def test_a_server_that_hangs_dies_and_stammers(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    happening = {}
    server = ScriptedChatServer(lambda n: happening["script"](n), key=KEY)

    def build():
        llm = {"server": "openai", "model": "scripted", "base_url": server.url, "timeout_s": 2, "retries": 3}
        return list(build_run(small_config(**SMALL, llm=llm), tmp_path / "run"))

    for fault, words in (("hang", "longer than 2 s"), ("die", "same command")):
        happening["script"] = lambda n, fault=fault: fault if n > 1 else None
        with pytest.raises(SegsmithError, match=words) as caught:
            build()
        assert "\n" not in str(caught.value)
        assert KEY not in str(caught.value)
    happening["script"] = lambda n: STAMMER[n % 10]
    server.open()  # somebody starts it again, where it was
    build()
    server.close()
    tallies = Run(tmp_path / "run").tallies
    assert {name: tally.accepted for name, tally in tallies.items()} == {"cat": 3, "dog": 3}
    ledger = Ledger(tmp_path / "run" / "ledger.db")
    assert all(prompt.text.isprintable() and "{" not in prompt.text for prompt in ledger.prompts())
    ledger.close()
    assert {"hang", "die", "half", "garbage"} <= set(server.happened)
    assert leftovers(tmp_path / "run") == []
