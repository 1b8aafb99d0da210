"""The whole build with its language model behind a URL: a real llama.cpp process, and one that misbehaves."""

import pytest

from segsmith.config import Config, LLMConfig
from segsmith.errors import SegsmithError
from segsmith.events import Status
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_folder import RunFolder
from segsmith.prompts.vocabulary import load_vocabulary
from segsmith.tools.llm.llamacpp import llama_server
from segsmith.tools.llm.usage import CHARACTERS_PER_TOKEN
from segsmith.workflows.build import build_run
from tests.tools.llm.scripted_chat_server import ScriptedChatServer

KEY = "sk-a-key-nobody-may-find"
SMALL = {
    "classes": ("cat", "dog"),
    "per_class": 3,
    "trainer": {"epochs": 1},
    "evaluation": {"images": 0},
}


def config_for(url, **llm):
    settings = {
        "server": "openai",
        "model": "scripted",
        "base_url": url,
        "concurrency": 2,
        "timeout_s": 60,
        **llm,
    }
    return Config(**SMALL, llm=settings)


def build(config, folder):
    return list(build_run(config, folder))


def check_whole(folder, key):
    """A finished run of 2 x 3 images, nothing odd in its prompts, and no trace of the key."""
    run = RunFolder(folder)
    ledger = Ledger(run.ledger)
    try:
        assert {name: tally.accepted for name, tally in ledger.tallies().items()} == {"cat": 3, "dog": 3}
        words = load_vocabulary()
        for prompt in ledger.prompts():
            assert prompt.attributes["place"] in words.places
            assert prompt.attributes["light"] in words.lights
            assert "{" not in prompt.text
        usage = ledger.usage()["llm"]
    finally:
        ledger.close()
    assert (run.voc / "ImageSets").is_dir()
    assert run.report.exists()
    for path in folder.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path
    return usage


@pytest.mark.slow
def test_a_llama_cpp_process_behind_a_url_serves_a_whole_build(tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    try:
        server = llama_server(LLMConfig(concurrency=2), tmp_path / "server.log")
    except SegsmithError as error:
        pytest.skip(str(error))
    with server:
        where = server.endpoint()
        monkeypatch.setenv("OPENAI_API_KEY", where.api_key)
        events = build(config_for(where.base_url, model="smollm2-135m-instruct"), tmp_path / "run")
        assert events[-1].status is Status.FINISHED
        usage = check_whole(tmp_path / "run", where.api_key)
    assert usage.calls >= 4
    assert usage.tokens_in > 100
    assert usage.usd == 0


@pytest.mark.slow
def test_a_build_survives_a_server_that_damages_a_third_of_its_replies_and_dies_once(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    faults = ("half", None, "garbage", None, None, "half", None, None, "500", None)
    server = ScriptedChatServer(lambda n: "die" if n == 5 else faults[n % 10] if n > 1 else None, key=KEY)
    config = config_for(server.url, usd_per_million_in=1.0, usd_per_million_out=4.0)
    with pytest.raises(SegsmithError, match=server.url) as caught:
        build(config, tmp_path / "run")
    assert "same command" in caught.value.remedy
    assert "\n" not in str(caught.value)
    server.port = 0  # it comes back somewhere else
    server.open()
    config = config_for(server.url, usd_per_million_in=1.0, usd_per_million_out=4.0)
    assert build(config, tmp_path / "run")[-1].status is Status.FINISHED
    usage = check_whole(tmp_path / "run", KEY)
    answered = sum(fault in (None, "half") for fault in server.happened)
    # A reply that cannot be read states no usage; its prompt is paid for all the same, so it is estimated.
    prompts = ("".join(m["content"] for m in body["messages"]) for body in server.requests)
    estimated = sum(
        -(-len(prompt) // CHARACTERS_PER_TOKEN)
        for prompt, fault in zip(prompts, server.happened, strict=True)
        if fault == "garbage"
    )
    assert usage.tokens_in == 100 * answered + estimated
    assert usage.usd == pytest.approx((usage.tokens_in * 1.0 + answered * 20 * 4.0) / 1e6)
    assert build(config, tmp_path / "run")[-1].status is Status.ALREADY_FINISHED
    server.close()


@pytest.mark.slow
def test_no_more_is_asked_when_the_money_is_spent(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = ScriptedChatServer(key=KEY)
    config = config_for(server.url, usd_per_million_in=100.0)  # a cent a question
    config = config.model_copy(
        update={"budget": config.budget.model_copy(update={"max_usd": 0.02, "patience": 1})}
    )
    build(config, tmp_path / "run")
    # Two concurrent requests may pass the check together; none passes it later.
    assert 2 <= len(server.happened) <= 3
    server.close()


@pytest.mark.parametrize(
    ("server_has", "config_has", "words"),
    [
        ({"key": "another"}, {}, "OPENAI_API_KEY"),
        ({"models": ("big", "small")}, {}, "big, small"),
    ],
)
def test_a_wrong_key_and_an_unknown_model_are_said_before_anything_is_written(
    tmp_path, monkeypatch, server_has, config_has, words
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = ScriptedChatServer(**server_has)
    with pytest.raises(SegsmithError) as caught:
        build(config_for(server.url, **config_has), tmp_path / "run")
    server.close()
    said = str(caught.value)
    assert words in said
    assert KEY not in said
    assert said.isprintable()
    assert not (tmp_path / "run").exists()


def test_a_url_without_a_server_is_reported_before_anything_is_written(tmp_path):
    server = ScriptedChatServer()
    server.close()
    with pytest.raises(SegsmithError, match=server.url):
        build(config_for(server.url), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_key_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(SegsmithError, match="key"):
        build(config_for(None), tmp_path / "run")
    assert not (tmp_path / "run").exists()
