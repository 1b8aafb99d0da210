"""Questions are answered from the ledger: by keywords, or by a language model that uses tools."""

import pytest

from segsmith.agents.prompt.rules import make_lexicon
from segsmith.memory.ledger import DecisionRow, ImageRow, LabelRow, Ledger, MaskRow, PromptRow, VerdictRow
from segsmith.review.facts import RunFacts
from segsmith.review.ledger_qa import answer
from segsmith.review.llm_qa import inquire, ledger_tools
from segsmith.testing import ScriptedChat

LEXICON = make_lexicon(("cat", "bus"), lambda name: ())
SCORES = {"probability": 0.02, "threshold": 0.3, "p:cat": 0.9, "p:bus": 0.02}


@pytest.fixture
def ledger(tmp_path):
    book = Ledger(tmp_path / "ledger.db")
    critique = {"reason": "", "problem": "", "nearest": "a bus in fog", "nearest_cosine": 0.61}
    book.add_prompts(
        [
            PromptRow(
                "p-aa", "bus", "an old bus by a lake", ("bus",), {"place": "lake"}, None, 0, "refined", {}
            ),
            PromptRow(
                "p-bb", "bus", "a bus by a lake", ("bus",), {"place": "lake"}, "p-aa", 0, "admitted", critique
            ),
            PromptRow("p-cc", "cat", "a cat at home", ("cat",), {}, None, 0, "admitted", {}),
        ]
    )
    book.add_images(ImageRow(f"i-b{n}0", "p-bb", n, "sim", 0, "0" * 64) for n in range(4))
    book.add_images([ImageRow("i-c00", "p-cc", 1, "sim", 0, "0" * 64)])
    reasons = ["ok", "not_there", "ok", "duplicate"]
    book.add_verdicts(VerdictRow(f"i-b{n}0", r == "ok", r, SCORES) for n, r in enumerate(reasons))
    book.add_labels(
        [LabelRow("i-b00", "clip", ("bus",), {"bus": 0.9}), LabelRow("i-b00", "relabel", ("cat", "bus"))]
    )
    book.add_masks([MaskRow("i-b00", {"cat": 0, "bus": 1024}, 0.05, {"sam:ok": 2, "labels": ["bus"]})])
    book.add_decision(DecisionRow("verdict", "i-b00", "accept", {}, "nice one"))
    yield book
    book.close()


@pytest.fixture
def facts(ledger):
    return RunFacts(ledger, ("cat", "bus"), {"cat": 3, "bus": 3}, 128)


def answered(facts, question, present=""):
    return "\n".join(answer(facts, question, LEXICON, present))


def test_why_an_ordinal_was_rejected(facts):
    assert "i-b10 is bus number 2" in answered(facts, "why was the second bus rejected?")
    assert "below its threshold (probability 0.020, threshold 0.300)" in answered(facts, "why 2nd bus")
    assert "i-b20 is bus number 3" in answered(facts, "3rd bus")
    assert "was not rejected" in answered(facts, "why was the third bus rejected?")
    assert "i-b10" in answered(facts, "why was the first bus rejected?")
    assert "no image number 9" in answered(facts, "the 9th bus")


def test_which_class_is_behind(facts):
    assert answered(facts, "which class is behind?").splitlines() == [
        "cat: 0 of 3 accepted, 3 more needed",
        "bus: 2 of 3 accepted, 1 more needed",
    ]
    assert "4 images drawn, 2 of 3 accepted; rejected: not_there 1, duplicate 1" in answered(
        facts, "how is the bus"
    )


def test_an_unknown_question_is_not_answered(facts):
    assert answer(facts, "what is the meaning of life?", LEXICON) == []


def test_the_history_of_an_image(facts):
    life = facts.life("i-b00")
    text = "\n".join(line for lines in life.values() for line in lines)
    assert list(life)[:2] == ["prompt p-bb", "refined from p-aa"]
    for part in (
        "cosine 0.610",
        "seed 0",
        "accepted, ok",
        "cat 0.900",
        "ViT       cat, bus",
        "bus 6.2%",
        "nice one",
    ):
        assert part in text


def test_the_tools_have_typed_arguments_and_read_the_ledger(facts):
    tools = {tool.name: tool for tool in ledger_tools(facts)}
    assert "i-b10" in tools["image"].invoke({"class_name": "bus", "nth": 1, "standing": "rejected"})
    with pytest.raises(ValueError):
        tools["image"].invoke({"class_name": "dog", "nth": 1})
    assert "2 of 3" in tools["counts"].invoke({"class_name": "bus"})
    assert "more needed" in tools["behind"].invoke({})
    assert tools["lookup"].invoke({"id": "'; DROP TABLE images"}) == "no such id"


def ask(facts, *moves):
    chat = ScriptedChat(*moves)
    return inquire("why was the second bus rejected?", chat, facts, "", 0), chat


LOOK = {"tool": "image", "class_name": "bus", "nth": 2}


def test_a_model_looks_facts_up_and_then_answers(facts):
    told, chat = ask(facts, LOOK, {"tool": "answer", "answer": "CLIP gave the bus 0.020, under 0.300."})
    assert told.answer.startswith("CLIP gave")
    assert "i-b10 is bus number 2" in told.facts[0]
    assert "i-b10" not in chat.asked[0][1]
    assert "i-b10" in chat.asked[1][1]


def test_an_answer_that_no_tool_supports_is_dropped_and_the_facts_are_kept(facts):
    told, _ = ask(facts, LOOK, {"tool": "answer", "answer": "Because 17 images were better."})
    assert told.answer == ""
    assert told.facts


def test_there_is_no_answer_before_a_lookup(facts):
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        ask(facts, {"tool": "answer", "answer": "It was too dark."})


def test_a_model_that_never_answers_or_fails_leaves_the_facts(facts):
    told, _ = ask(facts, LOOK, None)
    assert (told.answer, bool(told.facts)) == ("", True)
    told, chat = ask(facts, *[LOOK] * 4, None)
    assert len(chat.asked) == 5
    assert told.answer == ""
