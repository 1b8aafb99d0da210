"""The conversation at a pause: one item after the other, a word or a sentence as the answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from segsmith.errors import SegsmithError
from segsmith.review.help_text import EFFECT, HELP, KEYS
from segsmith.review.ledger_qa import answer
from segsmith.terminal_text import shown

if TYPE_CHECKING:
    from segsmith.agents.prompt.preferences import Understood
    from segsmith.memory.ledger import DecisionKind
    from segsmith.review.facts import RunFacts
    from segsmith.review.reviewed_run import ReviewedRun

Moved = Literal["on", "back"]
Read = Callable[[str, str], str]
"""Asks for a line: (question, text to start from) -> what was typed. Raises EOFError at the end."""


class Quit(Exception):
    """The person wants to stop here."""


class Conversation:
    """Takes a person through the items of a pause. Every answer is in the ledger before the next is asked."""

    def __init__(self, deps: ReviewedRun, console: Console, read: Read) -> None:
        from segsmith.agents.prompt.rules import make_lexicon
        from segsmith.review import decisions as review
        from segsmith.tools.images.simulator import synonyms

        self._deps = deps
        self._console = console
        self._read = read
        self._review = review
        self._lexicon = make_lexicon(deps.config.classes, synonyms)
        self._kind: DecisionKind = "prompt"
        self._here = ""
        self.answered = 0

    def hold(self, kind: DecisionKind, subjects: Sequence[str]) -> None:
        """Go through `subjects`, class by class; returns when none of them waits any more. Raises `Quit`.

        What was looked at before comes first, for `back` and for the count.
        """
        ledger, of_class = self._deps.ledger, self._review.class_of(self._deps.ledger)
        waiting = sorted(subjects, key=lambda i: self._deps.config.classes.index(of_class[i]))
        before = [i for i in self._review.looked_at(ledger, kind) if i not in waiting]
        path, stops = [*before, *waiting], list(range(len(before)))
        self._kind = kind
        self._console.print()
        self._console.rule(f"[b]{len(waiting)} {kind}{'s' * (len(waiting) > 1)} to look at[/b]", align="left")
        self._say(KEYS.format(edit="" if kind == "verdict" else " · e edit"), "dim")
        at, again = len(before), False
        while at < len(path):
            if not again and path[at] not in self._review.pending(ledger, kind):
                at += 1
                continue
            self._here = path[at]
            self._show(at, len(path))
            again = self._ask(first=not stops) == "back"
            if again:
                at = stops.pop()
                self._review.unmark(ledger, kind, path[at])
            else:
                stops.append(at)
                at += 1

    # -- showing ----------------------------------------------------------------------------------

    def _facts(self) -> RunFacts:
        from segsmith.review.facts import RunFacts

        config = self._deps.config
        return RunFacts(self._deps.ledger, config.classes, config.wanted, config.images.size)

    def _show(self, at: int, total: int) -> None:
        from segsmith.review.cards import card

        name = self._review.class_of(self._deps.ledger)[self._here]
        heading = f"\n[b]{self._kind} {at + 1} of {total} · {shown(name)}[/b]  [dim]{self._here}[/dim]"
        self._console.print(heading)
        for part in card(self._deps, self._facts(), self._kind, self._here, self._console):
            self._console.print(part, soft_wrap=isinstance(part, str))  # a path is copied whole

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(shown(text), style=style)

    # -- asking -----------------------------------------------------------------------------------

    def _ask(self, *, first: bool) -> Moved:
        """Ask until an answer moves on, or back."""
        from segsmith.review.commands import parse_answer

        while True:
            try:
                answer = parse_answer(self._read("> ", ""))
                handler: Callable[[str], Moved | None] = getattr(self, f"_on_{answer.action}")
                self.answered += 1
                moved = handler(answer.rest)
            except (EOFError, KeyboardInterrupt):  # Ctrl-D, Ctrl-C
                self._console.print()
                raise Quit from None
            except SegsmithError as error:
                self._say(str(error), "yellow")
                continue
            if moved == "back" and first:
                self._say("this is the first one", "dim")
            elif moved:
                return moved

    def _decide(self, action: Any, value: dict[str, Any], note: str = "") -> Moved:
        from segsmith.memory.ledger import DecisionRow

        row = DecisionRow(self._kind, self._here, action, value, note, "terminal")
        self._review.record(self._deps, self._review.check_decision(self._deps, row))
        self._say(f"  yours: {EFFECT[self._kind, action]}", "cyan")
        return "on"

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
            text = self._deps.ledger.prompt(self._here).text
            return self._decide("edit", {"text": rest or self._read("new text: ", text)})
        if self._kind == "verdict":
            raise SegsmithError("A verdict has nothing to edit.", "Type accept or reject.")
        now = ", ".join(self._deps.ledger.labels("relabel")[self._here].classes)
        given = rest or self._read("labels: ", now)
        return self._decide("edit", {"labels": [n.strip() for n in given.split(",") if n.strip()]})

    def _on_next(self, rest: str) -> Moved:
        self._review.mark_seen(self._deps.ledger, self._kind, [self._here])
        return "on"

    def _on_back(self, rest: str) -> Moved:
        return "back"

    def _on_quit(self, rest: str) -> Moved:
        raise Quit

    def _on_auto(self, rest: str) -> Moved | None:
        from segsmith.agents.prompt.rules import named_classes

        rest = rest or self._read("auto for: class, kind or all? ", "")
        named = named_classes(rest, self._lexicon)
        word = rest.lower().split()[-1] if rest.split() else ""
        if named:
            what = f"class:{named[0]}"
        elif word == "class":
            what = f"class:{self._review.class_of(self._deps.ledger)[self._here]}"
        elif word.removesuffix("s") in ("kind", *self._review.KINDS):
            what = self._kind
        elif word in ("all", "everything"):
            what = "all"
        elif word in ("off", "none"):
            self._review.set_auto(self._deps.ledger, None)
            self._say("you are asked about everything again", "dim")
            return None
        else:
            self._say("type: auto class, auto kind, auto all, or auto off", "yellow")
            return None
        self._review.set_auto(self._deps.ledger, what)
        about = {"all": "anything", self._kind: f"{self._kind}s"}.get(what, what.removeprefix("class:"))
        self._say(f"  you are not asked about {about} any more; auto off takes that back", "cyan")
        return "on"

    def _on_why(self, rest: str) -> None:
        facts = self._facts()
        if rest:
            self._lines(answer(facts, f"why {rest}", self._lexicon, self._here))
            return
        from segsmith.review.cards import sections

        told = facts.prompt_life(self._here) if self._kind == "prompt" else facts.life(self._here)
        self._console.print(sections(told))

    def _on_status(self, rest: str) -> None:
        self._lines(self._facts().status())

    def _on_help(self, rest: str) -> None:
        from segsmith.review.cards import sections

        self._console.print(sections({keys: [told] for keys, told in HELP.items()}))

    def _on_guidance(self, rest: str) -> None:
        from segsmith.agents.prompt.preferences import wish_of
        from segsmith.prompts.vocabulary import load_vocabulary

        rows = self._deps.ledger.guidance()
        if not rows:
            self._say("no wishes yet; type one, such as: more of them at night, and no cartoons")
        for row in rows:
            self._say(
                f'{row.id}  {row.class_name or "all classes"}: {wish_of(row.wish, load_vocabulary())}   "{row.said}"'
            )

    def _on_forget(self, rest: str) -> None:
        number = self._guidance_id(rest)
        self._deps.ledger.set_guidance(number, active=False)
        self._say(f"wish {number} is withdrawn")

    def _on_say(self, line: str) -> None:
        from segsmith.review.commands import is_question

        if is_question(line):
            self._question(line)
        else:
            self._wish(line)

    # -- plain language ---------------------------------------------------------------------------

    def _question(self, line: str) -> None:
        facts = self._facts()
        if self._deps.config.llm.writes_sentences:
            from segsmith.review.llm_qa import inquire

            told = inquire(line, self._deps.chat, facts, self._here, self._deps.config.seed)
            if told.answer:
                self._say(told.answer, "b")
            self._lines(
                told.facts or answer(facts, line, self._lexicon, self._here),
                "dim" if told.answer else "",
            )
            return
        self._lines(answer(facts, line, self._lexicon, self._here))

    def _wish(self, said: str, number: int | None = None) -> None:
        """Take a wish up, or say wish `number` anew."""
        from segsmith.memory.ledger import GuidanceRow
        from segsmith.review.commands import printable

        ledger = self._deps.ledger
        if number is not None:
            self._guidance_id(str(number))
        present = self._review.class_of(ledger)[self._here]
        understood = self._understood(said, present)
        if not understood.wish:
            self._say(
                "I made nothing of that. Wish for places, lights, weathers, viewpoints, sizes or colours;"
            )
            self._say("ask with a question mark; accept with a reason by the whole word; or type help.")
            return
        class_name = understood.class_name
        if number is not None:  # said anew without a class, it stays with the class it was for
            old = next(row for row in ledger.guidance() if row.id == number)
            class_name = class_name or old.class_name
            ledger.set_guidance(number, active=False)
        ledger.add_guidance(GuidanceRow(class_name, printable(said), understood.wish.as_json()))
        row = ledger.guidance()[-1]
        self._say(f"wish {row.id}, for {class_name or 'all classes'}: {understood.wish}", "cyan")
        if understood.unused:
            self._say(f"not used: {', '.join(understood.unused)}", "dim")
        written = "those written already stay; " if self._kind == "prompt" else ""
        self._say(
            f"it counts from the next prompt on; {written}"
            f"forget {row.id} withdraws it, edit {row.id} ... says it anew",
            "dim",
        )

    def _understood(self, said: str, present: str) -> Understood:
        """The wish: by the language model where it is able, else by the vocabulary."""
        from segsmith.agents.prompt.preferences import ask_wish, understand
        from segsmith.prompts.vocabulary import load_vocabulary

        words, config = load_vocabulary(), self._deps.config
        if not config.llm.writes_sentences:
            return understand(said, self._lexicon, words, present)
        return ask_wish(said, self._deps.chat, self._lexicon, words, config.classes, present, config.seed)

    def _guidance_id(self, text: str) -> int:
        known = {row.id for row in self._deps.ledger.guidance()}
        if not text.strip().isdigit() or int(text) not in known:
            raise SegsmithError(f"There is no wish {text!r}.", "Type guidance to see them.")
        return int(text)

    def _lines(self, lines: Sequence[str], style: str = "") -> None:
        nothing = (
            f"The ledger has no answer to that; try status, why 3rd {self._deps.config.classes[0]}, or ?"
        )
        for line in lines or [nothing]:
            self._say(line, style)


def read_line(question: str, start: str) -> str:
    """A line from the terminal, with history and editing; `start` stands there already. Or from a pipe."""
    if not sys.stdin.isatty():
        return input(question)
    import readline

    readline.set_startup_hook(lambda: readline.insert_text(start))
    try:
        return input(question)
    finally:
        readline.set_startup_hook(None)
