"""The dataset card: what the dataset holds, how it was made, how good it is, and its known limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    masks, tallies = ledger.masks(), ledger.tallies()
    generated = [r for r in records if r.origin is not None and r.origin.source == "generated"]
    rows = [masks[r.id] for r in generated]
    evaluation = ledger.evaluation
    # Prompts are what models wrote: as one line of an indented block they cannot become Markdown.
    texts = dict.fromkeys(" ".join(r.origin.prompt.split()) for r in generated if r.origin is not None)
    verdicts = ledger.decisions("verdict")
    return _template().render(
        images=len(records),
        real=len(records) - len(generated),
        splits=", ".join(f"{split} {sum(r.split == split for r in records)}" for split in SPLITS),
        classes=[_class(i, name, generated, rows, tallies) for i, name in enumerate(config.classes, 1)],
        unknown=sum(row.ignore_share for row in rows) / len(rows),
        prompts=len(ledger.prompts("admitted")),
        drawn=len(ledger.images()),
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


def _class(
    index: int, name: str, records: Sequence[Record], masks: Sequence[Any], tallies: Mapping[str, ClassTally]
) -> Any:
    tally = tallies.get(name, ClassTally())
    known = [sum(m.pixels.values()) for m in masks]
    share = sum(m.pixels.get(name, 0) for m in masks) / max(1, sum(known))
    return {
        "index": index,
        "name": _cell(name),
        "images": sum(name in (r.labels or ()) for r in records),
        "pixels": share,
        "yield_": f"{tally.accepted} of {tally.judged}" if tally.judged else "-",
    }


def _missing(detail: dict[str, Any]) -> str:
    name = _cell(str(detail.get("class", "")))
    return f"Class {name} has {detail.get('have')} of {detail.get('want')} requested images."


def _cell(text: str) -> str:
    """Text that stays in its cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
