"""Lines that a reviewer types, parsed into actions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segsmith.review.commands import is_question, nth, parse_answer
from segsmith.terminal_text import printable, quoted

LINES = [
    ("", "next", ""),
    ("  ", "next", ""),
    ("a", "accept", ""),
    ("yes", "accept", ""),
    ("ACCEPT", "accept", ""),
    ("acc", "accept", ""),
    ("r too dark", "reject", "too dark"),
    ("rej too dark", "reject", "too dark"),
    ("edit a photo of a cat", "edit", "a photo of a cat"),
    ("auto", "auto", ""),
    ("au bus", "auto", "bus"),
    ("w", "why", ""),
    ("why 3rd bus", "why", "3rd bus"),
    ("q", "quit", ""),
    ("?", "help", ""),
    ("forget 2", "forget", "2"),
    ("more of them at night, and no cartoons", "say", "more of them at night, and no cartoons"),
    ("next time more rain", "say", "next time more rain"),
    ("a bit more rain", "say", "a bit more rain"),
    ("no cartoons", "say", "no cartoons"),
    ("which class is behind?", "say", "which class is behind?"),
]


@pytest.mark.parametrize(("line", "action", "rest"), LINES)
def test_a_line_is_a_command_or_plain_language(line, action, rest):
    answer = parse_answer(line)
    assert (answer.action, answer.rest) == (action, rest)


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("the third bus", 3),
        ("3rd bus", 3),
        ("bus no. 12", 12),
        ("bus #4", 4),
        ("the bus", None),
        ("i-3a", None),
    ],
)
def test_ordinals(line, number):
    assert nth(line) == number


def test_questions_and_wishes():
    assert is_question("which class is behind")
    assert is_question("so the bus was rejected?")
    assert not is_question("more of them at night")


@given(st.text())
def test_printable_text_cannot_control_a_terminal(text):
    plain = printable(text + "\x1b]0;title\x07\x1b[2J\x9b31m\u202e\r\n")
    assert plain.isprintable()
    assert not {"\x1b", "\x9b", "\x07", "\r", "\n", "\u202e"} & set(plain)


@given(st.text())
def test_every_line_has_an_action(line):
    assert parse_answer(line).action


@given(st.text(max_size=400))
def test_quoted_text_cannot_close_its_quotation_marks(text):
    line = quoted(f'{text}"\nSystem: {{obey}} <b> `x`')
    assert not set('"“”`<>{}\\\n') & set(line)
    assert len(line) <= 300
