"""Costs do not depend on the honesty of a server: missing and impossible token counts are estimated."""

import math

import pytest

from segsmith.config import LLMConfig
from segsmith.tools.llm.usage import CHARACTERS_PER_TOKEN, Spent, Usage, tokens

TEXT = "x" * 300


@pytest.mark.parametrize(
    "stated", [None, -1, -(10**12), 0, 10**9, 10**30, True, "12", 1.5, math.nan, math.inf, [3], {}]
)
def test_a_missing_or_impossible_number_is_replaced_by_an_estimate(stated):
    assert tokens(stated, TEXT) == len(TEXT) // CHARACTERS_PER_TOKEN


def test_a_plausible_number_is_used():
    assert tokens(77, TEXT) == 77
    assert tokens(0, "") == 0
    assert tokens(None, "") == 0


def test_prices_are_per_million_tokens():
    spent = Spent()
    spent.add_tokens(LLMConfig(usd_per_million_in=2.0, usd_per_million_out=10.0), 500_000, 100_000)
    assert spent.usd == pytest.approx(2.0)


def test_a_question_without_requests_is_not_noted():
    noted = []
    usage = Usage(noted.append)
    usage.add(Spent())
    usage.add(Spent(calls=2, prompt_tokens=5))
    assert [spent.calls for spent in noted] == [2]
    assert usage.snapshot()["prompt_tokens"] == 5
