"""The live picture of a build, drawn on the console that the CLI hands over."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from segsmith.types import ClassTally

STAGES = {
    "relabelling": "relabelling every picture with a ViT that did not train on it",
    "segmenting": "masks: seeds, skeleton points, SAM",
    "exporting": "writing the dataset",
    "training": "training the segmenter",
    "evaluating": "evaluating",
}


class BuildProgress:
    """One bar per class (accepted over quota, yield), one line for what goes on, images/s and time left.

    Where the console is no terminal it prints a line per judged round and per stage instead.
    """

    def __init__(self, console: Console, quotas: Mapping[str, int]) -> None:
        self._console = console
        self._on_screen: Live | None = None
        self._quotas = quotas
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[note]}"),
            console=console,
            auto_refresh=False,
        )
        self._bars: dict[str, TaskID] = {
            name: self._progress.add_task(escape(name), total=quota, note="")
            for name, quota in quotas.items()
        }
        self._line = self._progress.add_task("[dim]starting[/dim]", total=None, note="")
        self._drawing_s = 0.0
        self._drawn = 0
        self._since: float | None = None
        self._started = time.monotonic()
        self._accepted_at_start = 0

    def __enter__(self) -> BuildProgress:
        self.unhide()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.update(self._line, visible=False)
        if self._on_screen:
            self._on_screen.stop()

    def hide(self) -> None:
        """Take the live picture off the screen, for a conversation."""
        if self._on_screen:
            self._on_screen.transient = True
            self._on_screen.stop()
            self._on_screen = None

    def unhide(self) -> None:
        """Put the live picture on the screen, if that is a terminal."""
        if self._console.is_terminal:
            # A new one: a `Live` that starts again would overwrite as many lines as it had left.
            self._on_screen = Live(self._progress, console=self._console, refresh_per_second=10)
            self._on_screen.start()

    def show(self, event: Mapping[str, Any]) -> None:
        """Take one event of `build_run`."""
        handler = getattr(self, f"_on_{event['kind']}", None)
        if handler:
            handler(event)

    def _on_start(self, event: Mapping[str, Any]) -> None:
        tallies = event["tallies"]
        self._accepted_at_start = sum(t.accepted for t in tallies.values())
        if event["resumed"]:
            self._console.print(f"going on: {self._accepted_at_start} images are accepted already")
        self._tallies(tallies)

    def _on_route(self, event: Mapping[str, Any]) -> None:
        words = {"need_prompts": "writing prompts", "draw": "drawing, and writing the next prompts"}
        if event["reason"] in words:
            self._say(words[event["reason"]], quiet=True)
        if event["reason"] == "draw":
            self._since, self._drawn = time.monotonic(), 0

    def _on_draw(self, event: Mapping[str, Any]) -> None:
        rate = event["done"] / (time.monotonic() - self._since) if self._since else 0.0
        self._say(
            f"drawing {event['done']}/{event['total']} at {rate:.0f} images/s", event["done"], event["total"],
            quiet=True,
        )  # fmt: skip

    def _on_judge(self, event: Mapping[str, Any]) -> None:
        self._tallies(event["tallies"])
        accepted = sum(t.accepted for t in event["tallies"].values())
        drawn = sum(t.drawn for t in event["tallies"].values())
        wanted = sum(self._quotas.values())
        left = self._time_left(accepted, wanted)
        self._say(f"judged: {accepted}/{wanted} accepted of {drawn} drawn{left}", accepted, wanted)

    def _on_stage(self, event: Mapping[str, Any]) -> None:
        self._say(STAGES[event["name"]])

    def _on_segment(self, event: Mapping[str, Any]) -> None:
        self._say(f"masks {event['done']}/{event['total']}", event["done"], event["total"], quiet=True)

    def _on_epoch(self, event: Mapping[str, Any]) -> None:
        miou = event.get("val_miou")
        quality = f", held-out mIoU {miou:.3f}" if miou is not None else ""
        self._say(
            f"training, epoch {event['epoch']}/{event['epochs']}, loss {event['loss']:.3f}{quality}",
            event["epoch"],
            event["epochs"],
            quiet=event["epoch"] < event["epochs"],
        )

    def _tallies(self, tallies: Mapping[str, ClassTally]) -> None:
        for name, task in self._bars.items():
            tally = tallies.get(name, ClassTally())
            judged, accepted = tally.judged, tally.accepted
            share = f"  yield {accepted / judged:4.0%}" if judged else ""
            self._progress.update(task, completed=accepted, note=f"{accepted:>4}/{self._quotas[name]}{share}")

    def _time_left(self, accepted: int, wanted: int) -> str:
        gained = accepted - self._accepted_at_start
        if gained <= 0 or accepted >= wanted:
            return ""
        seconds = (time.monotonic() - self._started) / gained * (wanted - accepted)
        return (
            f", about {seconds / 60:.0f} min of drawing left"
            if seconds > 60
            else ", under a minute of drawing left"
        )

    def _say(self, text: str, done: int | None = None, total: int | None = None, quiet: bool = False) -> None:
        if self._on_screen:
            self._progress.update(self._line, description=escape(text), completed=done or 0, total=total)
        elif not quiet:
            self._console.print(text, soft_wrap=True)
