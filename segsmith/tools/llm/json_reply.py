"""Finds the JSON object in what a language model wrote, and validates it against a schema.

The text comes from a server that may be hostile, so the work is bounded: by the length of the text, by the
number of places where an object may begin, and by patterns that take linear time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from segsmith.errors import BadReply
from segsmith.protocols import Reply
from segsmith.terminal_text import printable

MAX_CHARACTERS = 1 << 17
"""A longer reply is rejected unread; the largest schema fits into a fraction of this."""
MAX_STARTS = 200
"""Opening braces at which decoding is tried."""
QUOTED = 200
"""Characters of a bad reply that an error quotes."""


def parse_reply(text: str, schema: type[Reply]) -> Reply:
    """The reply in `text`: the first JSON object in it that validates against `schema`.

    Text around the object, code fences and trailing commas are tolerated, because they leave no doubt about
    what was meant. An incomplete object is not completed: the missing part is unknown. Raises `BadReply`.
    """
    if len(text) > MAX_CHARACTERS:
        raise BadReply(f"longer than {MAX_CHARACTERS:,} characters in {text[:QUOTED]!r}")
    problem = "empty" if not text.strip() else "no JSON object"
    for candidate in candidates(text):
        try:
            return schema.model_validate(candidate)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            problem = f"{'.'.join(map(str, first['loc'])) or 'reply'}: {first['msg']}"[:QUOTED]
        except RecursionError:
            problem = "nested too deeply"
    raise BadReply(f"{printable(problem)} in {text[:QUOTED]!r}")


def candidates(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in `text`; then, if it has trailing commas, those in `text` without them."""
    yield from json_objects(text)
    repaired = without_trailing_commas(text[max(text.find("{"), 0) :])
    if len(repaired) < len(text):
        yield from json_objects(repaired)


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The outermost JSON objects in `text`, from left to right.

    Decoding is tried at no more than `MAX_STARTS` braces.
    """
    decoder = json.JSONDecoder()
    at = text.find("{")
    for _ in range(MAX_STARTS):
        if at < 0:
            return
        try:
            found, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield found
        at = text.find("{", end)


def without_trailing_commas(text: str) -> str:
    """`text` without commas directly before a closing bracket, outside of JSON strings; one pass."""
    kept: list[str] = []
    pending: int | None = None
    """Place in `kept` of a comma that only white space has followed so far."""
    in_string = escaped = False
    for c in text:
        if in_string:
            # A JSON string ends on its line, so a stray quotation mark does not hide the rest of the text.
            in_string = (escaped or c != '"') and c != "\n"
            escaped = c == "\\" and not escaped
        elif c == '"':
            in_string, pending = True, None
        elif c == ",":
            pending = len(kept)
        elif c in "}]":
            if pending is not None:
                kept[pending] = ""
            pending = None
        elif not c.isspace():
            pending = None
        kept.append(c)
    return "".join(kept)
