"""What a run took: time, tokens, money; which models it used, and what people decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segsmith.report.statistics import Book, finite

DECISIONS_SHOWN = 200


@dataclass(frozen=True)
class Spent:
    """Seconds, tokens and money; None where nobody measured."""

    wall_seconds: float | None
    drawing_seconds: float | None
    training_seconds: float | None
    images_per_second: float | None
    trained_per_second: float | None
    peak_memory_mb: float | None
    tokens_in: int | None
    tokens_out: int | None
    calls: int | None
    usd: float | None
    energy_wh: float | None


@dataclass(frozen=True)
class Decided:
    """A person's decision, with the words of what it was about."""

    kind: str
    subject: str
    action: str
    about: str
    note: str


def spent(book: Book) -> Spent:
    """Sum up what the ledger knows; hours on several machines or sittings add up."""
    drawing, llm = book.drawing, book.usage.get("llm")
    speeds = [v for v in (finite(e.get("images_per_second")) for e in book.epochs) if v]
    return Spent(
        wall_seconds=book.summary.wall_seconds or None,
        drawing_seconds=_total(drawing),
        training_seconds=_total(book.epochs),
        images_per_second=book.summary.images_per_second or None,
        trained_per_second=sum(speeds) / len(speeds) if speeds else None,
        peak_memory_mb=book.summary.peak_memory_mb or None,
        tokens_in=llm.tokens_in if llm else None,
        tokens_out=llm.tokens_out if llm else None,
        calls=llm.calls if llm else None,
        usd=sum(row.usd for row in book.usage.values()) if book.usage else None,
        energy_wh=None,
    )


def decided(book: Book) -> tuple[list[Decided], list[tuple[str, int]]]:
    """The newest `DECISIONS_SHOWN` decisions, and (kind and action, how many) over all of them."""
    owners = {image.id: image.prompt_id for image in book.images}
    rows = []
    for (kind, subject), row in list(book.decisions.items())[-DECISIONS_SHOWN:]:
        prompt = book.prompts.get(owners.get(subject, subject))
        rows.append(Decided(kind, subject, row.action, prompt.text if prompt else "", row.note))
    counts = Counter(f"{row.kind} {row.action}" for row in book.decisions.values())
    return rows, counts.most_common()


def _total(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of all rows that say theirs; None where none does."""
    seconds = [v for v in (finite(row.get("seconds")) for row in rows) if v is not None]
    return sum(seconds) if seconds else None
