"""The graph pauses, a reviewer decides, and the decisions outrank what the agents decide later."""

import io
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from rich.console import Console

from segsmith.agents.judge.decision import decide
from segsmith.agents.prompt.draft import Draft
from segsmith.config import Config, JudgeConfig
from segsmith.errors import SegsmithError
from segsmith.files import png_bytes, write_atomic
from segsmith.graph.context import RunContext
from segsmith.graph.graph import build_graph
from segsmith.ids import make_id
from segsmith.memory.ledger import (
    DecisionRow,
    Evidence,
    GuidanceRow,
    LabelRow,
    MaskRow,
    PromptRow,
    VerdictRow,
)
from segsmith.memory.run_folder import RunFolder
from segsmith.review import decisions as review
from segsmith.review.decisions_file import read_answers
from segsmith.review.facts import RunFacts
from segsmith.review.session import Conversation, Quit
from segsmith.review.terminal_image import BELOW, BESIDE, COLUMNS, FEWEST, fitting
from segsmith.testing import InstantImages


class Prompts:
    def __init__(self, ledger):
        self.ledger, self.number = ledger, itertools.count()

    def returned(self, ids):
        return []

    def propose(self, name, wanted, round_, first=0, *, judged=0):
        return [
            Draft(make_id("p", name, f"{name} {n}"), name, f"{name} {n}")
            for n in itertools.islice(self.number, wanted)
        ]

    def critique(self, drafts):
        return drafts

    def refine(self, drafts):
        return drafts

    def admit(self, drafts):
        self.ledger.add_prompts(
            PromptRow(d.id, d.class_name, d.text, (d.class_name,), {}, d.parent_id, 0, "admitted", {})
            for d in drafts
        )
        return [d.id for d in drafts]

    def edited(self, prompt_id, text):
        if "bad" in text:
            raise SegsmithError("bad text")
        name = self.ledger.prompt(prompt_id).class_name
        return Draft(make_id("p", name, text), name, text, parent_id=prompt_id)

    def admit_edit(self, prompt_id, text):
        return self.admit([self.edited(prompt_id, text)])[0]


class Judge:
    """Accepts everything up to the quota, in the order of drawing, except for what a reviewer decided."""

    def __init__(self, ledger, quota):
        self.ledger, self.quota = ledger, quota

    def measure(self, rows, images):
        pass

    def judge(self):
        decided = {i: d.action == "accept" for i, d in self.ledger.decisions("verdict").items()}
        count = {"cat": 0, "dog": 0}
        for row in self.ledger.images():
            name = self.ledger.prompt(row.prompt_id).class_name
            good = decided.get(row.id, count[name] < self.quota)
            count[name] += good
            self.ledger.add_verdicts([VerdictRow(row.id, good, "ok" if good else "surplus", {"p:cat": 0.5})])

    def returned(self, ids):
        return {}


class Labeler:
    def __init__(self, ledger, run):
        self.ledger, self.run = ledger, run

    def relabel(self, elsewhere=None):
        decided = self.ledger.decisions("label")
        for row in self.ledger.accepted():
            own = (self.ledger.prompt(row.prompt_id).class_name,)
            labels = tuple(decided[row.id].value["labels"]) if row.id in decided else own
            self.ledger.add_labels([LabelRow(row.id, "clip", own), LabelRow(row.id, "relabel", labels)])
        return 0

    def segment(self, on_batch):
        labels, masks = self.ledger.labels("relabel"), self.ledger.masks()
        for row in self.ledger.accepted():
            if row.id not in masks or row.id in review.lagging_masks(self.ledger):
                write_atomic(self.run.new_mask(row.id), png_bytes(np.zeros((8, 8), np.uint8)))
                how = {"seed": 1, "labels": list(labels[row.id].classes)}
                self.ledger.add_masks([MaskRow(row.id, {"cat": 3, "dog": 0}, 0.1, how)])


class Finalizer:
    def export(self):
        pass

    def train(self, on_epoch):
        pass

    def evaluate(self):
        return {}


@pytest.fixture
def reviewed(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    made = RunContext(Config(classes=("cat", "dog"), per_class=2), run)
    ledger = made.ledger
    made.use(
        prompt_agent=Prompts(ledger),
        backend=InstantImages(size=8),
        judge_agent=Judge(ledger, 2),
        labeler_agent=Labeler(ledger, run),
        finalizer=Finalizer(),
    )
    yield made
    made.close()


class Walk:
    """Steps through a graph's pauses."""

    def __init__(self, reviewed, step=True):
        self.reviewed, self.graph = reviewed, build_graph(InMemorySaver())
        self.context = reviewed
        reviewed.step = step
        self.options = {"configurable": {"thread_id": "t"}, "recursion_limit": 500}

    def go(self, given=None):
        """The next pause's (kind, subjects), or None at the end."""
        said = self.graph.invoke(given or Command(resume=True), self.options, context=self.context)
        return (
            (said["__interrupt__"][0].value["kind"], said["__interrupt__"][0].value["subjects"])
            if said.get("__interrupt__")
            else None
        )


def decide_about(reviewed, kind, subject, action, **value):
    row = review.check_decision(reviewed, DecisionRow(kind, subject, action, value))
    review.record(reviewed, row)


def mark_seen(reviewed, kind, subjects):
    review.mark_seen(reviewed.ledger, kind, subjects)


def test_without_step_nothing_pauses(reviewed):
    assert Walk(reviewed, step=False).go({"round": 0}) is None
    assert reviewed.ledger.finished_at


def test_it_pauses_at_each_kind_and_decisions_are_applied(reviewed):
    walk, ledger = Walk(reviewed), reviewed.ledger
    kind, prompts = walk.go({"round": 0})
    assert kind == "prompt"
    decide_about(reviewed, "prompt", prompts[0], "reject")
    decide_about(reviewed, "prompt", prompts[1], "edit", text="another one")
    mark_seen(reviewed, "prompt", prompts)
    while (paused := walk.go())[0] == "prompt":  # others are written to replace the rejected one
        mark_seen(reviewed, *paused)
    kind, images = paused
    assert kind == "verdict"
    drawn = {row.prompt_id for row in ledger.images()}
    assert not {prompts[0], prompts[1]} & drawn
    assert make_id("p", ledger.prompt(prompts[1]).class_name, "another one") in drawn
    decide_about(reviewed, "verdict", images[0], "reject")
    mark_seen(reviewed, "verdict", images)
    seen = [images[0]]
    while (paused := walk.go())[0] != "label":
        seen += paused[1]
        mark_seen(reviewed, *paused)
    assert not ledger.verdicts()[images[0]].accepted
    assert {t.accepted for t in ledger.tallies().values()} == {2}
    images = paused[1]
    decide_about(reviewed, "label", images[0], "edit", labels=["cat", "dog"])
    mark_seen(reviewed, "label", images)
    kind, masks = walk.go()
    assert kind == "mask"
    decide_about(reviewed, "mask", masks[1], "reject")
    decide_about(reviewed, "mask", masks[0], "edit", labels=["dog"])
    mark_seen(reviewed, "mask", masks[1:])
    assert walk.go() == ("mask", [masks[0]])  # made again with its new labels, and shown again
    assert ledger.masks()[masks[0]].sources["labels"] == ["dog"]
    mark_seen(reviewed, "mask", masks)
    assert walk.go() is None
    reviewed.labeler_agent.relabel()
    assert ledger.labels("relabel")[masks[0]].classes == ("dog",)


def test_an_interrupted_pause_shows_the_same_items_again(reviewed):
    walk = Walk(reviewed)
    _, prompts = walk.go({"round": 0})
    mark_seen(reviewed, "prompt", prompts[:1])
    assert walk.go() == ("prompt", prompts[1:])


def test_auto_ends_the_questions(reviewed):
    walk = Walk(reviewed)
    walk.go({"round": 0})
    review.set_auto(reviewed.ledger, "class:cat")
    assert {reviewed.ledger.prompt(p).class_name for p in review.pending(reviewed.ledger, "prompt")} == {
        "dog"
    }
    review.set_auto(reviewed.ledger, "all")
    assert walk.go() is None


def test_a_changed_verdict_is_shown_again(reviewed):
    walk = Walk(reviewed)
    mark_seen(reviewed, *walk.go({"round": 0}))
    _, images = walk.go()
    surplus = next(i for i in images if not reviewed.ledger.verdicts()[i].accepted)
    mark_seen(reviewed, "verdict", images)
    name = reviewed.ledger.class_of(surplus)
    first = next(i for i in images if reviewed.ledger.class_of(i) == name)
    decide_about(reviewed, "verdict", first, "reject")
    assert walk.go() == ("verdict", [surplus])


def finish(reviewed):
    walk = Walk(reviewed, step=False)
    walk.go({"round": 0})
    return [row.id for row in reviewed.ledger.accepted()]


def test_a_finished_run_is_stale_where_a_decision_changes_it(reviewed):
    images = finish(reviewed)
    assert review.stale(reviewed.ledger) == ""
    decide_about(reviewed, "verdict", images[0], "accept")
    assert review.stale(reviewed.ledger) == ""
    decide_about(reviewed, "mask", images[0], "reject")
    assert review.stale(reviewed.ledger) == "mask"
    decide_about(reviewed, "label", images[1], "edit", labels=["dog", "cat"])
    assert review.stale(reviewed.ledger) == "label"
    decide_about(reviewed, "verdict", images[2], "reject")
    assert review.stale(reviewed.ledger) == "verdict"


def test_a_changed_run_resumes_where_it_changed(reviewed):
    walk = Walk(reviewed, step=False)
    walk.go({"round": 0})
    out = next(row.id for row in reviewed.ledger.accepted())
    decide_about(reviewed, "verdict", out, "reject")
    walk.graph.update_state(walk.options, {}, as_node=review.REENTER[review.stale(reviewed.ledger)])
    walk.graph.invoke(None, walk.options, context=walk.context)
    assert review.stale(reviewed.ledger) == ""
    assert out not in {row.id for row in reviewed.ledger.accepted()}
    assert {t.accepted for t in reviewed.ledger.tallies().values()} == {2}


# -- the judge -------------------------------------------------------------------------------------


def test_a_reviewer_outranks_the_judge_and_counts_first():
    def seen(n, cosine):
        return Evidence(f"i-{n}", f"p-{n}", "cat", ("cat",), (cosine, 0.1), 1.0, False, -1.0)

    evidence = [seen(0, 0.9), seen(1, 0.8), seen(2, -0.9)]
    decisions = {"i-2": True, "i-0": False}
    verdicts = decide(evidence, ("cat",), 10.0, JudgeConfig(), {"cat": 1}, decisions).verdicts
    assert [(v.accepted, v.reason) for v in verdicts] == [
        (False, "person"),
        (False, "surplus"),
        (True, "person"),
    ]
    assert [v.accepted for v in decide(evidence, ("cat",), 10.0, JudgeConfig(), {"cat": 1}).verdicts] == [
        True,
        False,
        False,
    ]


# -- decisions from a file -------------------------------------------------------------------------


def answers(reviewed, *lines):
    path = reviewed.run.root / "decisions.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return read_answers(reviewed, path)


def test_the_file_of_decisions_from_the_report_is_read(reviewed):
    one, two, *_ = finish(reviewed)
    rows = answers(
        reviewed,
        {"kind": "verdict", "subject": one, "action": "reject", "note": ""},
        "",
        {"kind": "verdict", "subject": two[:9], "action": "accept", "note": "good"},
        {"kind": "label", "subject": two, "action": "edit", "value": {"labels": ["dog", "cat"]}},
    )
    assert [(r.subject, r.action, r.source) for r in rows[:2]] == [
        (one, "reject", "file"),
        (two, "accept", "file"),
    ]
    assert rows[2].value == {"labels": ["cat", "dog"]}


BAD = [
    ("not json", "not JSON"),
    ("[1]", "not a JSON object"),
    ({"kind": "verdict", "subject": "i-nope", "action": "reject"}, "no image 'i-nope'"),
    ({"kind": "verdict", "subject": "i-", "action": "reject"}, "ids begin with"),
    ({"kind": "verdict", "subject": 3, "action": "reject"}, "text"),
    ({"kind": "picture", "subject": "i-1", "action": "reject"}, "unknown kind"),
    ({"kind": "verdict", "subject": "i-1", "action": "delete"}, "unknown action"),
    ({"kind": "verdict", "subject": "i-1", "action": "accept", "path": "/"}, "unknown key 'path'"),
    (
        {"kind": "label", "subject": "@", "action": "edit", "value": {"labels": ["frog"]}},
        "'frog' is not a class",
    ),
    ({"kind": "label", "subject": "@", "action": "edit"}, "list of at least one class"),
    ({"kind": "verdict", "subject": "@", "action": "edit"}, "not edited"),
    ({"kind": "prompt", "subject": "'; DROP TABLE prompts; --", "action": "reject"}, "no prompt"),
]


@pytest.mark.parametrize(("line", "words"), BAD, ids=[b[1] for b in BAD])
def test_a_bad_line_is_named_and_nothing_changes(reviewed, line, words):
    one, two, *_ = finish(reviewed)
    if isinstance(line, dict) and line["subject"] == "@":
        line["subject"] = two
    with pytest.raises(SegsmithError) as error:
        answers(reviewed, {"kind": "verdict", "subject": one, "action": "reject"}, line)
    assert words in str(error.value)
    assert "line 2" in str(error.value)
    assert "1 of 2" in str(error.value)
    assert not reviewed.ledger.decisions("verdict")


def test_a_missing_file_is_an_error(reviewed):
    with pytest.raises(SegsmithError, match="cannot be read"):
        read_answers(reviewed, reviewed.run.root / "none.jsonl")


# -- the conversation ------------------------------------------------------------------------------


def talk(reviewed, kind, *lines):
    """What the terminal shows; it ends with QUIT if the lines end before the items do."""
    shown, left = io.StringIO(), iter(lines)

    def read(question, start):
        line = next(left, None)
        if line is None:
            raise EOFError
        return line

    try:
        Conversation(reviewed, Console(file=shown, width=160), read).hold(
            kind, review.pending(reviewed.ledger, kind)
        )
    except Quit:
        shown.write("QUIT")
    return shown.getvalue()


def test_words_and_sentences(reviewed):
    Walk(reviewed).go({"round": 0})
    waiting = review.pending(reviewed.ledger, "prompt")
    of_class = reviewed.ledger.classes_of("prompt", waiting)
    one, two, three, four, *_ = sorted(waiting, key=of_class.get)
    text = talk(
        reviewed, "prompt", "a", "r too plain", "b", "n", "e bad text", "e a fine cat", "more of them at night, and no cartoons",
        "guidance", "edit 1 more rain", "forget 2", "forget 9", "which class is behind?", "blah blah", "b", "b", "b", "b",
    )  # fmt: skip
    assert text.endswith("QUIT")
    decided = reviewed.ledger.decisions("prompt")
    assert (decided[one].action, decided[two].action, decided[three].action) == ("accept", "reject", "edit")
    assert decided[two].note == "too plain"
    assert reviewed.ledger.guidance() == []
    assert [g.class_name for g in reviewed.ledger.guidance(active_only=False)] == [of_class[four]] * 2
    for words in (
        "bad text",
        "more of night (light)",
        "more of rain (weather)",
        "no wish '9'",
        "2 more needed",
        "this is the first item",
    ):
        assert words in text


def test_auto_and_quit(reviewed):
    Walk(reviewed).go({"round": 0})
    total = len(review.pending(reviewed.ledger, "prompt"))
    assert "QUIT" in talk(reviewed, "prompt", "n", "q")
    assert len(review.pending(reviewed.ledger, "prompt")) == total - 1
    for words in (["auto", "kind"], ["auto kind"], ["auto prompts"], ["auto everything"]):
        assert "QUIT" not in talk(reviewed, "prompt", *words)
        assert review.pending(reviewed.ledger, "prompt") == []
        review.set_auto(reviewed.ledger, None)
        assert review.pending(reviewed.ledger, "prompt")


def test_back_reaches_and_shows_the_decisions_of_an_earlier_session(reviewed):
    Walk(reviewed).go({"round": 0})
    talk(reviewed, "prompt", "n", "reject too plain", "q")
    text = talk(reviewed, "prompt", "b", "accept rather not", "q")
    assert "prompt 3 of" in text
    assert 'reject, "too plain"' in text
    assert [row.note for row in reviewed.ledger.decisions("prompt").values()] == ["rather not"]
    assert text.index("prompt 3 of") < text.index("prompt 2 of") < text.rindex("prompt 3 of")


def test_a_changed_verdict_says_what_it_was_before(reviewed):
    finish(reviewed)
    one = sorted(review.subjects(reviewed.ledger, "verdict"))[0]
    row = reviewed.ledger.verdicts()[one]
    review.mark_seen(reviewed.ledger, "verdict", [one])
    reviewed.ledger.add_verdicts([replace(row, accepted=not row.accepted)])
    was = "accepted" if row.accepted else "rejected"
    assert f"it was {was} when you last saw it" in talk(reviewed, "verdict", *["n"] * 99)


def test_what_is_said_about_one_image_reads_its_rows_alone(reviewed, monkeypatch):
    taken = finish(reviewed)[0]
    given = reviewed.ledger, reviewed.config.classes, dict.fromkeys(reviewed.config.classes, 2), 8
    whole = RunFacts(*given)
    for rows in (whole.prompts, whole.images, whole.verdicts, whole._masks, *whole.labels.values()):
        list(rows)  # reads all
    said = whole.life(taken)
    for name in (
        "prompts",
        "images",
        "verdicts",
        "each_verdict",
        "labels",
        "masks",
        "each_mask",
        "decisions",
    ):
        monkeypatch.setattr(type(reviewed.ledger), name, lambda *_: 1 / 0)
    assert RunFacts(*given).life(taken) == said
    assert review.pending(reviewed.ledger, "verdict", [taken]) == [taken]


def test_a_decision_counts_at_once_in_the_facts(reviewed):
    finish(reviewed)
    taken = next(i for i, row in reviewed.ledger.verdicts().items() if row.accepted)
    name = reviewed.ledger.class_of(taken)
    decide_about(reviewed, "verdict", taken, "reject")
    facts = RunFacts(reviewed.ledger, reviewed.config.classes, dict.fromkeys(reviewed.config.classes, 2), 8)
    assert facts.behind() == [f"{name}: 1 of 2 accepted, 1 more needed"]
    assert facts.verdict_line(taken) == "rejected, person: decided by a reviewer"


def test_ctrl_c_ends_a_conversation_like_quit(reviewed):
    Walk(reviewed).go({"round": 0})

    def interrupted(question, start):
        raise KeyboardInterrupt

    with pytest.raises(Quit):
        Conversation(reviewed, Console(file=io.StringIO()), interrupted).hold(
            "prompt", review.pending(reviewed.ledger, "prompt")
        )


@given(st.integers(8, 300), st.integers(8, 300), st.integers(20, 300), st.integers(5, 100))
def test_an_image_leaves_room_for_facts_and_question(height, width, columns, lines):
    wide = fitting(height, width, columns, lines)
    assert FEWEST <= wide <= COLUMNS
    assert wide == FEWEST or wide <= columns - BESIDE
    assert wide == FEWEST or wide * height / width / 2 <= lines - BELOW + 1


def test_verdicts_labels_and_masks_are_shown_with_their_grounds(reviewed):
    finish(reviewed)
    text = (
        talk(reviewed, "verdict", "auto kind")
        + talk(reviewed, "label", "auto kind")
        + talk(reviewed, "mask", "why", "auto all")
    )
    for words in (
        ".png",
        "accepted, ok",
        "ViT",
        "labels    cat",
        "outlines  the patch scores alone",
        "your decisions",
    ):
        assert words in text


def test_escapes_and_markup_in_a_prompt_are_shown_as_text(reviewed):
    reviewed.ledger.add_prompts(
        [
            PromptRow(
                "p-x",
                "cat",
                "\x1b]0;owned\x07[red]a cat[/red] [/]\x9b2J",
                ("cat",),
                {"place": "\x1b[2J"},
                None,
                0,
                "admitted",
                {},
            )
        ]
    )
    reviewed.ledger.add_guidance(GuidanceRow("", "[bold]\x1b[31m", {"words": ["x" * 99, "toy"]}))
    shown = talk(reviewed, "prompt", "g", "r [/] \x1b[2J", "q")
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "[red]a cat[/red] [/]" in shown
    assert "\x1b" not in reviewed.ledger.decisions("prompt")["p-x"].note
