"""Commands about segsmith itself: `nouns`, `diagram`."""

from __future__ import annotations

import typer

from segsmith.commands.console import app, out


@app.command()
def nouns() -> None:
    """List every class that the simulator can draw, one per line when piped."""
    from segsmith.world.nouns import NOUNS

    if out.is_terminal:
        out.print(", ".join(sorted(NOUNS)))
    else:
        typer.echo("\n".join(sorted(NOUNS)))


@app.command()
def diagram() -> None:
    """Print the graph of the agents as a Mermaid diagram."""
    from segsmith.graph.diagram import mermaid

    typer.echo(mermaid())
