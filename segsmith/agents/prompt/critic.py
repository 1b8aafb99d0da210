"""What is wrong with a prompt: rules, CLIP text relevance, novelty, and a review by the LLM itself.

Every check takes drafts without a problem and returns them in order, some of them rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field

from segsmith.agents.prompt.draft import Draft
from segsmith.agents.prompt.preferences import unwanted_word
from segsmith.agents.prompt.rules import Lexicon, broken_rule
from segsmith.agents.prompt.space import with_article
from segsmith.errors import BadReply
from segsmith.ids import seed_of
from segsmith.memory.prompt_memory import PromptMemory, Seen
from segsmith.prompts import fill
from segsmith.protocols import ChatModel, ImageTextEncoder
from segsmith.reasons import PromptProblem

Check = Callable[[list[Draft]], list[Draft]]


class Review(BaseModel):
    """An LLM's re-evaluation of a prompt (IAA, Alg. 1)."""

    model_config = ConfigDict(extra="forbid")
    score: float = Field(ge=0, le=1)
    reason: str = Field(max_length=200)


def run_checks(drafts: Sequence[Draft], checks: Sequence[Check]) -> list[Draft]:
    """The drafts in order after all checks; each check sees only drafts that passed the ones before it."""
    checked = list(drafts)
    for check in checks:
        passed = [i for i, draft in enumerate(checked) if draft.problem is None]
        for i, draft in zip(passed, check([checked[i] for i in passed]), strict=True):
            checked[i] = draft
    return checked


def check_rules(drafts: Sequence[Draft], lexicon: Lexicon, encoder: ImageTextEncoder) -> list[Draft]:
    """Rules on words; see `broken_rule`."""
    broken = [broken_rule(draft.text, draft.asked, lexicon, encoder.fits) for draft in drafts]
    return [d.rejected(PromptProblem.RULE, b) if b else d for d, b in zip(drafts, broken, strict=True)]


def check_wishes(drafts: Sequence[Draft], avoided: Callable[[str], Sequence[str]]) -> list[Draft]:
    """A word that the user asked to leave out breaks a rule; `avoided` gives these words for a class."""
    words = [unwanted_word(draft.text, avoided(draft.class_name)) for draft in drafts]
    return [
        draft.rejected(PromptProblem.RULE, f"it says {word!r}, which the user asked to leave out")
        if word
        else draft
        for draft, word in zip(drafts, words, strict=True)
    ]


def check_relevance(
    drafts: Sequence[Draft], classes: Sequence[str], spoken: Sequence[str], encoder: ImageTextEncoder
) -> list[Draft]:
    """CLIP text relevance: the asked classes must be closer to the text than any other class of the list.

    `spoken` are the `classes` as people say them, in their order. Adds ``class_cosine`` and ``relevance_margin``
    (the worst asked class minus the best other one).
    """
    if not drafts:
        return []
    labels = encoder.embed_texts([f"a photo of {with_article(name)}" for name in spoken])
    cosines = encoder.embed_texts([draft.text for draft in drafts]) @ labels.T
    checked = []
    for draft, row in zip(drafts, cosines, strict=True):
        asked = [classes.index(name) for name in draft.asked]
        draft = draft.measured(class_cosine=round(float(row[asked[0]]), 4))
        others = [(float(row[i]), name) for i, name in enumerate(spoken) if i not in asked]
        if others:
            worst, (best, name) = min(float(row[i]) for i in asked), max(others)
            draft = draft.measured(relevance_margin=round(worst - best, 4))
            if worst <= best:
                draft = draft.rejected(PromptProblem.OFF_TOPIC, f"it reads more like {with_article(name)}")
        checked.append(draft)
    return checked


def check_novelty(
    drafts: Sequence[Draft], memory: PromptMemory, encoder: ImageTextEncoder, delta: float, run_id: str = ""
) -> list[Draft]:
    """SynthSeg-Agents' diversity test: cos(f(p), f(p')) < delta for the nearest p', in memory or among `drafts`.

    Adds ``nearest_cosine``.
    """
    if not drafts:
        return []
    texts = [draft.text for draft in drafts]
    here = Seen(drafts[0].class_name, run_id, drafts[0].round)  # one class and round at a time
    remembered = memory.nearest(texts, but=[draft.id for draft in drafts], seen=here)
    vectors = encoder.embed_texts(texts)
    passed: list[int] = []
    checked = []
    for i, draft in enumerate(drafts):
        rivals = [(float(vectors[i] @ vectors[j]), texts[j]) for j in passed]
        if (known := remembered[i]) is not None:
            rivals.append((known.cosine, known.text))
        cosine, text = max(rivals, default=(-1.0, ""))
        draft = replace(draft.measured(nearest_cosine=round(cosine, 4)), nearest=text)
        if cosine >= delta:
            draft = draft.rejected(PromptProblem.FAMILIAR, f"it is too close to {text!r}")
        else:
            passed.append(i)
        checked.append(draft)
    return checked


def review(draft: Draft, spoken: str, chat: ChatModel, epsilon: float, seed: int) -> Draft:
    """IAA's re-evaluation of rationality: the LLM's own score must reach `epsilon`. Adds ``rationality``."""
    user = fill("review_user", subject=spoken, text=draft.text)
    try:
        reply = chat.ask(fill("review_system"), user, Review, seed=seed_of(seed, draft.id, "review"))
    except BadReply:
        return draft.rejected(PromptProblem.UNREVIEWED, "the model gave no usable review")
    draft = draft.measured(rationality=reply.score)
    return draft.rejected(PromptProblem.IRRATIONAL, reply.reason) if reply.score < epsilon else draft
