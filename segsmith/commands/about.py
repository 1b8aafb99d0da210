"""Commands that tell about segsmith itself: `nouns`, `diagram`."""

from __future__ import annotations

import typer

from segsmith.commands.console import app, out


@app.command()
def nouns() -> None:
    """List every class the simulator can draw."""
    from segsmith.world.nouns import NOUNS

    out.print(", ".join(sorted(NOUNS)))


@app.command()
def diagram() -> None:
    """Print the agents' graph as Mermaid."""
    from segsmith.graph.diagram import mermaid

    typer.echo(mermaid())
