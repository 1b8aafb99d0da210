"""The funnel of a run: the number of prompts and images that reached each step, and why the others did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from segsmith.memory.ledger import Ledger

STEPS = ("written", "admitted", "drawn", "accepted", "labelled", "masked")
"""Prompts are written and admitted; images are drawn, accepted, labelled and masked."""


def read_funnel(ledger: Ledger, classes: Sequence[str]) -> dict[str, Any]:
    """Plain JSON for these classes: ``steps``, ``classes`` (class -> step -> count), ``all``, rejects, ``prompts``.

    A prompt and its images count for the class that the prompt was written for.
    """
    prompts = {p.id: p for p in ledger.prompts() if p.class_name in classes}
    images = [i for i in ledger.images() if i.prompt_id in prompts]
    verdicts, masks = ledger.verdicts(), ledger.masks()
    labelled = ledger.labels("relabel")
    counts = {name: Counter[str]() for name in classes}
    drawn, accepted = Counter[str](), Counter[str]()
    for prompt in prompts.values():
        counts[prompt.class_name].update(written=1, admitted=prompt.status == "admitted")
    for image in images:
        good = image.id in verdicts and verdicts[image.id].accepted
        drawn[image.prompt_id] += 1
        accepted[image.prompt_id] += good
        counts[prompts[image.prompt_id].class_name].update(
            drawn=1, accepted=good, labelled=good and image.id in labelled, masked=good and image.id in masks
        )
    judged = (verdicts[i.id] for i in images if i.id in verdicts)
    return {
        "steps": list(STEPS),
        "classes": {name: {step: count[step] for step in STEPS} for name, count in counts.items()},
        "all": {step: sum(count[step] for count in counts.values()) for step in STEPS},
        "image_rejects": dict(Counter(v.reason for v in judged if not v.accepted).most_common()),
        "prompt_rejects": dict(
            Counter(
                str(p.critique.get("reason", "")) or p.status
                for p in prompts.values()
                if p.status != "admitted"
            ).most_common()
        ),
        "prompts": [
            {
                "id": p.id,
                "class": p.class_name,
                "text": p.text,
                "drawn": drawn[p.id],
                "accepted": accepted[p.id],
            }
            for p in prompts.values()
            if p.status == "admitted"
        ],
    }
