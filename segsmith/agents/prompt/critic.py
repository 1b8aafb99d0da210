"""What is wrong with a prompt: rules, CLIP text relevance, novelty, and an able model's own review.

Cheapest first; a test looks only at drafts that passed the ones before it, and writes into them.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from segsmith.agents.prompt.draft import Draft, companions_of
from segsmith.agents.prompt.preferences import unwanted_word
from segsmith.agents.prompt.rules import Lexicon, broken_rule
from segsmith.agents.prompt.space import with_article
from segsmith.errors import BadReply
from segsmith.ids import seed_of
from segsmith.memory.prompt_memory import PromptMemory, Seen
from segsmith.prompts import fill
from segsmith.protocols import ChatModel, ImageTextEncoder


class Review(BaseModel):
    """An able model's re-evaluation of a prompt (IAA, Alg. 1)."""

    model_config = ConfigDict(extra="forbid")
    score: float = Field(ge=0, le=1)
    reason: str = Field(max_length=200)


def asked_classes(draft: Draft) -> list[str]:
    """The class it was written for, then its companions if it has any."""
    return [draft["class_name"], *companions_of(draft["attributes"])]


def still_good(drafts: Sequence[Draft]) -> list[Draft]:
    """Those without a problem so far; the very objects."""
    return [draft for draft in drafts if not draft["problem"]]


def check_rules(drafts: Sequence[Draft], lexicon: Lexicon, encoder: ImageTextEncoder) -> None:
    """Rules on words; see `broken_rule`."""
    for draft in drafts:
        broken = broken_rule(draft["text"], asked_classes(draft), lexicon, encoder.fits)
        if broken:
            draft["problem"] = f"rule: {broken}"


def check_wishes(drafts: Sequence[Draft], avoided: Sequence[str]) -> None:
    """A word that a person asked to leave out breaks a rule."""
    for draft in drafts:
        if word := unwanted_word(draft["text"], avoided):
            draft["problem"] = f"rule: it says {word!r}, which a person asked to leave out"


def check_relevance(
    drafts: Sequence[Draft], classes: Sequence[str], spoken: Sequence[str], encoder: ImageTextEncoder
) -> None:
    """CLIP text relevance: the asked classes must be nearer to the text than any other class of the list.

    `spoken` says the `classes`, in their order. Adds ``class_cosine`` and ``relevance_margin`` (the worst asked
    class less the best other one).
    """
    if not drafts:
        return
    labels = encoder.embed_texts([f"a photo of {with_article(name)}" for name in spoken])
    cosines = encoder.embed_texts([draft["text"] for draft in drafts]) @ labels.T
    for draft, row in zip(drafts, cosines, strict=True):
        asked = [classes.index(name) for name in asked_classes(draft)]
        draft["numbers"]["class_cosine"] = round(float(row[asked[0]]), 4)
        others = [(float(row[i]), name) for i, name in enumerate(spoken) if i not in asked]
        if not others:
            continue
        worst, (best, name) = min(float(row[i]) for i in asked), max(others)
        draft["numbers"]["relevance_margin"] = round(worst - best, 4)
        if worst <= best:
            draft["problem"] = f"off_topic: it reads more like {with_article(name)}"


def check_novelty(
    drafts: Sequence[Draft], memory: PromptMemory, encoder: ImageTextEncoder, delta: float, run_id: str = ""
) -> None:
    """SynthSeg-Agents' diversity test: cos(f(p), f(p')) < delta for the nearest p', in memory or among `drafts`.

    Adds ``nearest_cosine``.
    """
    if not drafts:
        return
    texts = [draft["text"] for draft in drafts]
    here = Seen(drafts[0]["class_name"], run_id, drafts[0]["round"])  # one class and round at a time
    remembered = memory.nearest(texts, but=[draft["id"] for draft in drafts], seen=here)
    vectors = encoder.embed_texts(texts)
    passed: list[int] = []
    for i, draft in enumerate(drafts):
        rivals = [(float(vectors[i] @ vectors[j]), texts[j]) for j in passed]
        if (known := remembered[i]) is not None:
            rivals.append((known.cosine, known.text))
        cosine, text = max(rivals, default=(-1.0, ""))
        draft["numbers"]["nearest_cosine"] = round(cosine, 4)
        draft["nearest"] = text
        if cosine >= delta:
            draft["problem"] = f"familiar: it is too close to {text!r}"
        else:
            passed.append(i)


def review(draft: Draft, spoken: str, chat: ChatModel, epsilon: float, seed: int) -> None:
    """IAA's re-evaluation of rationality: the model's own score must reach `epsilon`. Adds ``rationality``."""
    user = fill("review_user", subject=spoken, text=draft["text"])
    try:
        reply = chat.ask(fill("review_system"), user, Review, seed=seed_of(seed, draft["id"], "review"))
    except BadReply:
        draft["problem"] = "unreviewed: the model gave no usable review"
        return
    draft["numbers"]["rationality"] = reply.score
    if reply.score < epsilon:
        draft["problem"] = f"irrational: {reply.reason}"
