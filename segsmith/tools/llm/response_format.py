"""What a server takes of the OpenAI protocol, learnt from its objections and remembered.

Servers differ in how a reply is held to a schema. The hosted API refuses keywords it does not enforce
(``maxLength``), older servers know no schema but JSON, or not even that; reasoning models take no temperature.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel

from segsmith.prompts import fill

Form = Literal["schema", "lean_schema", "json", "words"]
FORMS: tuple[Form, ...] = ("schema", "lean_schema", "json", "words")
"""How the schema is conveyed, strictest first; "words" asks in the prompt alone."""
DISPENSABLE = ("temperature", "seed")
"""Parameters a question can do without."""
UNENFORCED = frozenset(
    {"minLength", "maxLength", "pattern", "minItems", "maxItems", "minimum", "maximum", "title"}
)
"""Keywords that a strict server may refuse. Replies are checked against the full schema all the same."""


@dataclass(frozen=True)
class Dialect:
    """One way to put a question. The first one is the protocol as it is written."""

    form: Form = "schema"
    left_out: frozenset[str] = field(default_factory=frozenset)

    def simpler(self, objection: str) -> Dialect | None:
        """What to try after an objection: without the parameter it names, or the next form; None at the end."""
        for name in DISPENSABLE:
            if name in objection and name not in self.left_out:
                return replace(self, left_out=self.left_out | {name})
        following = FORMS.index(self.form) + 1
        return replace(self, form=FORMS[following]) if following < len(FORMS) else None

    def told(self) -> Dialect:
        """The dialect for a server that takes a schema and does not follow it: the prompt says it in words."""
        return replace(self, form="json")

    @property
    def holds_to_schema(self) -> bool:
        """Does the server promise that every reply fits?"""
        return self.form in ("schema", "lean_schema")

    def parameters(self, schema: type[BaseModel], seed: int) -> dict[str, Any]:
        """The request's own parameters, beside model, messages and limits."""
        parameters: dict[str, Any] = {} if "seed" in self.left_out else {"seed": seed}
        if self.form == "json":
            parameters["response_format"] = {"type": "json_object"}
        elif self.holds_to_schema:
            described = schema.model_json_schema()
            if self.form == "lean_schema":
                described = without_unenforced(described)
            wrapped = {"name": schema.__name__, "schema": described, "strict": True}
            parameters["response_format"] = {"type": "json_schema", "json_schema": wrapped}
        return parameters

    def system(self, text: str, schema: type[BaseModel]) -> str:
        """The system prompt, with the schema in words where the server is not held to it."""
        return text if self.holds_to_schema else f"{text}\n\n{fill('schema', schema=schema_text(schema))}"


def schema_text(schema: type[BaseModel]) -> str:
    """The schema as a model may read it."""
    return json.dumps(schema.model_json_schema(), ensure_ascii=False)


def without_unenforced(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` without the keywords in `UNENFORCED`; properties that happen to bear such a name stay."""

    def clean(node: Any, *, of_names: bool = False) -> Any:
        if isinstance(node, Mapping):
            return {
                key: clean(value, of_names=key in ("properties", "$defs") and not of_names)
                for key, value in node.items()
                if of_names or key not in UNENFORCED
            }
        return [clean(item) for item in node] if isinstance(node, list) else node

    return dict(clean(schema))
