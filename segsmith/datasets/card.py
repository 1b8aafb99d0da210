"""The dataset card: what the dataset holds, how it was made, how good it is, and its known limits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from segsmith.config import Config
from segsmith.datasets.records import Record
from segsmith.datasets.splits import SPLITS
from segsmith.memory.ledger import Ledger
from segsmith.types import ClassTally

EXAMPLE_PROMPTS = 8
TESTED_ON = {
    "synthetic_val": "held-out generated images (labels by the same models)",
    "real_val": "held-out real images",
    "real_val_guessed": "held-out real images (labels by the same models: agreement, not quality)",
    "test_set": "simulator test set (unseen sprite style, exact labels)",
}


def write_card(ledger: Ledger, config: Config, records: Sequence[Record]) -> str:
    """Markdown without a front matter. Nothing in it depends on when it is written."""
    tallies = ledger.tallies()
    generated = [r for r in records if r.origin is not None and r.origin.source == "generated"]
    pixels: Counter[str] = Counter()
    ignored = []
    for mask in ledger.mask_pixels([r.id for r in generated]):
        pixels.update(mask.pixels)
        ignored.append(mask.ignore_share)
    labelled = Counter(name for r in generated for name in set(r.labels or ()))
    splits = Counter(r.split for r in records)
    evaluation = ledger.evaluation
    # Prompts are what models wrote: as one line of an indented block they cannot become Markdown.
    texts = dict.fromkeys(" ".join(r.origin.prompt.split()) for r in generated if r.origin is not None)
    verdicts = ledger.decisions("verdict")
    return _template().render(
        images=len(records),
        real=len(records) - len(generated),
        splits=", ".join(f"{split} {splits[split]}" for split in SPLITS),
        classes=[
            {
                "index": index,
                "name": _cell(name),
                "images": labelled[name],
                "pixels": pixels[name] / max(1, pixels.total()),
                "yield_": _yield(tallies.get(name, ClassTally())),
            }
            for index, name in enumerate(config.classes, 1)
        ],
        unknown=math.fsum(ignored) / len(ignored),
        prompts=len(ledger.admitted()),
        drawn=sum(1 for _ in ledger.each_drawn()),
        sam=config.labeler.use_sam,
        seed=config.seed,
        size=config.images.size,
        backends=sorted({r.origin.backend for r in generated if r.origin is not None}),
        models=list(ledger.models().values()),
        examples=list(texts)[:: max(1, len(texts) // EXAMPLE_PROMPTS)][:EXAMPLE_PROMPTS],
        scores=[(words, evaluation[key].miou) for key, words in TESTED_ON.items() if key in evaluation],
        decisions=sum(r.id in verdicts for r in records),
        missing=[_missing(d) for _, _, d in ledger.events("missing")],
    )


@cache
def _template() -> Template:
    """Compiled once, which takes as long as exporting a hundred small images."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.filters["cell"] = _cell
    text = resources.files("segsmith.datasets").joinpath("card.md.jinja").read_text("utf-8")
    return environment.from_string(text)


def _yield(tally: ClassTally) -> str:
    return f"{tally.accepted} of {tally.judged}" if tally.judged else "-"


def _missing(detail: dict[str, Any]) -> str:
    name = _cell(str(detail.get("class", "")))
    return f"Class {name} has {detail.get('have')} of {detail.get('want')} requested images."


def _cell(text: str) -> str:
    """Text that stays in its cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
