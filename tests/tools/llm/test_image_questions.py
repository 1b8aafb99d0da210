"""A vision-language model as a witness: what it is asked, and what becomes of bad replies."""

import base64
import io
import json
from contextlib import closing

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from segsmith.config import LLMConfig, load_config
from segsmith.graph.context import vlm_settings
from segsmith.protocols import Witness
from segsmith.testing import ScriptedChat
from segsmith.tools.llm.chat import MAX_IMAGE_PX, OpenAIChat
from segsmith.tools.llm.endpoint import Endpoint, RemoteServer
from segsmith.tools.llm.image_questions import MOST_CLASSES, VlmWitness, counts_schema
from segsmith.tools.llm.usage import TOKENS_PER_IMAGE
from tests.tools.llm.scripted_chat_server import ScriptedChatServer

CLASSES = ("cat", "potted plant")
IMAGES = [np.full((40, 60, 3), shade, np.uint8) for shade in (10, 200)]


def witness(chat, classes=CLASSES, max_tokens=256):
    return VlmWitness(chat, classes, seed=0, max_tokens=max_tokens)


def test_counts_become_testimony():
    chat = ScriptedChat({"cat": 2, "potted plant": 0}, {"cat": 0, "potted plant": 1})
    vlm = witness(chat)
    assert isinstance(vlm, Witness)
    first, second = vlm.testify(IMAGES, ["a", "b"])
    assert first.scores == {"cat": 1.0, "potted plant": 0.0}
    assert first.counts == {"cat": 2, "potted plant": 0}
    assert second.scores == {"cat": 0.0, "potted plant": 1.0}
    assert "cat, potted plant" in chat.asked[0][1]


def test_an_unusable_reply_is_no_testimony():
    replies = [None, {"cat": 1, "potted plant": 1}]
    assert [said is None for said in witness(ScriptedChat(*replies)).testify(IMAGES, ["a", "b"])] == [
        True,
        False,
    ]


def test_a_long_class_list_is_asked_about_in_parts():
    classes = [f"class {i}" for i in range(MOST_CLASSES + 1)]
    chat = ScriptedChat(dict.fromkeys(classes[:-1], 1), {classes[-1]: 3})
    (said,) = witness(chat, classes).testify(IMAGES[:1], ["a"])
    assert said.counts == {**dict.fromkeys(classes[:-1], 1), classes[-1]: 3}
    chat = ScriptedChat(*({name: 1} for name in CLASSES))
    witness(chat, max_tokens=16).testify(IMAGES[:1], ["a"])
    assert len(chat.asked) == 2, "a short reply has room for one class"


@pytest.mark.parametrize(
    "reply",
    [{}, {"cat": 1}, {"cat": -1, "potted plant": 0}, {"cat": "two", "potted plant": 0},
     {"cat": 1, "potted plant": 1, "dog": 1}, {"cat": 10**9, "potted plant": 0}, {"cat": None, "potted plant": 0}],
)  # fmt: skip
def test_the_schema_takes_one_count_for_each_class_and_nothing_else(reply):
    with pytest.raises(ValidationError):
        counts_schema(CLASSES).model_validate(reply)


def open_chat(server, **settings):
    config = LLMConfig(
        server="openai", model="scripted", base_url=server.url, retries=1, timeout_s=20,
        usd_per_million_in=1.0, **settings,
    )  # fmt: skip
    return OpenAIChat(config, RemoteServer(Endpoint(server.url, None)))


def test_a_server_gets_the_image_and_its_cost_is_counted():
    with closing(ScriptedChatServer()) as server:
        chat = open_chat(server)
        (said,) = witness(chat).testify([np.full((1200, 900, 3), 90, np.uint8)], ["a"])
        assert set(said.counts) == set(CLASSES)
        content = server.requests[0]["messages"][-1]["content"]
    text, image = content
    assert text["type"] == "text"
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) == MAX_IMAGE_PX
    assert chat.usage.snapshot()["usd"] > 0


@pytest.mark.parametrize("fault", ["garbage", "prose", "half", "cut_body", "500", "comma", "fenced"])
def test_hostile_replies_cost_at_most_the_testimony(fault):
    with closing(ScriptedChatServer(faults=lambda n: fault if n % 2 else None)) as server:
        first, second = witness(open_chat(server)).testify(IMAGES, ["a", "b"])
    assert set(first.counts) == set(CLASSES)
    assert second is None or set(second.counts) == set(CLASSES)


def test_a_server_that_states_no_tokens_is_not_free():
    from segsmith.tools.llm.usage import tokens

    assert tokens(None, "abc", images=2) == 1 + 2 * TOKENS_PER_IMAGE
    assert tokens(0, "", images=1) == TOKENS_PER_IMAGE
    assert tokens(700, "abc", images=1) == 700


def test_a_vlm_of_its_own_has_its_own_model_server_and_prices():
    config = load_config(
        preset="cpu",
        flags={
            "witnesses": {
                "vlm": "some-vl",
                "vlm_base_url": "http://127.0.0.1:9/v1",
                "vlm_usd_per_million_in": 2,
            }
        },
    )
    settings = vlm_settings(config)
    assert (settings.server, settings.model, settings.base_url) == (
        "openai",
        "some-vl",
        "http://127.0.0.1:9/v1",
    )
    assert (settings.usd_per_million_in, settings.usd_per_million_out, settings.temperature) == (2, 0, 0)
    assert json.loads(settings.model_dump_json())["concurrency"] == config.llm.concurrency
