"""Finds the JSON object in what a language model wrote, and holds it to a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from segsmith.errors import BadReply
from segsmith.protocols import Reply

SHOWN = 200
"""Characters of a bad reply that an error quotes."""
STRING_OR_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])')


def parse_reply(text: str, schema: type[Reply]) -> Reply:
    """The reply in `text`: the whole text, or else the first JSON object in it that fits the schema.

    Chatter, code fences and trailing commas are mended, because they leave no doubt about what was meant.
    A half object is not completed by guessing: the missing half may be anything. Raises `BadReply`.
    """
    problem = "empty" if not text.strip() else "no JSON object"
    for candidate in candidates(text):
        try:
            return schema.model_validate(candidate)
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"{'.'.join(map(str, first['loc'])) or 'reply'}: {first['msg']}"
    raise BadReply(f"{problem} in {text[:SHOWN]!r}")


def candidates(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in `text`; then, where it differs, those in `text` without trailing commas."""
    yield from json_objects(text)
    mended = STRING_OR_TRAILING_COMMA.sub(r"\1", text[max(text.find("{"), 0) :])
    if len(mended) < len(text):
        yield from json_objects(mended)


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The balanced JSON objects in `text`, outermost only, from left to right."""
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            end = at + 1
        else:
            yield found
        at = text.find("{", end)
