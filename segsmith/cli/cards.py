"""What a person is shown of a prompt, a verdict, labels or a mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from segsmith.cli.console import shown

if TYPE_CHECKING:
    from segsmith.agents.run_facts import RunFacts
    from segsmith.graph.deps import Deps
    from segsmith.memory.ledger import DecisionKind

BAR = 20


def card(deps: Deps, facts: RunFacts, kind: DecisionKind, subject: str, console: Console) -> Iterator[Any]:
    """The renderables that show an item, the picture first where the terminal can show one."""
    if kind == "prompt":
        text, *rest = facts.prompt_lines(subject)
        yield f"[b]{shown(text)}[/b]"
        yield from (f"[dim]{shown(line)}[/dim]" for line in rest)
        return
    if console.is_terminal and console.color_system:
        yield _picture(deps, kind, subject)
    yield f"[dim]{shown(str(deps.run.mask(subject) if kind == 'mask' else deps.run.image(subject)))}[/dim]"
    yield f"prompt: {shown(facts.prompts[facts.images[subject].prompt_id].text)}"
    if kind == "verdict":
        verdict = facts.verdict_line(subject)
        colour = "green" if facts.verdicts[subject].accepted else "red"
        yield from _scores(facts, subject)
        yield f"[{colour}]{shown(verdict)}[/{colour}]"
    elif kind == "label":
        yield from map(shown, facts.label_lines(subject))
    else:
        yield f"labels: {shown(', '.join(facts.labels['relabel'][subject].classes))}"
        yield from map(shown, facts.mask_lines(subject))


def life(facts: RunFacts, image_id: str) -> Table:
    """All that is known of an image, as a table of sections."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="b", vertical="top", no_wrap=True)
    table.add_column(overflow="fold")
    for title, lines in facts.life(image_id).items():
        table.add_row(shown(title), "\n".join(map(shown, lines)))
    return table


def _scores(facts: RunFacts, image_id: str) -> Iterator[str]:
    threshold = facts.verdicts[image_id].scores.get("threshold")
    for name, share in facts.top_classes(image_id):
        asked = name == facts.target(image_id)
        against = f"  threshold {threshold:.3f}" if asked and threshold is not None else ""
        bar = "█" * round(BAR * share)
        yield f"  {shown(name):14} {share:.3f}  [{'green' if asked else 'dim'}]{bar:{BAR}}[/]{against}"


def _picture(deps: Deps, kind: DecisionKind, subject: str) -> Any:
    from segsmith.cli.pictures import Picture, overlay
    from segsmith.memory.store import read_image, read_index_map

    try:
        image = read_image(deps.run.image(subject))
        return Picture(overlay(image, read_index_map(deps.run.mask(subject))) if kind == "mask" else image)
    except OSError as error:
        return f"[yellow]the picture cannot be read: {shown(str(error))}[/yellow]"
