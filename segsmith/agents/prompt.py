"""The prompt agent: writes prompts, criticises them, refines them, remembers the good ones.

The loop is SynthSeg-Agents' (T(c), self-refinement, diversity test against memory) with IAA's rationality
score where the language model is able to give one. The graph calls the steps; each may run twice.
"""

from __future__ import annotations

import logging
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal, TypedDict, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from segsmith.agents.prompt_rules import broken_rule, make_lexicon, named_classes, spoken_name
from segsmith.agents.prompt_space import Offer, Planner, compose_sentence, with_article
from segsmith.config import PromptsConfig
from segsmith.memory.ledger import Ledger, PromptRow, PromptStatus
from segsmith.memory.prompts import PromptMemory, Remembered
from segsmith.memory.store import make_id, seed_of
from segsmith.prompts import fill
from segsmith.prompts.vocabulary import Suited, load_vocabulary
from segsmith.tools.protocols import BadReply, ChatModel, ImageTextEncoder

logger = logging.getLogger(__name__)

AVOIDED = 2
"""Remembered prompts that a refinement is told to keep away from."""
SEEN_STATES = 8
"""States an able model is told were used before."""
State = Annotated[str, StringConstraints(pattern="^[a-z]+( [a-z]+){0,4}$", max_length=40)]
Sentence = Annotated[str, StringConstraints(min_length=20, max_length=220)]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Draft(TypedDict):
    """A prompt on its way. Plain JSON, since it travels in the graph's state."""

    id: str
    class_name: str
    text: str
    attributes: dict[str, str]
    """place, light, weather, state, companion, viewpoint; "" where it has none."""
    parent_id: str | None
    """The prompt it refines."""
    refines: int
    """How often its line was refined."""
    round: int
    classes: list[str]
    """Every class of the list that the text names."""
    problem: str
    """Empty, or ``reason: explanation`` with one of `REASONS`."""
    numbers: dict[str, float]
    """What the critique measured."""


REASONS = ("rule", "off_topic", "familiar", "irrational", "unreviewed", "not_there", "bad_reply", "repeated")
"""Why a prompt is refined or dropped."""


class Review(BaseModel):
    """An able model's re-evaluation of a prompt (IAA, Alg. 1)."""

    model_config = ConfigDict(extra="forbid")
    score: float = Field(ge=0, le=1)
    reason: str = Field(max_length=200)


def reason_of(problem: str) -> str:
    """The countable part of a draft's problem, one of `REASONS`."""
    return problem.partition(":")[0]


class PromptAgent:
    """Safe to share between threads; classes are written side by side.

    `synonyms` gives other words for a class. `able` lets the model write sentences and review them;
    otherwise it chooses cells of the attribute space, which a template says. `workers` bounds the
    requests of one class in flight.
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
        able: bool,
        seed: int,
        workers: int = 4,
    ) -> None:
        self._chat = chat
        self._encoder = encoder
        self._memory = memory
        self._ledger = ledger
        self._config = config
        self._classes = classes
        self._able = able
        self._seed = seed
        self._workers = workers
        self._words = load_vocabulary()
        self._lexicon = make_lexicon(classes, synonyms)
        self._spoken = {name: spoken_name(name, synonyms(name)) for name in classes}
        self._listed = {name: self._words.suited((name, *synonyms(name))) for name in classes}
        self._suited: dict[str, Suited] = {}
        self._suiting = threading.Lock()
        self._run_id = _run_id(ledger)

    # -- steps of the graph -----------------------------------------------------------------------

    def propose(self, class_name: str, wanted: int, round: int) -> list[Draft]:
        """Up to `wanted` new drafts; what the model failed to write, or had written before, is logged."""
        self._learn_yields(class_name)
        if wanted <= 0:
            return []
        planner = self._planner(class_name, round, "plan")
        offers = [planner.offer(self._companion(class_name, round, i)) for i in range(wanted)]
        asked = list(enumerate(offers))

        def write(item: tuple[int, Offer]) -> Draft | None:
            index, offer = item
            return self._write(class_name, offer, "", round, seed_of(self._seed, class_name, round, index))

        drafts = self._together(write, asked)
        return self._distinct(class_name, round, drafts, offers)

    def critique(self, drafts: Sequence[Draft]) -> list[Draft]:
        """The drafts in order, each with its `problem` and `numbers`; the cheapest test first."""
        judged: list[Draft] = [{**draft, "problem": "", "numbers": {}} for draft in drafts]
        for draft in judged:
            broken = broken_rule(draft["text"], self._asked(draft), self._lexicon, self._encoder.fits)
            if broken:
                draft["problem"] = f"rule: {broken}"
        self._test_relevance(_open(judged))
        if self._config.remember:
            self._test_novelty(_open(judged))
        if self._able:
            self._together(self._review, _open(judged))
        return judged

    def refine(self, drafts: Sequence[Draft]) -> list[Draft]:
        """A new draft for each refused one, told why and what to keep away from; ids change, parents stay known.

        A draft whose line the model cannot carry on is dropped under ``bad_reply`` or ``repeated``.
        """
        refined: list[Draft] = []
        children = self._together(self._refine_one, drafts)
        for draft, child in zip(drafts, children, strict=True):
            if child is None:
                self.drop([{**draft, "problem": "bad_reply: the model gave no usable rewrite"}])
            elif self._known(child, draft["round"]) or child["id"] in {d["id"] for d in (*drafts, *refined)}:
                self.drop(
                    [{**draft, "problem": f"repeated: its rewrite was written before, {child['text']!r}"}]
                )
            else:
                self._settle([draft], "refined")
                refined.append(child)
        return refined

    def admit(self, drafts: Sequence[Draft]) -> list[str]:
        """Remember the drafts and return their ids, without those that came too close to one admitted meanwhile."""
        admitted: list[str] = []
        for draft in drafts:
            with self._memory.lock:
                if self._config.remember and not self._remember(draft):
                    continue
                self._ledger.add_prompts([_row(draft, "admitted")])
            admitted.append(draft["id"])
        return admitted

    def drop(self, drafts: Sequence[Draft]) -> None:
        """Give the drafts up; the ledger keeps them under their reason."""
        self._settle(drafts, "dropped")

    def returned(self, prompt_ids: Sequence[str]) -> list[Draft]:
        """Admitted prompts whose images all failed, as drafts for `refine`. They stay admitted, their images stay."""
        drafts: list[Draft] = []
        for prompt_id in prompt_ids:
            row = self._ledger.prompt(prompt_id)
            drafts.append(
                Draft(
                    id=row.id,
                    class_name=row.class_name,
                    text=row.text,
                    attributes=dict(row.attributes),
                    parent_id=row.parent_id,
                    refines=0,
                    round=row.round + 1,
                    classes=list(row.classes),
                    problem=f"not_there: none of its images showed {with_article(self._spoken[row.class_name])}",
                    numbers={},
                )
            )
        return drafts

    # -- writing ----------------------------------------------------------------------------------

    def _write(self, class_name: str, offer: Offer, advice: str, round: int, seed: int) -> Draft | None:
        """Ask for one prompt; None, logged, when the model never answers in the schema."""
        try:
            cell, sentence = self._ask(class_name, offer, advice, seed)
        except BadReply as bad:
            self._ledger.log("unwritten", **{"class": class_name, "round": round, "reason": "bad_reply"})
            logger.info("no prompt for %s: %s", class_name, bad)
            return None
        attributes = {**cell, "viewpoint": offer.viewpoint, "companion": offer.companion}
        text = sentence or compose_sentence(
            self._spoken[class_name], self._spoken.get(offer.companion, ""), attributes, self._words
        )
        named = named_classes(text, self._lexicon)
        return Draft(
            id=make_id("p", class_name, text),
            class_name=class_name,
            text=text,
            attributes=attributes,
            parent_id=None,
            refines=0,
            round=round,
            classes=[name for name in self._classes if name in named],
            problem="",
            numbers={},
        )

    def _ask(self, class_name: str, offer: Offer, advice: str, seed: int) -> tuple[dict[str, str], str]:
        """The chosen cell, and the model's own sentence if it is able to write one, else ""."""
        fields: dict[str, Any] = {
            "place": (_one_of(offer.places), ...),
            "light": (_one_of(offer.lights), ...),
        }
        if offer.weathers:
            fields["weather"] = (_one_of(offer.weathers), ...)
        fields["state"] = (State if self._able else _one_of(offer.states), ...)
        if self._able:
            fields["sentence"] = (Sentence, ...)
        schema = create_model("Photograph", __config__=ConfigDict(extra="forbid"), **fields)
        subject, companion = self._spoken[class_name], self._spoken.get(offer.companion, "")
        if self._able:
            user = fill(
                "sentence_user",
                subject=with_article(subject),
                companion=with_article(companion) if companion else "nothing else of the class list",
                classes=", ".join(self._spoken.values()),
                places=", ".join(offer.places),
                lights=", ".join(offer.lights),
                weathers=", ".join(offer.weathers) or "none, it is indoors",
                states=", ".join(offer.states[:SEEN_STATES]),
                viewpoint=self._words.viewpoints[offer.viewpoint],
                advice=advice,
            )
            reply: Any = self._chat.ask(fill("sentence_system"), user, schema, seed=seed)
        else:
            named = with_article(subject) + (f" and {with_article(companion)}" if companion else "")
            user = fill("cells_user", subject=named, advice=advice)
            reply = self._chat.ask(fill("cells_system"), user, schema, seed=seed)
        cell = {name: str(getattr(reply, name, "")) for name in ("place", "light", "weather", "state")}
        return cell, getattr(reply, "sentence", "").strip()

    def _distinct(
        self, class_name: str, round: int, drafts: Sequence[Draft | None], offers: Sequence[Offer]
    ) -> list[Draft]:
        """The drafts without repeats; each repeat is asked for again, at most `max_refines` times."""
        kept: dict[str, Draft] = {}
        for index, (draft, offer) in enumerate(zip(drafts, offers, strict=True)):
            for attempt in range(self._config.max_refines + 1):
                if draft is None:
                    break
                if draft["id"] not in kept and not self._known(draft, round):
                    kept[draft["id"]] = draft
                    break
                if attempt == self._config.max_refines:
                    self._ledger.log(
                        "unwritten", **{"class": class_name, "round": round, "reason": "repeated"}
                    )
                    break
                seed = seed_of(self._seed, class_name, round, index, "again", attempt)
                draft = self._write(class_name, offer, "", round, seed)
        return list(kept.values())

    def _known(self, draft: Draft, round: int) -> bool:
        """Was the prompt written in an earlier round? (One of this round may be this very step, done twice.)"""
        try:
            return self._ledger.prompt(draft["id"]).round < round
        except KeyError:
            return False

    def _refine_one(self, draft: Draft) -> Draft | None:
        class_name, round = draft["class_name"], draft["round"]
        reason = draft["problem"].partition(": ")[2] or "it is too close to a prompt admitted meanwhile"
        near = self._memory.around([draft["text"]], AVOIDED, but=[draft["id"]])[0]
        avoid = [n.text for n in near] if self._config.remember else []
        advice = fill("advice", reason=reason, avoid="".join(f"; not like: {text}" for text in avoid))
        companion = draft["attributes"]["companion"]
        if reason_of(draft["problem"]) in ("off_topic", "not_there"):
            companion = ""  # two objects are the likeliest cause
        planner = self._planner(class_name, round, "refine", draft["id"])
        offer = planner.offer(companion, shun=draft["attributes"] if self._config.remember else {})
        seed = seed_of(self._seed, class_name, round, "refine", draft["id"])
        child = self._write(class_name, offer, advice, round, seed)
        return child and {**child, "parent_id": draft["id"], "refines": draft["refines"] + 1}

    def _planner(self, class_name: str, round: int, *parts: object) -> Planner:
        explore = self._config.explore and self._config.remember
        visits = (
            self._memory.visits(class_name, but_run=self._run_id, from_round=round) if explore else Counter()
        )
        rng = random.Random(seed_of(self._seed, class_name, round, *parts))
        return Planner(self._words, self._suits(class_name), visits, rng, explore=explore)

    def _companion(self, class_name: str, round: int, index: int) -> str:
        """A second class of the list, or ""; drawn by the seed."""
        rng = random.Random(seed_of(self._seed, class_name, round, index, "companion"))
        others = [name for name in self._classes if name != class_name]
        return rng.choice(others) if others and rng.random() < self._config.companion_rate else ""

    def _suits(self, class_name: str) -> Suited:
        """Places and states that suit a class: by an able model, asked once, else by the vocabulary's lists."""
        if not self._able:
            return self._listed[class_name]
        with self._suiting:
            if class_name not in self._suited:
                self._suited[class_name] = self._brainstorm(class_name)
            return self._suited[class_name]

    def _brainstorm(self, class_name: str) -> Suited:
        listed = self._listed[class_name]
        places: Any = _one_of(tuple(self._words.places))
        schema = create_model(
            "Suits",
            __config__=ConfigDict(extra="forbid"),
            places=(list[places], Field(min_length=3, max_length=len(self._words.places))),
            states=(list[State], Field(min_length=3, max_length=12)),
        )
        user = fill("suits_user", subject=self._spoken[class_name], places=", ".join(self._words.places))
        try:
            reply: Any = self._chat.ask(
                fill("suits_system"), user, schema, seed=seed_of(self._seed, class_name, "suits")
            )
        except BadReply:
            self._ledger.log("unwritten", **{"class": class_name, "round": -1, "reason": "bad_reply"})
            return listed
        return Suited(tuple(dict.fromkeys(reply.places)), tuple(dict.fromkeys(reply.states)))

    # -- critique ---------------------------------------------------------------------------------

    def _asked(self, draft: Draft) -> list[str]:
        return [n for n in (draft["class_name"], draft["attributes"].get("companion")) if n]

    def _test_relevance(self, drafts: Sequence[Draft]) -> None:
        """CLIP text relevance: the asked classes must be nearer to the text than any other class of the list."""
        if not drafts:
            return
        labels = [f"a photo of {with_article(self._spoken[name])}" for name in self._classes]
        cosines = self._encoder.embed_texts([d["text"] for d in drafts]) @ self._encoder.embed_texts(labels).T
        for draft, row in zip(drafts, cosines, strict=True):
            asked = [self._classes.index(name) for name in self._asked(draft)]
            others = [(float(row[i]), name) for i, name in enumerate(self._classes) if i not in asked]
            worst = min(float(row[i]) for i in asked)
            draft["numbers"]["class_cosine"] = round(float(row[asked[0]]), 4)
            if not others:
                continue
            best, name = max(others)
            draft["numbers"]["relevance_margin"] = round(worst - best, 4)
            if worst <= best:
                draft["problem"] = f"off_topic: it reads more like {with_article(self._spoken[name])}"

    def _test_novelty(self, drafts: Sequence[Draft]) -> None:
        """SynthSeg-Agents' diversity test: cos(f(p), f(p')) < delta for the nearest p', in memory or this batch."""
        if not drafts:
            return
        texts = [draft["text"] for draft in drafts]
        near = self._memory.nearest(texts, but=[draft["id"] for draft in drafts])
        vectors = self._encoder.embed_texts(texts)
        passed: list[int] = []
        for i, draft in enumerate(drafts):
            rivals = [(float(vectors[i] @ vectors[j]), texts[j]) for j in passed]
            if (known := near[i]) is not None:
                rivals.append((known.cosine, known.text))
            cosine, text = max(rivals, default=(-1.0, ""))
            draft["numbers"]["nearest_cosine"] = round(cosine, 4)
            if cosine >= self._config.novelty_delta:
                draft["problem"] = f"familiar: it is too close to {text!r}"
            else:
                passed.append(i)

    def _review(self, draft: Draft) -> None:
        """IAA's re-evaluation of rationality: the model's own score must reach epsilon."""
        user = fill("review_user", subject=self._spoken[draft["class_name"]], text=draft["text"])
        try:
            review = self._chat.ask(
                fill("review_system"), user, Review, seed=seed_of(self._seed, draft["id"], "review")
            )
        except BadReply:
            draft["problem"] = "unreviewed: the model gave no usable review"
            return
        draft["numbers"]["rationality"] = review.score
        if review.score < self._config.min_rationality:
            draft["problem"] = f"irrational: {review.reason}"

    # -- bookkeeping ------------------------------------------------------------------------------

    def _remember(self, draft: Draft) -> bool:
        """Add to memory unless too close to what is there; called with the memory's lock held."""
        if self._memory.holds(draft["id"]):
            return True
        near = self._memory.nearest([draft["text"]])[0]
        if near is not None and near.cosine >= self._config.novelty_delta:
            return False
        self._memory.add(
            [
                Remembered(
                    id=draft["id"],
                    text=draft["text"],
                    class_name=draft["class_name"],
                    attributes=draft["attributes"],
                    run_id=self._run_id,
                    round=draft["round"],
                    parent_id=draft["parent_id"],
                    score=draft["numbers"].get("rationality", 1.0),
                )
            ]
        )
        return True

    def _settle(self, drafts: Sequence[Draft], status: PromptStatus) -> None:
        """Write refused drafts to the ledger; a prompt that was admitted once stays admitted."""
        for draft in drafts:
            try:
                if self._ledger.prompt(draft["id"]).status == "admitted":
                    continue
            except KeyError:
                pass
            self._ledger.add_prompts([_row(draft, status)])

    def _learn_yields(self, class_name: str) -> None:
        """Take over into memory how many images each prompt of the class has given."""
        if not self._config.remember:
            return
        mine = {row.id for row in self._ledger.prompts("admitted") if row.class_name == class_name}
        verdicts = self._ledger.verdicts()
        drawn: Counter[str] = Counter()
        accepted: Counter[str] = Counter()
        for image in self._ledger.images():
            if image.prompt_id in mine and image.id in verdicts:
                drawn[image.prompt_id] += 1
                accepted[image.prompt_id] += verdicts[image.id].accepted
        known = self._memory.yields(class_name)
        for prompt_id, count in drawn.items():
            if known.get(prompt_id) != (count, accepted[prompt_id]):
                self._memory.record_yield(prompt_id, count, accepted[prompt_id])

    def _together(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """`work` on every item, several at once; results in order."""
        if len(items) < 2 or self._workers < 2:
            return [work(item) for item in items]
        with ThreadPoolExecutor(min(self._workers, len(items))) as pool:
            return list(pool.map(work, items))


def _open(drafts: Sequence[Draft]) -> list[Draft]:
    """Those that passed so far; the very objects, so that later tests write into them."""
    return [draft for draft in drafts if not draft["problem"]]


def _one_of(options: tuple[str, ...]) -> Any:
    return Literal[options]


def _row(draft: Draft, status: PromptStatus) -> PromptRow:
    return PromptRow(
        id=draft["id"],
        class_name=draft["class_name"],
        text=draft["text"],
        classes=tuple(draft["classes"]),
        attributes=draft["attributes"],
        parent_id=draft["parent_id"],
        round=draft["round"],
        status=status,
        critique={"reason": reason_of(draft["problem"]), "problem": draft["problem"], **draft["numbers"]},
    )


def _run_id(ledger: Ledger) -> str:
    """This run's name in a memory that several runs share."""
    known = ledger.get_meta("run_id")
    if known is None:
        known = uuid.uuid4().hex[:12]
        ledger.set_meta("run_id", known)
    return str(known)
