"""The JSON object in a reply is found in its wrapping, and hostile replies take linear time."""

import time
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict

from segsmith.errors import BadReply
from segsmith.tools.llm.json_reply import json_objects, parse_reply, without_trailing_commas


class Cell(BaseModel):
    model_config = ConfigDict(extra="forbid")
    place: Literal["street", "park"]
    count: int


GOOD = '{"place": "park", "count": 2}'
BAD = {
    "empty": "",
    "blank": " \n",
    "half JSON": '{"place": "park", "cou',
    "wrong type": '{"place": "park", "count": "many"}',
    "not in the list": '{"place": "moon", "count": 2}',
    "missing field": '{"place": "park"}',
    "extra field": '{"place": "park", "count": 2, "why": "x"}',
    "a list": '["park", 2]',
    "null": "null",
    "prose": "I would choose the park.",
    "unclosed in chatter": 'Sure: {"place": "park", "count": 2',
    "huge number": '{"place": "park", "count": ' + "9" * 5000 + "}",
    "control characters in a name": '{"place": "park", "count": 2, "\\u001b[2J\\u202e": 1}',
}
WRAPPED = {
    "chatter": f"Sure! Here it is:\n{GOOD}\nHope that helps {{smile}}.",
    "code fence": f"```json\n{GOOD}\n```",
    "thinking first": f'<think>{{"place": "moon"}} no</think>{GOOD}',
    "brace in a string": "so {x} " + GOOD,
    "line breaks": '{\n  "place" :\n"park",\n\t"count": 2\n}',
    "trailing comma": '{"place": "park", "count": 2 , \n}',
    "trailing comma after a stray quotation mark": '{"}\n{"place": "park", "count": 2,}',
}
SLOW = {
    "unterminated strings": '{"' + '\\"' * 30_000 + '"' * 5000,
    "backslashes": '{"' + "\\" * 60_000,
    "commas and white space": "{" + ", " * 30_000 + "x",
    "commas, then white space": "{," + " " * 60_000 + "x",
    "nested objects": '{"a":' * 12_000,
    "nested lists": '{"a":' + "[" * 60_000,
    "closed nesting": '{"a":' * 5000 + "1" + "}" * 5000,
    "many objects": '{"a": 1} ' * 7000,
    "braces": "{" * 60_000,
    "one brace per string": '{"x ' * 15_000,
    "too long": "{" + " " * 3_000_000,
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_bad_replies_are_rejected_in_printable_words(text):
    with pytest.raises(BadReply) as caught:
        parse_reply(text, Cell)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("text", WRAPPED.values(), ids=WRAPPED.keys())
def test_the_object_is_found_in_its_wrapping(text):
    assert parse_reply(text, Cell) == Cell(place="park", count=2)


@pytest.mark.parametrize("text", SLOW.values(), ids=SLOW.keys())
def test_hostile_replies_are_rejected_at_once(text):
    started = time.monotonic()
    with pytest.raises(BadReply):
        parse_reply(text, Cell)
    assert time.monotonic() - started < 2


def test_objects_are_outermost():
    assert list(json_objects('x {"a": {"b": 1}} y {"c": "}{"}')) == [{"a": {"b": 1}}, {"c": "}{"}]


def test_commas_within_strings_are_kept():
    assert without_trailing_commas('{"a": ",}", "b": [1, 2,],}') == '{"a": ",}", "b": [1, 2]}'
    assert without_trailing_commas('{"a\\": ,}": 1}') == '{"a\\": ,}": 1}'
