"""Reading a ledger in whatever state it is: what cannot be used is left out, counted and stated."""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from segsmith.errors import SegsmithError

DAMAGE = "are damaged and left out"

Row = TypeVar("Row")
Value = TypeVar("Value")


class Unreadable(Exception):
    """A table breaks off, so that what was made of its first rows has to be made again without it."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem
        super().__init__(problem)


class Reader:
    """Reads the parts of a ledger; `problems` says in one sentence each what could not be used."""

    def __init__(self) -> None:
        self._left_out: dict[str, str] = {}
        self._problems: list[str] = []
        self._seen: Counter[tuple[str, str]] = Counter()
        self._lost: Counter[tuple[str, str]] = Counter()

    @property
    def problems(self) -> list[str]:
        lost = [f"{n} of {self._seen[key]} {' '.join(key)}." for key, n in self._lost.items() if n]
        return [*self._left_out.values(), *self._problems, *lost]

    def complete(self, make: Callable[[], Value]) -> Value:
        """What `make` returns; it is called again for each table that turns out to be unreadable, without it."""
        while True:
            self._problems.clear()
            self._seen.clear()
            self._lost.clear()
            try:
                return make()
            except Unreadable as error:
                self._left_out[error.name] = error.problem

    def value(self, name: str, read: Callable[[], Value], default: Value) -> Value:
        """What `read` returns, or `default` where that part of the ledger is damaged."""
        try:
            return read()
        except ERRORS as error:
            self._problems.append(_sentence(name, error))
            return default

    def rows(
        self, name: str, read: Callable[[], Iterable[Row] | Mapping[str, Row]], usable: Callable[[Row], bool]
    ) -> list[Row]:
        """The usable rows of a short table."""

        def read_all() -> list[Row]:
            found = read()
            return list(found.values() if isinstance(found, Mapping) else found)

        nothing: list[Row] = []
        found = self.value(name, read_all, nothing)
        kept = [row for row in found if usable(row)]
        self.count(name, DAMAGE, len(found) - len(kept), len(found))
        return kept

    def each(
        self,
        name: str,
        read: Callable[[], Iterable[Row]],
        usable: Callable[[Row], bool],
        *,
        count: bool = True,
    ) -> Iterator[Row]:
        """The usable rows of a part of a table, one by one; none of a table that is left out as a whole.

        `count` is False where the same rows are counted elsewhere. Raises `Unreadable`.
        """
        if name in self._left_out:
            return
        key = name, DAMAGE
        try:
            for row in read():
                self._seen[key] += count
                if usable(row):
                    yield row
                else:
                    self._lost[key] += count
        except ERRORS as error:
            raise Unreadable(name, _sentence(name, error)) from None

    def state(self, problem: str) -> None:
        """Add a problem, a sentence."""
        self._problems.append(problem)

    def count(self, name: str, what: str, lost: int, total: int) -> None:
        """Add to the numbers of a problem, "`lost` of `total` `name` `what`."."""
        self._seen[name, what] += total
        self._lost[name, what] += lost


ERRORS = (
    SegsmithError, OSError, sqlite3.Error, ArithmeticError, AttributeError, LookupError, TypeError, ValueError,
    RecursionError,
)  # fmt: skip
"""What reading a damaged ledger raises."""


def _sentence(name: str, error: Exception) -> str:
    if isinstance(error, (SegsmithError, OSError)):  # their messages name paths, which are not for the page
        return f"The {name} cannot be read."
    if isinstance(error, RecursionError):
        return f"The {name} cannot be read (nested too deeply)."
    return f"The {name} cannot be read ({error})."


def finite(value: object) -> float | None:
    """The number, or None for anything that is not a finite number."""
    try:
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond the range of floats
        pass
    return None


def are_texts(*values: object) -> bool:
    """Whether all values are strings."""
    return all(isinstance(value, str) for value in values)
