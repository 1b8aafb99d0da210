"""Why something was rejected or left unfinished. Each reason is stored by its value and carries its wording once."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """A reason that is stored as its value and shown to users in its `wording`."""

    wording: str

    def __new__(cls, value: str, wording: str = "") -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.wording = wording
        return member

    @classmethod
    def wording_of(cls, stored: str) -> str:
        """The wording of a stored reason; "" for one that this version does not know."""
        return cls(stored).wording if stored in cls._value2member_map_ else ""


class VerdictReason(Reason):
    """Why the judge accepted or rejected an image, in the order in which it tests."""

    PERSON = "person", "decided by a reviewer"
    BLANK = "blank", "blank or broken image"
    DUPLICATE = "duplicate", "nearly identical to an earlier image"
    BLURRED = "blurred", "far less sharp than the other images"
    NOT_THERE = "not_there", "the requested class is below its threshold"
    UNLIKE_REAL = (
        "unlike_real",
        "the classifier trained on the real images does not find the requested class",
    )
    DENIED = "denied", "every witness denies the requested class"
    BEYOND_TOP_K = "beyond_top_k", "good, but its prompt has better images"
    SURPLUS = "surplus", "good, but its class has enough better images"
    OK = "ok", "passed every test"


class PromptProblem(Reason):
    """Why a prompt is refined or dropped."""

    RULE = "rule", "breaks a rule, such as its length or the classes it may name"
    OFF_TOPIC = "off_topic", "CLIP reads another class in it"
    FAMILIAR = "familiar", "too similar to a prompt in memory"
    IRRATIONAL = "irrational", "the LLM rated the scene as implausible"
    UNREVIEWED = "unreviewed", "the LLM returned no usable review"
    NOT_THERE = "not_there", "none of its images showed the class"
    BAD_REPLY = "bad_reply", "the LLM returned no usable rewrite"
    REPEATED = "repeated", "its rewrite had been written before"


class Shortfall(Reason):
    """Why drawing ended before every class had its quota."""

    STALLED = "stalled", "no image was accepted in several rounds"
    BUDGET_SPENT = "budget_spent", "the budget is spent"
    NOTHING_ACCEPTED = "nothing_accepted", "no image was accepted"


class UndrawnReason(Reason):
    """Why a requested image was not drawn."""

    FILTERED = "filtered", "a preview did not show the requested class"
    REFUSED = "refused", "the image API rejected the prompt"
    UNSAFE = "unsafe", "the image model's safety checker rejected the image"
