"""The conversation at a pause: it shows one item after another, and takes a command or a sentence as the answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console

from segsmith.agents.prompt.preferences import Understood, ask_wish, understand, wish_of
from segsmith.agents.prompt.rules import make_lexicon, named_classes
from segsmith.errors import SegsmithError
from segsmith.memory.ledger import DecisionKind, DecisionRow, GuidanceRow
from segsmith.prompts.vocabulary import load_vocabulary
from segsmith.review import decisions
from segsmith.review.cards import card, sections
from segsmith.review.commands import is_question, parse_answer
from segsmith.review.facts import RunFacts
from segsmith.review.ledger_qa import answer
from segsmith.review.reviewed_run import ReviewedRun
from segsmith.terminal_text import printable, shown
from segsmith.tools.images.simulator import synonyms

Moved = Literal["next", "back"]
Read = Callable[[str, str], str]
"""Reads a line: (question, text to start from) -> what was typed. Raises EOFError at the end of the input."""

KEYS = "a accept · r reject{edit} · Enter next · b back · w why · q quit · ? help"
"""The line below the heading of a pause."""
HELP = {
    "accept, a": "keep it, whatever the agents decide later; with a reason: accept good light",
    "reject, r": "reject it, whatever the agents decide later; with a reason: reject half a cat",
    "edit, e": "change it; for a prompt type its new text, for labels and masks the classes: edit cat, bus",
    "next, n, Enter": "leave this one to the agents",
    "back, b": "return to the previous item, also to those of an earlier session",
    "auto, au": "ask no more about a class (auto class, auto bus), a kind (auto kind) or anything (auto all);"
    " to undo this: auto off",
    "why, w": "show everything known about this item; about another one: why 3rd bus, why i-12ab",
    "status, s": "show how far each class is",
    "guidance, g": "list your wishes; forget 2 withdraws one, edit 2 ... rewords it",
    "quit, q, Ctrl-C": "stop; you can resume at this item later",
    "a sentence": "a wish for the prompts still to be written: more of them at night, and no cartoons",
    "a question": "a question about the run: why was the third one rejected? which class is behind?",
}
"""Command -> what it does."""
EFFECT: Mapping[tuple[DecisionKind, str], str] = {
    ("prompt", "accept"): "images will be drawn from it, whatever the critique says",
    ("prompt", "reject"): "no image will be drawn from it",
    ("prompt", "edit"): "images will be drawn from the new text instead",
    ("verdict", "accept"): "it is accepted, whatever the judge says",
    ("verdict", "reject"): "it is rejected; another image replaces it if its class needs one",
    ("label", "accept"): "its labels stay as they are",
    ("label", "reject"): "its labels are CLIP's again",
    ("label", "edit"): "its labels are the ones you typed",
    ("mask", "accept"): "it stays in the dataset",
    ("mask", "reject"): "it is left out of the dataset",
    ("mask", "edit"): "its mask will be made again with these labels and shown again",
}
"""(kind, action) -> what a decision does."""


class Quit(Exception):
    """The reviewer wants to stop here."""


class Conversation:
    """Takes a reviewer through the items of a pause. Each answer is in the ledger before the next item is shown."""

    def __init__(self, reviewed: ReviewedRun, console: Console, read: Read) -> None:
        self._reviewed = reviewed
        self._console = console
        self._read = read
        self._lexicon = make_lexicon(reviewed.config.classes, synonyms)
        self._kind: DecisionKind = "prompt"
        self._here = ""
        """Id of the item on the screen."""

    def hold(self, kind: DecisionKind, subjects: Sequence[str]) -> None:
        """Go through `subjects`, class by class, until none of them is left to review. Raises `Quit`.

        Items that were reviewed before come first, for `back` and for the count.
        """
        ledger = self._reviewed.ledger
        of_class = ledger.classes_of(kind, subjects)
        waiting = sorted(subjects, key=lambda i: self._reviewed.config.classes.index(of_class[i]))
        before = [i for i in decisions.looked_at(ledger, kind) if i not in of_class]
        path, stops = [*before, *waiting], list(range(len(before)))
        self._kind = kind
        self._console.print()
        self._console.rule(f"[b]{len(waiting)} {kind}{'s' * (len(waiting) > 1)} to review[/b]", align="left")
        self._say(KEYS.format(edit="" if kind == "verdict" else " · e edit"), "dim")
        at, again = len(before), False
        while at < len(path):
            if not again and not decisions.pending(ledger, kind, [path[at]]):
                at += 1
                continue
            self._here = path[at]
            self._show(at, len(path))
            again = self._ask(first=not stops) == "back"
            if again:
                at = stops.pop()
                ledger.unmark(kind, path[at])
            else:
                stops.append(at)
                at += 1

    # -- showing ----------------------------------------------------------------------------------

    def _facts(self) -> RunFacts:
        config = self._reviewed.config
        return RunFacts(self._reviewed.ledger, config.classes, config.wanted, config.images.size)

    def _show(self, at: int, total: int) -> None:
        name = self._reviewed.ledger.class_of(self._here)
        heading = f"\n[b]{self._kind} {at + 1} of {total} · {shown(name)}[/b]  [dim]{self._here}[/dim]"
        self._console.print(heading)
        for part in card(self._reviewed, self._facts(), self._kind, self._here, self._console):
            self._console.print(part, soft_wrap=isinstance(part, str))  # an unbroken path can be copied

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(shown(text), style=style)

    def _lines(self, lines: Sequence[str], style: str = "") -> None:
        """Print the lines of an answer; without any, say what can be asked."""
        unknown = (
            "I can't answer that from the ledger. Try: status, "
            f"why 3rd {self._reviewed.config.classes[0]}, or ? for help."
        )
        for line in lines or [unknown]:
            self._say(line, style)

    # -- asking -----------------------------------------------------------------------------------

    def _ask(self, *, first: bool) -> Moved:
        """Ask until an answer moves to the next or the previous item."""
        while True:
            try:
                typed = parse_answer(self._read("> ", ""))
                handler: Callable[[str], Moved | None] = getattr(self, f"_on_{typed.action}")
                moved = handler(typed.rest)
            except (EOFError, KeyboardInterrupt):  # Ctrl-D, Ctrl-C
                self._console.print()
                raise Quit from None
            except SegsmithError as error:
                self._say(str(error), "yellow")
                continue
            if moved == "back" and first:
                self._say("this is the first item", "dim")
            elif moved:
                return moved

    def _decide(self, action: Any, value: dict[str, Any], note: str = "") -> Moved:
        row = DecisionRow(self._kind, self._here, action, value, note, "terminal")
        decisions.record(self._reviewed, decisions.check_decision(self._reviewed, row))
        self._say(f"  recorded: {EFFECT[self._kind, action]}", "cyan")
        return "next"

    def _on_accept(self, rest: str) -> Moved:
        return self._decide("accept", {}, rest)

    def _on_reject(self, rest: str) -> Moved:
        return self._decide("reject", {}, rest)

    def _on_edit(self, rest: str) -> Moved | None:
        number, _, words = rest.partition(" ")
        if number.isdigit():
            self._wish(words, int(number))
            return None
        if self._kind == "prompt":
            text = self._reviewed.ledger.prompt(self._here).text
            return self._decide("edit", {"text": rest or self._read("new text: ", text)})
        if self._kind == "verdict":
            raise SegsmithError("A verdict cannot be edited.", "Type accept or reject.")
        current = ", ".join(self._reviewed.ledger.labels_of("relabel", [self._here])[self._here].classes)
        given = rest or self._read("labels: ", current)
        return self._decide("edit", {"labels": [n.strip() for n in given.split(",") if n.strip()]})

    def _on_next(self, rest: str) -> Moved:
        decisions.mark_seen(self._reviewed.ledger, self._kind, [self._here])
        return "next"

    def _on_back(self, rest: str) -> Moved:
        return "back"

    def _on_quit(self, rest: str) -> Moved:
        raise Quit

    def _on_auto(self, rest: str) -> Moved | None:
        rest = rest or self._read("auto for what? class, kind or all: ", "")
        named = named_classes(rest, self._lexicon)
        word = rest.lower().split()[-1] if rest.split() else ""
        if named:
            what = f"class:{named[0]}"
        elif word == "class":
            what = f"class:{self._reviewed.ledger.class_of(self._here)}"
        elif word.removesuffix("s") in ("kind", *decisions.KINDS):
            what = self._kind
        elif word in ("all", "everything"):
            what = "all"
        elif word in ("off", "none"):
            decisions.set_auto(self._reviewed.ledger, None)
            self._say("you will be asked about everything again", "dim")
            return None
        else:
            self._say("type: auto class, auto kind, auto all, or auto off", "yellow")
            return None
        decisions.set_auto(self._reviewed.ledger, what)
        about = {"all": "anything", self._kind: f"{self._kind}s"}.get(what, what.removeprefix("class:"))
        self._say(f"  you will not be asked about {about} any more; to undo this, type auto off", "cyan")
        return "next"

    def _on_why(self, rest: str) -> None:
        facts = self._facts()
        if rest:
            self._lines(answer(facts, f"why {rest}", self._lexicon, self._here))
            return
        history = facts.prompt_life(self._here) if self._kind == "prompt" else facts.life(self._here)
        self._console.print(sections(history))

    def _on_status(self, rest: str) -> None:
        self._lines(self._facts().status())

    def _on_help(self, rest: str) -> None:
        self._console.print(sections({command: [effect] for command, effect in HELP.items()}))

    def _on_guidance(self, rest: str) -> None:
        rows = self._reviewed.ledger.guidance()
        if not rows:
            self._say("You have no wishes yet. Type one, for example: more of them at night, and no cartoons")
        for row in rows:
            wish = wish_of(row.wish, load_vocabulary())
            self._say(f'{row.id}  {row.class_name or "all classes"}: {wish}   "{row.said}"')

    def _on_forget(self, rest: str) -> None:
        number = self._guidance_id(rest)
        self._reviewed.ledger.set_guidance(number, active=False)
        self._say(f"wish {number} withdrawn")

    def _on_misspelt(self, command: str) -> None:
        self._say(f"did you mean {command}?", "yellow")

    def _on_say(self, line: str) -> None:
        if is_question(line):
            self._question(line)
        else:
            self._wish(line)

    # -- plain language ---------------------------------------------------------------------------

    def _question(self, line: str) -> None:
        facts = self._facts()
        if not self._reviewed.config.llm.writes_sentences:
            self._lines(answer(facts, line, self._lexicon, self._here))
            return
        from segsmith.review.llm_qa import inquire  # loads langchain_core

        told = inquire(line, self._reviewed.chat, facts, self._here, self._reviewed.config.seed)
        if told.answer:
            self._say(told.answer, "b")
        self._lines(
            told.facts or answer(facts, line, self._lexicon, self._here), "dim" if told.answer else ""
        )

    def _wish(self, said: str, number: int | None = None) -> None:
        """Store a wish, or reword wish `number`."""
        ledger = self._reviewed.ledger
        if number is not None:
            self._guidance_id(str(number))
        present = ledger.class_of(self._here)
        understood = self._understood(said, present)
        if not understood.wish:
            self._say(
                "I didn't understand that. A wish can name places, light, weather, viewpoints, sizes and colours."
            )
            self._say("A question ends with a question mark. To accept with a reason, type accept in full.")
            self._say("Type ? for help.")
            return
        class_name = understood.class_name
        if number is not None:  # a rewording that names no class keeps the class of the old wish
            old = next(row for row in ledger.guidance() if row.id == number)
            class_name = class_name or old.class_name
            ledger.set_guidance(number, active=False)
        ledger.add_guidance(GuidanceRow(class_name, printable(said), understood.wish.as_json()))
        row = ledger.guidance()[-1]
        self._say(f"wish {row.id}, for {class_name or 'all classes'}: {understood.wish}", "cyan")
        if understood.unused:
            self._say(f"not used: {', '.join(understood.unused)}", "dim")
        kept = "; those already written are kept" if self._kind == "prompt" else ""
        self._say(f"It applies to prompts written from now on{kept}.", "dim")
        self._say(f"To withdraw it, type forget {row.id}; to reword it, edit {row.id} ...", "dim")

    def _understood(self, said: str, present: str) -> Understood:
        """The wish, as the language model reads it if it writes sentences, otherwise by the vocabulary alone."""
        words, config = load_vocabulary(), self._reviewed.config
        if not config.llm.writes_sentences:
            return understand(said, self._lexicon, words, present)
        return ask_wish(said, self._reviewed.chat, self._lexicon, words, config.classes, present, config.seed)

    def _guidance_id(self, text: str) -> int:
        known = {row.id for row in self._reviewed.ledger.guidance()}
        if not text.strip().isdigit() or int(text) not in known:
            raise SegsmithError(f"There is no wish {text!r}.", "Type guidance to list your wishes.")
        return int(text)


def read_line(question: str, start: str) -> str:
    """A line from the terminal, with history and editing, or from a pipe. The line starts out as `start`."""
    if not sys.stdin.isatty():
        return input(question)
    import readline

    readline.set_startup_hook(lambda: readline.insert_text(start))
    try:
        return input(question)
    finally:
        readline.set_startup_hook(None)
