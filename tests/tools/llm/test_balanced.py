"""Several servers behind one chat client."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import BaseModel

from segsmith.config import LLMConfig, load_config
from segsmith.errors import SegsmithError
from segsmith.tools.http import is_loopback
from segsmith.tools.llm import balanced, chat
from segsmith.tools.llm.balanced import BalancedServers
from segsmith.tools.llm.chat import check_llm, open_chat
from segsmith.tools.llm.endpoint import Endpoint
from tests.tools.llm.scripted_chat_server import ScriptedChatServer


class Place(BaseModel):
    place: str


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(balanced, "PROBE_S", 0.05)
    monkeypatch.setattr(chat, "CHECK_TRIES", 1)
    monkeypatch.setitem(chat.OpenAIChat.__init__.__kwdefaults__, "transport_retries", 0)
    servers = [ScriptedChatServer(), ScriptedChatServer()]
    yield servers
    for server in servers:
        server.close()


def settings(servers, **changes):
    urls = [server.url for server in servers]
    return LLMConfig(server="openai", model="scripted", base_url=urls, timeout_s=10, **changes)


def answers(config, seeds, told=None):
    with (
        open_chat(config, tell=(told if told is not None else []).append) as model,
        ThreadPoolExecutor(config.concurrency) as pool,
    ):
        return list(pool.map(lambda seed: model.ask("be brief", "where?", Place, seed=seed), seeds))


def test_requests_are_shared_and_replies_depend_on_the_seed_alone(two):
    both = answers(settings(two), range(12))
    counts = [len(server.requests) for server in two]
    assert min(counts) >= 4
    assert sum(counts) == 12
    assert both == answers(settings(two[:1]), range(12))


def test_a_busy_server_gets_fewer_requests():
    one, other = Endpoint("http://a/v1"), Endpoint("http://b/v1")
    servers = BalancedServers([one, other])
    assert {servers.endpoint(), servers.endpoint()} == {one, other}
    with servers.during(one), servers.during(one), servers.during(other):
        assert [servers.endpoint() for _ in range(3)] == [other] * 3


def test_a_dead_server_is_left_out_said_and_taken_back(two):
    told = []
    two[0].close()
    with open_chat(settings(two), tell=told.append) as model:
        for seed in range(4):
            model.ask("be brief", "where?", Place, seed=seed)
        assert len(two[1].requests) == 4
        assert told == [f"No language model answers at {two[0].url}; 1 of 2 servers are left."]
        two[0].open()
        deadline = time.monotonic() + 20
        while len(told) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert told[1:] == [f"The language model at {two[0].url} answers again."]
        model.ask("be brief", "where?", Place, seed=4)
        model.ask("be brief", "where?", Place, seed=5)
    assert len(two[0].requests) == 1


def test_without_any_server_the_run_ends_with_one_line(two):
    config = settings(two)
    check_llm(config)
    two[1].close()
    check_llm(config)  # the other one will do
    two[0].close()
    with pytest.raises(SegsmithError, match=r"No language model answers at http://127.0.0.1:\d+/v1\."):
        check_llm(config)
    with pytest.raises(SegsmithError, match="No language model answers at"):
        answers(config, [1])


def test_a_server_without_the_model_is_no_dead_server(two):
    other = ScriptedChatServer(models=("another",), faults=lambda n: "404")
    try:
        with pytest.raises(SegsmithError, match=f"{other.url} has no model 'scripted'"):
            check_llm(settings([two[0], other]))
    finally:
        other.close()


def test_urls_may_be_a_list_or_separated_by_commas():
    one, other = "http://a:8000/v1", "http://b:8000/v1"
    for given in ([one, other], f"{one}, {other}/", f"{one},{other},{one}"):
        config = load_config(flags={"classes": ("cat",), "llm": {"base_url": given}}).llm
        assert config.base_urls == (one, other)
        assert config.base_url == f"{one},{other}"
    assert LLMConfig().base_urls == ()
    for bad in (f"{one},ftp://b/v1", f"{one},http://user:key@b/v1", [one, 3], f"{one},,{other}"):
        with pytest.raises(SegsmithError, match=r"base_url") as caught:
            load_config(flags={"classes": ("cat",), "llm": {"base_url": bad}})
        assert "key@" not in str(caught.value)


def test_offline_needs_all_servers_on_this_machine():
    assert is_loopback("http://127.0.0.1:1/v1,http://localhost:2/v1")
    assert not is_loopback("http://127.0.0.1:1/v1,http://example.com/v1")
