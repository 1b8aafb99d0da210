"""All texts that language models are given, as template files; see `fill`."""

from __future__ import annotations

from functools import cache
from importlib import resources
from string import Template


def fill(name: str, **values: str) -> str:
    """The template ``<name>.txt`` with each ``$key`` replaced, without the final line break.

    Raises `KeyError` for a key without a value, and `TypeError` for a value without a key.
    """
    template = _template(name)
    unused = set(values) - set(template.get_identifiers())
    if unused:
        raise TypeError(f"{name}.txt has no ${sorted(unused)[0]}")
    return template.substitute(values)


@cache
def _template(name: str) -> Template:
    text = (resources.files(__name__) / f"{name}.txt").read_text("utf-8")
    return Template(text.removesuffix("\n"))
