"""Which parts of the OpenAI protocol a server supports, learnt from its error messages and remembered.

Servers differ in how they hold a reply to a schema. The hosted API rejects keywords that it does not enforce
(``maxLength``), older servers know JSON but no schemas, or not even that; reasoning models accept no temperature.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel

from segsmith.prompts import fill

Constraint = Literal["grammar", "schema", "lean_schema", "json", "prompt"]
CONSTRAINTS: tuple[Constraint, ...] = ("grammar", "schema", "lean_schema", "json", "prompt")
"""How the schema is conveyed, strictest first; with "prompt" it stands in the prompt alone.

"grammar" is llama.cpp's own parameter, with a grammar of llguidance. It can forbid the white space that the
protocol's schema allows and small models like to write: SmolLM2 writes 21 tokens for a prompt in place of 30.
"""
OPTIONAL = ("temperature", "seed")
"""Parameters that a request can do without."""
UNENFORCED = frozenset(
    {"minLength", "maxLength", "pattern", "minItems", "maxItems", "minimum", "maximum", "title"}
)
"""Keywords that a strict server may reject. Replies are validated against the full schema all the same."""


@dataclass(frozen=True)
class ResponseFormat:
    """One way to ask for a reply in a schema. The default is the protocol as documented."""

    constraint: Constraint = "schema"
    omitted: frozenset[str] = field(default_factory=frozenset)
    """Parameters that the server does not accept."""

    def simpler(self, objection: str) -> ResponseFormat | None:
        """What to try after an error: omit the parameter it names, or the next constraint; None after the last."""
        for name in OPTIONAL:
            if name in objection and name not in self.omitted:
                return replace(self, omitted=self.omitted | {name})
        following = CONSTRAINTS.index(self.constraint) + 1
        return replace(self, constraint=CONSTRAINTS[following]) if following < len(CONSTRAINTS) else None

    def with_schema_in_prompt(self) -> ResponseFormat:
        """For a server that accepts a schema and does not follow it: the prompt states it as well."""
        return replace(self, constraint="json")

    @property
    def enforces_schema(self) -> bool:
        """Does the server promise that every reply matches the schema?"""
        return self.constraint in ("grammar", "schema", "lean_schema")

    def parameters(self, schema: type[BaseModel], seed: int) -> dict[str, Any]:
        """Parameters of the request besides model, messages and limits."""
        parameters: dict[str, Any] = {} if "seed" in self.omitted else {"seed": seed}
        if self.constraint == "grammar":
            parameters["extra_body"] = {"grammar": compact_grammar(schema)}
        elif self.constraint == "json":
            parameters["response_format"] = {"type": "json_object"}
        elif self.enforces_schema:
            described = schema.model_json_schema()
            if self.constraint == "lean_schema":
                described = without_unenforced(described)
            wrapped = {"name": schema.__name__, "schema": described, "strict": True}
            parameters["response_format"] = {"type": "json_schema", "json_schema": wrapped}
        return parameters

    def system(self, text: str, schema: type[BaseModel]) -> str:
        """The system prompt, followed by the schema if the server does not enforce it."""
        return text if self.enforces_schema else f"{text}\n\n{fill('schema', schema=schema_text(schema))}"


def compact_grammar(schema: type[BaseModel]) -> str:
    """JSON in the schema without white space, for llguidance (its docs/json_schema.md)."""
    described = {**schema.model_json_schema(), "x-guidance": {"whitespace_flexible": False}}
    return f"%llguidance {{}}\nstart: %json {json.dumps(described, ensure_ascii=False)}"


def schema_text(schema: type[BaseModel]) -> str:
    """The schema as JSON text for a prompt."""
    return json.dumps(schema.model_json_schema(), ensure_ascii=False)


def without_unenforced(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` without the keywords in `UNENFORCED`; properties that have the name of a keyword are kept."""

    def clean(node: Any, *, of_names: bool = False) -> Any:
        if isinstance(node, Mapping):
            return {
                key: clean(value, of_names=key in ("properties", "$defs") and not of_names)
                for key, value in node.items()
                if of_names or key not in UNENFORCED
            }
        return [clean(item) for item in node] if isinstance(node, list) else node

    return dict(clean(schema))
