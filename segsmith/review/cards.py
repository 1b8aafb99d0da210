"""How a prompt, a verdict, labels or a mask is shown to the reviewer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from segsmith.datasets.palette import VOID
from segsmith.files import read_image, read_index_map
from segsmith.memory.ledger import DecisionKind
from segsmith.review.decisions import changed_from
from segsmith.review.facts import RunFacts
from segsmith.review.reviewed_run import ReviewedRun
from segsmith.review.terminal_image import TerminalImage, bright_palette, fitting, overlay
from segsmith.terminal_text import shown

BAR = 8
"""Characters of the bar of a probability of 1."""
Row = tuple[str, str]
"""A title, and the rich markup beside it."""


def card(
    reviewed: ReviewedRun, facts: RunFacts, kind: DecisionKind, subject: str, console: Console
) -> Iterator[Any]:
    """The renderables that show an item; in a terminal with colours the image stands beside its facts."""
    if kind == "prompt":
        yield _grid(_prompt_rows(facts, subject))
        return
    facts_beside = _grid(_rows(reviewed, facts, kind, subject))
    if console.is_terminal and console.color_system:
        both = Table.grid(padding=(0, 2, 0, 0))
        both.add_row(_image(reviewed, kind, subject, console), facts_beside)
        yield both
    else:
        yield facts_beside
    path = reviewed.run.mask(subject) if kind == "mask" else reviewed.run.image(subject)
    yield f"[dim]{shown(str(path))}[/dim]"


def sections(told: Mapping[str, Sequence[str]]) -> Table:
    """Titles with their lines beside them, wrapped at words."""
    return _grid((title, "\n".join(map(shown, lines))) for title, lines in told.items())


def _grid(rows: Iterable[Row]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", vertical="top", no_wrap=True)
    table.add_column(overflow="fold")
    for title, text in rows:
        table.add_row(shown(title), text)
    return table


def _prompt_rows(facts: RunFacts, subject: str) -> Iterator[Row]:
    yield "prompt", f"[b]{shown(facts.prompts[subject].text)}[/b]"
    for title, line in facts.prompt_grounds(subject).items():
        yield title, shown(line)
    yield from _decided(facts, "prompt", subject)


def _rows(reviewed: ReviewedRun, facts: RunFacts, kind: DecisionKind, subject: str) -> Iterator[Row]:
    yield "prompt", shown(facts.prompts[facts.images[subject].prompt_id].text)
    if kind == "verdict":
        yield "CLIP", "\n".join(_scores(facts, subject))
        colour = "green" if facts.verdicts[subject].accepted else "red"
        yield "verdict", f"[{colour}]{shown(facts.verdict_line(subject))}[/{colour}]"
    elif kind == "label":
        yield from ((source, shown(line)) for source, line in facts.label_sources(subject).items())
    else:
        yield "labels", shown(", ".join(facts.labels["relabel"][subject].classes))
        yield "mask", "\n".join(_legend(facts, subject))
        yield "outlines", shown(facts.mask_origin(subject))
    if before := changed_from(reviewed.ledger, kind, subject):
        yield "before", f"[yellow]it was {shown(before)} when you last saw it[/yellow]"
    yield from _decided(facts, kind, subject)


def _decided(facts: RunFacts, kind: DecisionKind, subject: str) -> Iterator[Row]:
    """The reviewer's earlier decision, shown after `back` and in a later session."""
    for line in facts.decisions(kind, subject):
        yield "you", f"[b cyan]{shown(line.partition(': ')[2])}[/b cyan]"


def _scores(facts: RunFacts, image_id: str) -> Iterator[str]:
    threshold = facts.verdicts[image_id].scores.get("threshold")
    top = facts.top_classes(image_id)
    wide = max((len(name) for name, _ in top), default=0)
    for name, probability in top:
        asked = name == facts.target(image_id)
        needed = f" needs {threshold:.3f}" if asked and threshold is not None else ""
        bar = "█" * round(BAR * probability)
        yield f"{shown(f'{name:{wide}}')} {probability:.3f} [{'green' if asked else 'dim'}]{bar:{BAR}}[/]{needed}"


def _legend(facts: RunFacts, image_id: str) -> Iterator[str]:
    """Colour, class and share of the image's pixels for each class of a mask, as in the image beside it."""
    palette = bright_palette()
    colours = {name: palette[n] for n, name in enumerate(facts.classes, 1)} | {"unknown": palette[VOID]}
    for name, share in facts.mask_shares(image_id).items():
        red, green, blue = colours[name]
        yield f"[rgb({red},{green},{blue})]■[/] {shown(name)} {share:.1%}"


def _image(reviewed: ReviewedRun, kind: DecisionKind, subject: str, console: Console) -> Any:
    try:
        image = read_image(reviewed.run.image(subject))
        pixels = overlay(image, read_index_map(reviewed.run.mask(subject))) if kind == "mask" else image
    except OSError as error:
        return f"[yellow]the image cannot be read: {shown(str(error))}[/yellow]"
    height, width = pixels.shape[:2]
    return TerminalImage(pixels, fitting(height, width, console.width, console.height))
