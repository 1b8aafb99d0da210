"""The prompt agent: writes prompts, criticises and refines them, and remembers the good ones.

The loop is that of SynthSeg-Agents (T(c), self-refinement, diversity test against memory), with IAA's rationality
score if the LLM can give one. The graph calls the steps, and each step may run twice.
"""

from __future__ import annotations

import logging
import random
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from segsmith.agents.prompt.critic import (
    Check,
    check_novelty,
    check_relevance,
    check_rules,
    check_wishes,
    review,
    run_checks,
)
from segsmith.agents.prompt.draft import JOIN, Draft, Problem, from_row, to_row
from segsmith.agents.prompt.label_sets import LabelSets
from segsmith.agents.prompt.preferences import Wish, leaning, understand
from segsmith.agents.prompt.rules import broken_rule, make_lexicon, named_classes, spoken_name
from segsmith.agents.prompt.space import Offer, Planner, with_article
from segsmith.agents.prompt.writer import PromptWriter
from segsmith.config import PromptsConfig
from segsmith.errors import BadReply, Cancelled, SegsmithError
from segsmith.ids import make_id, seed_of
from segsmith.memory.ledger import Ledger, PromptRow, PromptStatus
from segsmith.memory.prompt_memory import ATTRIBUTES, Cell, PromptMemory, Remembered, Seen, cells
from segsmith.prompts import fill
from segsmith.prompts.vocabulary import load_vocabulary
from segsmith.protocols import ChatModel, ImageTextEncoder
from segsmith.reasons import PromptProblem

logger = logging.getLogger(__name__)

AVOIDED = 2
"""Number of remembered prompts that a refinement must differ from."""
SHARED_PLACES = 2
"""Number of places that two classes must share to be shown in one image."""
PAGE = 256
"""Prompts put back into a memory at a time."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class PromptAgent:
    """Safe to share between threads; classes are written side by side.

    `synonyms` gives other words for a class. If the LLM `writes_sentences`, it writes the prompts and reviews them;
    otherwise it chooses cells of the attribute space, and a template makes the sentences. `workers` is the number of
    concurrent requests per class. `label_sets` are those of a real dataset, to build prompts from (IAA).
    """

    def __init__(
        self,
        chat: ChatModel,
        encoder: ImageTextEncoder,
        memory: PromptMemory,
        ledger: Ledger,
        config: PromptsConfig,
        classes: tuple[str, ...],
        synonyms: Callable[[str], tuple[str, ...]],
        writes_sentences: bool,
        seed: int,
        workers: int = 4,
        label_sets: LabelSets | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """`stopped` returns True once the user has asked the run to stop."""
        self._chat = chat
        self._encoder = encoder
        self._memory = memory
        self._ledger = ledger
        self._config = config
        self._classes = classes
        self._writes_sentences = writes_sentences
        self._seed = seed
        self._workers = workers
        self._label_sets = label_sets
        self._stopped = stopped
        self._words = load_vocabulary()
        self._lexicon = make_lexicon(classes, synonyms)
        self._spoken = {name: spoken_name(name, synonyms(name)) for name in classes}
        self._listed = {name: self._words.suited((name, *synonyms(name))) for name in classes}
        self._writer = PromptWriter(
            chat,
            self._words,
            self._spoken,
            self._lexicon,
            self._listed,
            writes_sentences=writes_sentences,
            seed=seed,
        )
        self._run_id = _run_id(ledger)
        self._plans: dict[str, tuple[int, int, Wish, Planner]] = {}
        """Class -> round, offers made in it, wish, and the planner that makes the next one."""
        self._visited: dict[str, tuple[int, Counter[Cell]]] = {}
        """Class -> a round, and the visits of each cell by other runs and by this run before that round."""

    # -- steps of the graph -----------------------------------------------------------------------

    def propose(
        self, class_name: str, wanted: int, round: int, first: int = 0, judged: int | None = None
    ) -> list[Draft]:
        """Up to `wanted` new drafts; those that the LLM failed to write, or has written before, are logged.

        `first` is the number of drafts that earlier calls asked for in this round of writing. `judged` is the number
        of rounds of drawing that have been judged, if it differs from `round`.
        """
        if not first:
            self._learn_yields(class_name, (round if judged is None else judged) - 1)
        offers = self._offers(class_name, round, first, wanted)

        def write(index: int) -> Draft | None:
            return self._write(class_name, offers[index], "", round, first + index)

        drafts = self._together(write, range(len(offers)))
        return self._distinct(class_name, round, first, drafts, offers)

    def _offers(self, class_name: str, round: int, first: int, count: int) -> list[Offer]:
        """`count` offers of a round after the first `first`, which are made again if this object did not."""
        wish = self._wish(class_name)
        kept = self._plans.pop(class_name, None)
        if kept is None or kept[:3] != (round, first, wish):
            kept = (round, 0, wish, self._planner(class_name, round, "plan"))
        planner, offers = kept[3], list[Offer]()
        for index in range(kept[1], first + count):
            companions = self._companions(class_name, round, index)
            offers.append(planner.offer(companions, shared=self._shared_places(companions)))
        self._plans[class_name] = (round, first + count, wish, planner)
        return offers[first - kept[1] :]

    def critique(self, drafts: Sequence[Draft]) -> list[Draft]:
        """The drafts in order, each with its `problem` and `numbers`; the cheapest test first."""
        checks: list[Check] = [
            lambda drafts: check_rules(drafts, self._lexicon, self._encoder),
            lambda drafts: check_wishes(drafts, lambda name: self._wish(name).words),
            lambda drafts: check_relevance(drafts, self._classes, list(self._spoken.values()), self._encoder),
        ]
        if self._config.remember:
            checks.append(
                lambda drafts: check_novelty(
                    drafts, self._memory, self._encoder, self._config.novelty_delta, self._run_id
                )
            )
        if self._writes_sentences:
            checks.append(lambda drafts: self._together(self._review, drafts))
        return run_checks([replace(draft, problem=None, numbers={}) for draft in drafts], checks)

    def _review(self, draft: Draft) -> Draft:
        return review(draft, self._subject(draft), self._chat, self._config.min_rationality, self._seed)

    def refine(self, drafts: Sequence[Draft]) -> list[Draft]:
        """A new draft for each rejected one, written with the reason and the prompts to differ from; it has a new id.

        Drafts that the LLM cannot rewrite are dropped under `PromptProblem.BAD_REPLY` or `REPEATED`.
        """
        taken = {draft.id for draft in drafts}
        refined: list[Draft] = []
        for draft, child in zip(drafts, self._together(self._rewrite, drafts), strict=True):
            if child is None:
                self.drop([draft.rejected(PromptProblem.BAD_REPLY, "the model gave no usable rewrite")])
            elif child.id in taken or self._known(child, draft.round):
                text = f"its rewrite was written before, {child.text!r}"
                self.drop([draft.rejected(PromptProblem.REPEATED, text)])
            else:
                self._settle([draft], "refined")
                taken.add(child.id)
                refined.append(child)
        return refined

    def remember_again(self) -> None:
        """Add the admitted prompts that the memory lacks: a run may have moved to a machine that has none."""
        if not self._config.remember:
            return
        with self._memory.lock:
            rows = self._ledger.prompts("admitted")  # all, once a session: any may be missing
            for page in (rows[start : start + PAGE] for start in range(0, len(rows), PAGE)):
                held = self._memory.held([row.id for row in page])
                self._memory.add([self._remembered(row) for row in page if row.id not in held])

    def admit(self, drafts: Sequence[Draft]) -> list[str]:
        """Remember the drafts and return their ids, without those too close to one admitted meanwhile."""
        if not drafts:
            return []
        with self._memory.lock:
            admitted = self._remember(drafts) if self._config.remember else list(drafts)
            self._ledger.add_prompts([to_row(draft, "admitted") for draft in admitted])
        return [draft.id for draft in admitted]

    def drop(self, drafts: Sequence[Draft]) -> None:
        """Drop the drafts; the ledger stores them with their reason."""
        self._settle(drafts, "dropped")

    def returned(self, prompt_ids: Sequence[str]) -> list[Draft]:
        """Admitted prompts whose images all failed, as drafts for `refine`. They and their images are kept."""
        rows = [self._ledger.prompt(prompt_id) for prompt_id in prompt_ids]
        return [
            from_row(
                row,
                round=row.round + 1,
                problem=Problem(
                    PromptProblem.NOT_THERE,
                    f"none of its images showed {with_article(self._spoken[row.class_name])}",
                ),
            )
            for row in rows
        ]

    # -- what a reviewer decides ------------------------------------------------------------------

    def edited(self, prompt_id: str, text: str) -> Draft:
        """A reviewer's text for a prompt, as its child. Raises `SegsmithError` for a text that cannot be a prompt.

        It must follow the rules on words and name the class; it may name other classes of the list.
        """
        row, text = self._ledger.prompt(prompt_id), " ".join(text.split())
        named = named_classes(text, self._lexicon)
        broken = broken_rule(
            text, list(dict.fromkeys((row.class_name, *named))), self._lexicon, self._encoder.fits
        )
        if broken:
            raise SegsmithError(
                f"This text cannot be a prompt: {broken}.", "Change it, or reject the prompt."
            )
        companions = [name for name in self._classes if name in named and name != row.class_name]
        return Draft(
            id=make_id("p", row.class_name, text),
            class_name=row.class_name,
            text=text,
            attributes={**self._said_in(text), "companion": JOIN.join(companions)},
            parent_id=prompt_id,
            round=row.round,
            classes=tuple(name for name in self._classes if name in named),
        )

    def admit_edit(self, prompt_id: str, text: str) -> str:
        """Admit a reviewer's text without a critique, since a reviewer overrides it; returns its id."""
        draft = self.edited(prompt_id, text)
        try:
            return self._ledger.prompt(draft.id).id
        except KeyError:
            pass
        with self._memory.lock:
            self._memory.add([self._remembered(draft)])
            row = to_row(draft, "admitted")
            self._ledger.add_prompts([replace(row, critique={**row.critique, "reason": "person"})])
        return draft.id

    def _said_in(self, text: str) -> dict[str, str]:
        """The cell of the attribute space that a reviewer's text visits, as far as the vocabulary knows its words."""
        found = understand(text, self._lexicon, self._words).wish.prefer
        return {name: found.get(name, ("",))[0] for name in ATTRIBUTES}

    def _wish(self, class_name: str) -> Wish:
        return leaning(self._ledger.guidance(), class_name, self._words)

    # -- writing ----------------------------------------------------------------------------------

    def _write(self, class_name: str, offer: Offer, advice: str, round: int, *which: object) -> Draft | None:
        """One draft, with a seed derived from `which`; None, logged, if the LLM gives no usable reply."""
        seed = seed_of(self._seed, class_name, round, *which)
        if self._writes_sentences and (wish := self._wish(class_name)):
            advice += fill("wishes", wishes=str(wish))
        try:
            return self._writer.write(class_name, offer, advice, round, seed)
        except BadReply as bad:
            self._ledger.log("unwritten", **{"class": class_name, "round": round, "reason": bad.reason})
            logger.info("no prompt for %s: %s", class_name, bad)
            return None

    def _distinct(
        self,
        class_name: str,
        round: int,
        first: int,
        drafts: Sequence[Draft | None],
        offers: Sequence[Offer],
    ) -> list[Draft]:
        """The drafts without repetitions; each repetition is requested again, at most `max_refines` times."""
        kept: dict[str, Draft] = {}
        for index, (draft, offer) in enumerate(zip(drafts, offers, strict=True)):
            for again in range(self._config.max_refines):
                if draft is None or not (draft.id in kept or self._known(draft, round)):
                    break
                draft = self._write(class_name, offer, "", round, first + index, "again", again)
            if draft is None:
                continue
            if draft.id in kept or self._known(draft, round):
                self._ledger.log("unwritten", **{"class": class_name, "round": round, "reason": "repeated"})
            else:
                kept[draft.id] = draft
        return list(kept.values())

    def _known(self, draft: Draft, round: int) -> bool:
        """Whether an earlier round wrote the prompt; one of this round may come from this very step, run twice."""
        try:
            return self._ledger.prompt(draft.id).round < round
        except KeyError:
            return False

    def _rewrite(self, draft: Draft) -> Draft | None:
        class_name, round, attributes = draft.class_name, draft.round, draft.attributes
        problem = draft.problem
        reason = problem.text if problem else "it is too close to a prompt admitted meanwhile"
        remember = self._config.remember
        here = Seen(class_name, self._run_id, round)
        near = self._memory.around([draft.text], AVOIDED, but=[draft.id], seen=here)[0] if remember else []
        advice = fill("advice", reason=reason, avoid="".join(f"; not like: {n.text}" for n in near))
        # With several objects, a companion is the most likely reason for being read, or drawn, as something else.
        companions = draft.companions
        if problem and problem.reason in (PromptProblem.OFF_TOPIC, PromptProblem.NOT_THERE):
            companions = companions[: len(companions) // 2]
        planner = self._planner(class_name, round, "refine", draft.id)
        shared = self._shared_places(companions)
        offer = planner.offer(companions, shared=shared, shun=attributes if remember else {})
        child = self._write(class_name, offer, advice, round, "refine", draft.id)
        return child and replace(child, parent_id=draft.id, refines=draft.refines + 1)

    def _planner(self, class_name: str, round: int, *which: object) -> Planner:
        """The planner of a round; it makes the same offers if the round is run again."""
        explore = self._config.explore and self._config.remember
        visits = self._visits(class_name, round) if explore else {}
        rng = random.Random(seed_of(self._seed, class_name, round, *which))
        return Planner(
            self._words,
            self._writer.suits(class_name),
            visits,
            rng,
            explore=explore,
            wish=self._wish(class_name),
        )

    def _companions(self, class_name: str, round: int, index: int) -> tuple[str, ...]:
        """Further classes to show, chosen by the seed: from a real image's label set, or one that shares places."""
        rng = random.Random(seed_of(self._seed, class_name, round, index, "companion"))
        mine = set(self._places(class_name))
        others = [
            name
            for name in self._classes
            if name != class_name and len(mine & set(self._places(name))) >= SHARED_PLACES
        ]
        if self._label_sets is not None:
            return self._label_sets.companions(class_name, others, rng)
        return (rng.choice(others),) if others and rng.random() < self._config.companion_rate else ()

    def _places(self, class_name: str) -> tuple[str, ...]:
        return self._listed[class_name].places

    def _shared_places(self, companions: Sequence[str]) -> tuple[str, ...]:
        """Places that suit all companions; empty without companions."""
        first, *others = [self._places(name) for name in companions] or [()]
        return tuple(place for place in first if all(place in places for places in others))

    def _subject(self, draft: Draft) -> str:
        """The classes that the draft shows, in plain English."""
        return " and ".join(self._spoken[name] for name in draft.asked)

    # -- bookkeeping ------------------------------------------------------------------------------

    def _remember(self, drafts: Sequence[Draft]) -> list[Draft]:
        """Add drafts of one class and round to memory, and return them, without those too close to a remembered one.

        The caller holds the memory's lock.
        """
        held = self._memory.held([draft.id for draft in drafts])
        texts = [draft.text for draft in drafts]
        here = Seen(drafts[0].class_name, self._run_id, drafts[0].round)
        nearest = self._memory.nearest(texts, seen=here)
        vectors = self._encoder.embed_texts(texts)
        kept: list[int] = []
        for i, (draft, near) in enumerate(zip(drafts, nearest, strict=True)):
            cosines = [float(vectors[i] @ vectors[j]) for j in kept] + ([near.cosine] if near else [])
            if draft.id in held or max(cosines, default=-1.0) < self._config.novelty_delta:
                kept.append(i)
        admitted = [drafts[i] for i in kept]
        self._memory.add([self._remembered(draft) for draft in admitted if draft.id not in held])
        return admitted

    def _visits(self, class_name: str, round: int) -> Counter[Cell]:
        """Number of visits of each cell by prompts of the class: of other runs, and of this run's earlier rounds.

        Not by those of this round, so that a round that is repeated after a crash gets the same result. Each prompt
        is read once in a session.
        """
        known, visits = self._visited.get(class_name, (0, None))
        if visits is None or known > round:
            known, visits = 0, self._memory.visits(class_name, but_run=self._run_id)
        for earlier in range(known, round):
            for row in self._ledger.admitted_in(class_name, earlier):
                visits.update(cells(row.attributes))
        self._visited[class_name] = (round, visits)
        return visits

    def _remembered(self, prompt: Draft | PromptRow) -> Remembered:
        measured = prompt.numbers if isinstance(prompt, Draft) else prompt.critique
        return Remembered(
            id=prompt.id,
            text=prompt.text,
            class_name=prompt.class_name,
            attributes=prompt.attributes,
            run_id=self._run_id,
            round=prompt.round,
            parent_id=prompt.parent_id,
            score=measured.get("rationality", 1.0),
        )

    def _settle(self, drafts: Sequence[Draft], status: PromptStatus) -> None:
        """Write rejected drafts to the ledger; a prompt that is already admitted stays admitted."""
        for draft in drafts:
            try:
                if self._ledger.prompt(draft.id).status == "admitted":
                    continue
            except KeyError:
                pass
            self._ledger.add_prompts([to_row(draft, status)])

    def _learn_yields(self, class_name: str, round: int) -> None:
        """Record in memory how many images the prompts that were drawn in a round have yielded."""
        if self._config.remember and (yields := self._ledger.yields(class_name, round)):
            self._memory.record_yields(yields)

    def _together(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """`work` on every item, several in parallel; results in order. Raises `Cancelled` once the run is stopped."""

        def unless_stopped(item: Item) -> Result:
            if self._stopped():
                raise Cancelled
            return work(item)

        if len(items) < 2 or self._workers < 2:
            return [unless_stopped(item) for item in items]
        with ThreadPoolExecutor(min(self._workers, len(items))) as pool:
            return list(pool.map(unless_stopped, items))


def _run_id(ledger: Ledger) -> str:
    """The run's name in a memory that several runs share; created on first use."""
    if not ledger.run_id:
        ledger.run_id = uuid.uuid4().hex[:12]
    return ledger.run_id
