"""The stand-ins behave like what they stand in for."""

import random
from enum import StrEnum
from typing import Annotated, Literal

import numpy as np
import pytest
from pydantic import BaseModel, Field

from segsmith.errors import BadReply, SegsmithError
from segsmith.protocols import ImageBackend
from segsmith.testing import (
    InstantImages,
    ScriptedChat,
    example_reply,
    fingerprint,
    leftovers,
    made_up_run,
    small_config,
    small_run,
)
from segsmith.types import ImageRequest
from segsmith.workflows.build import build_run


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    share: Annotated[float, Field(ge=0.2, le=0.4)]


class Form(BaseModel):
    colour: Colour
    kind: Literal["only"]
    count: Annotated[int, Field(ge=3, le=5)]
    text: Annotated[str, Field(min_length=45, max_length=50)]
    parts: Annotated[list[Part], Field(min_length=2)]


def test_a_chat_without_replies_fills_any_form_and_repeats_itself():
    chat = ScriptedChat()
    replies = [chat.ask("s", "u", Form, seed=seed) for seed in range(20)]
    assert {reply.colour for reply in replies} == set(Colour)
    assert replies == [ScriptedChat().ask("s", "another", Form, seed=seed) for seed in range(20)]
    assert chat.asked == [("s", "u", Form)] * 20


def test_example_replies_differ_where_they_may():
    schema = Form.model_json_schema()
    assert example_reply(schema, random.Random(1)) != example_reply(schema, random.Random(2))


def test_a_chat_with_replies_gives_them_in_order_and_fails_where_told():
    told = []
    chat = ScriptedChat({"share": 0.3}, None, on_ask=lambda user, seed: told.append((user, seed)))
    assert chat.ask("s", "one", Part, seed=1) == Part(share=0.3)
    with pytest.raises(BadReply):
        chat.ask("s", "two", Part, seed=2)
    assert told == [("one", 1), ("two", 2)]


def test_instant_images_follow_from_the_request():
    backend = InstantImages(size=32)
    assert isinstance(backend, ImageBackend)
    requests = [ImageRequest("a cat", 1), ImageRequest("a cat", 2), ImageRequest("a dog", 1)]
    progress = []
    drawn = list(backend.draw(requests, on_step=progress.append))
    assert [d.index for d in drawn] == [0, 1, 2]
    assert all(d.image.shape == (32, 32, 3) and d.image.dtype == np.uint8 for d in drawn)
    assert len({d.image.tobytes() for d in drawn}) == 3
    (again,) = backend.draw(requests[2:])
    np.testing.assert_array_equal(again.image, drawn[2].image)
    assert progress == pytest.approx([1 / 3, 2 / 3, 1])
    assert len(backend.requests) == 4
    backend.close()
    assert backend.closed


def test_two_made_up_runs_of_one_seed_are_the_same(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        made_up_run(tmp_path / name, 6, size=64, seed=seed)[1].close()
    a, b, c = (fingerprint(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c
    assert leftovers(tmp_path / "a") == []
    (tmp_path / "a" / "masks" / "i-0.png").write_bytes(b"")
    assert leftovers(tmp_path / "a") == ["masks/i-0.png"]


def test_a_small_run_goes_from_end_to_end_without_a_model_of_its_own(tmp_path):
    run = small_run(tmp_path / "run")
    assert run.report.exists()
    assert len(run.images) == 8
    assert leftovers(run.path) == []


def test_the_models_behind_replaced_parts_are_not_asked_for(tmp_path):
    config = small_config(
        judge={"enabled": False}, evaluation={"images": 0}, llm={"gguf": str(tmp_path / "missing.gguf")}
    )
    with pytest.raises(SegsmithError, match=r"missing\.gguf"):
        next(build_run(config, tmp_path / "run"))
    parts = {"chat": ScriptedChat(), "backend": InstantImages(size=64)}
    events = build_run(config, tmp_path / "run", parts=parts)
    assert next(events).kind == "start"
    events.close()
