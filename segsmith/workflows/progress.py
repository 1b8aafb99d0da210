"""How events become visible: bars and lines on a console, the caller's own callback, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from segsmith.events import (
    Downloading,
    EpochFinished,
    Event,
    ImagesDrawn,
    MasksMade,
    Notice,
    RealImagesRead,
    RoundJudged,
    RoundPlanned,
    SamTried,
    SessionStarted,
    Stage,
    StageStarted,
    WeakLabelsRead,
    WorkersBusy,
)
from segsmith.terminal_text import shown
from segsmith.types import ClassTally

STAGES = {
    Stage.HEARING: "asking the witnesses about the accepted images",
    Stage.RELABELLING: "relabelling each image with a ViT that was not trained on it",
    Stage.SEGMENTING: "making masks: seeds, points on the skeleton, SAM",
    Stage.EXPORTING: "writing the dataset",
    Stage.TRAINING: "training the segmenter",
    Stage.EVALUATING: "evaluating the segmenter",
    Stage.SEEDING: "training the patch classifier on the image labels",
    Stage.TRYING_SAM: "trying SAM on drawn labels that it is not shown",
    Stage.REFINING: "refining the masks",
}
ROUTES = {"need_prompts": "writing prompts", "draw": "drawing images, and writing the next prompts"}
NAMED = 10
"""Files and classes printed of each problem; the rest is counted."""
LONGEST_NAME = 40
QUIET_S = 1.5
"""Seconds without news after which a line counts them."""

Callback = Callable[[Event], None]


class Display(Protocol):
    """Where the events of a workflow go."""

    def show(self, event: Event) -> None:
        """Show one event."""
        ...

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Keep the screen free, for a conversation with the reviewer."""
        ...

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class Screen:
    """The consoles of a `ConsoleDisplay`. Standard output may be a terminal, a notebook or a file."""

    out: Console = field(default_factory=lambda: Console(highlight=False))
    warnings: Console = field(default_factory=lambda: Console(highlight=False, stderr=True))


def open_display(on_event: Callback | None, progress: bool, screen: Screen | None = None) -> Display:
    """The caller's callback if there is one, else bars and lines on a screen, or nothing without `progress`."""
    if on_event is not None:
        return CallbackDisplay(on_event)
    if not progress:
        return CallbackDisplay(lambda event: None)
    return ConsoleDisplay(screen or Screen())


class CallbackDisplay:
    """Passes every event to a function."""

    def __init__(self, on_event: Callback) -> None:
        self.show = on_event

    @contextmanager
    def hidden(self) -> Iterator[None]:
        yield

    def __enter__(self) -> CallbackDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class ConsoleDisplay:
    """One bar per class (accepted of wanted, yield), one line for the current stage, images/s and time left.

    On a console that is neither a terminal nor a notebook it prints one line per judged round and per stage.
    """

    def __init__(self, screen: Screen) -> None:
        self._console = console = screen.out
        self._is_live = console.is_terminal or console.is_jupyter
        self._warnings = console if self._is_live else screen.warnings
        self._live: Live | None = None
        self._build = _progress(
            console,
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[note]}"),
        )
        self._files = _progress(
            console,
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TimeRemainingColumn(),
        )
        self._stage = _progress(
            console,
            TextColumn("{task.fields[indent]}"),
            BarColumn(bar_width=28),
            TextColumn("{task.description}"),
            _Silence(),
        )
        self._run = Group(self._build, self._stage)
        """The line of the stage has a table of its own, so that its length moves no bar."""
        self._shown: RenderableType = self._run
        self._indent = ""
        self._bars: dict[str, TaskID] = {}
        self._line: TaskID | None = None
        self._file_bars: dict[tuple[str, str], TaskID] = {}
        self._models: set[str] = set()
        self._wanted: Mapping[str, int] = {}
        self._drawing_since: float | None = None
        self._started = time.monotonic()
        self._accepted_at_start = 0

    def __enter__(self) -> ConsoleDisplay:
        self._say("starting", quiet=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._line is not None:
            self._stage.update(self._line, visible=False)
        self._stop()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bars off the screen."""
        was_live = self._live is not None
        if self._live:
            self._live.transient = True
        self._stop()
        yield
        if was_live:
            self._start(self._shown)

    def show(self, event: Event) -> None:
        """Render one event."""
        handler: Callable[[Event], None] | None = getattr(self, f"_on_{event.kind}", None)
        if handler:
            handler(event)

    # -- before a build -------------------------------------------------------------------------------

    def _on_notice(self, event: Notice) -> None:
        if event.warning:
            self._warnings.print(f"[yellow]{shown(event.message)}[/yellow]", soft_wrap=True)
        else:
            self._print(event.message)

    def _on_download(self, event: Downloading) -> None:
        if event.model not in self._models:
            self._models.add(event.model)
            self._console.print(f"downloading {event.role}: {shown(event.model)}", soft_wrap=True)
        if not self._is_live:
            return
        self._start(self._files)
        key = (event.model, event.file)
        if key not in self._file_bars:
            name = (
                event.file if len(event.file) <= LONGEST_NAME else f"...{event.file[-(LONGEST_NAME - 3) :]}"
            )
            self._file_bars[key] = self._files.add_task(shown(name), total=event.total or None)
        self._files.update(self._file_bars[key], completed=event.done, total=event.total or None)

    def _on_real_images(self, event: RealImagesRead) -> None:
        self._list("files skipped or converted", event.skipped)
        counts = ", ".join(f"{split} {n}" for split, n in event.splits.items())
        labels = "with label maps" if event.masked else "with image labels only"
        self._print(f"{sum(event.splits.values())} real images ({counts}), {labels}")
        table = Table(box=None, pad_edge=False)
        for heading in ("class", "real images, train", "images to add"):
            table.add_column(heading, justify="left" if heading == "class" else "right")
        for name, count in event.in_training.items():
            table.add_row(shown(name), str(count), str(event.to_add[name]))
        self._console.print(table)
        self._list(
            "pairs of classes that no real image shows together",
            [f"{one} + {other}" for one, other in event.never_together],
        )

    def _on_weak_labels(self, event: WeakLabelsRead) -> None:
        counts = ", ".join(f"{split} {n}" for split, n in event.splits.items())
        self._print(f"weak labels: {event.label_kind}; images: {counts}")
        if not event.zero_is_drawn:
            self._print("index 0 means undrawn: no pixel of split train is known to be background")
        if not event.background:
            self._print(
                "background is no class of this dataset: no pixel is drawn as 0, so undecided pixels are 255"
            )
        elif not event.zero_is_drawn:
            self._print("pixels outside every mask become background; --no-background leaves them at 255")
        self._list("files skipped, repaired or converted", event.problems)
        self._list("training images without a label", event.unlabelled)
        self._list("classes that no training image shows", event.never_shown)

    def _on_sam_tried(self, event: SamTried) -> None:
        agreeing = event.masks - event.crossing - event.partial
        self._print(
            f"SAM on drawn labels that it was not shown: {agreeing} of {event.masks} masks agree, {event.crossing} "
            f"cover a drawn component of another class, {event.partial} miss most of their own"
        )
        if not event.used:
            self._print(
                f"SAM is not used: fewer than {event.level:.0%} of its masks agree (labeler.min_sam_agreement). "
                "Drawn labels are spread along colours instead"
            )

    # -- a build --------------------------------------------------------------------------------------

    def _on_start(self, event: SessionStarted) -> None:
        self._wanted = event.wanted
        self._accepted_at_start = sum(tally.accepted for tally in event.tallies.values())
        self._started = time.monotonic()
        if event.resumed:
            self._print(f"resuming; {self._accepted_at_start} images are accepted already")
        for name, wanted in event.wanted.items():
            self._bars[name] = self._build.add_task(shown(name), total=wanted, note="")
        self._indent = " " * max(map(cell_len, map(shown, event.wanted)), default=0)
        self._update_bars(event.tallies)
        self._say("starting", quiet=True)

    def _on_route(self, event: RoundPlanned) -> None:
        if event.reason in ROUTES:
            self._say(ROUTES[event.reason], quiet=True)
        if event.reason == "draw":
            self._drawing_since = time.monotonic()

    def _on_draw(self, event: ImagesDrawn) -> None:
        rate = event.done / (time.monotonic() - self._drawing_since) if self._drawing_since else 0.0
        text = f"drawing {event.done}/{event.total} at {rate:.0f} images/s"
        self._say(text, event.done, event.total, quiet=True)

    def _on_workers(self, event: WorkersBusy) -> None:
        rates = event.per_worker.values()
        each = f" ({min(rates):.1f} to {max(rates):.1f} each)" if rates else ""
        text = (
            f"{event.workers} workers, {event.in_flight} units in flight, "
            f"{event.images_per_second:.1f} images/s{each}"
        )
        aside = f", {event.set_aside} set aside" if event.set_aside else ""
        self._say(f"{text}{aside}", event.done, event.total, quiet=event.done + event.set_aside < event.total)

    def _on_judge(self, event: RoundJudged) -> None:
        self._update_bars(event.tallies)
        accepted = sum(tally.accepted for tally in event.tallies.values())
        drawn = sum(tally.drawn for tally in event.tallies.values())
        wanted = sum(self._wanted.values())
        left = self._time_left(accepted, wanted)
        self._say(f"judged: {accepted}/{wanted} accepted of {drawn} drawn{left}", accepted, wanted)

    def _on_stage(self, event: StageStarted) -> None:
        self._say(STAGES[event.stage])

    def _on_segment(self, event: MasksMade) -> None:
        self._say(f"masks {event.done}/{event.total}", event.done, event.total, quiet=True)

    def _on_epoch(self, event: EpochFinished) -> None:
        quality = f", mIoU on split val {event.miou:.3f}" if event.miou is not None else ""
        step = f", step {event.step}/{event.steps}" if event.steps else ""
        self._say(
            f"training, epoch {event.epoch}/{event.epochs}{step}, loss {event.loss:.3f}{quality}",
            event.epoch,
            event.epochs,
        )

    # -- drawing --------------------------------------------------------------------------------------

    def _update_bars(self, tallies: Mapping[str, ClassTally]) -> None:
        for name, task in self._bars.items():
            tally = tallies.get(name, ClassTally())
            share = f"  yield {tally.accepted / tally.judged:4.0%}" if tally.judged else ""
            note = f"{tally.accepted:>4}/{self._wanted[name]}{share}"
            self._build.update(task, completed=tally.accepted, note=note)

    def _time_left(self, accepted: int, wanted: int) -> str:
        gained = accepted - self._accepted_at_start
        if gained <= 0 or accepted >= wanted:
            return ""
        seconds = (time.monotonic() - self._started) / gained * (wanted - accepted)
        minutes = f"about {seconds / 60:.0f} min" if seconds > 60 else "under a minute"
        return f", {minutes} of drawing left"

    def _say(self, text: str, done: int | None = None, total: int | None = None, quiet: bool = False) -> None:
        """Replace the line of the current stage; without a live screen print it, unless it is `quiet`."""
        if self._is_live:
            if self._line is None:
                self._line = self._stage.add_task("", total=None, indent="", since=0.0)
            self._stage.update(
                self._line,
                description=shown(text),
                completed=done or 0,
                total=total,
                indent=self._indent,
                since=time.monotonic(),
            )
            self._start(self._run)
        elif not quiet:
            self._print(text)

    def _list(self, what: str, names: Sequence[str]) -> None:
        """How many, and the first of them."""
        if not names:
            return
        self._warnings.print(f"[yellow]{what}[/yellow]: {len(names)}", soft_wrap=True)
        for name in names[:NAMED]:
            self._warnings.print(f"  {shown(name)}", soft_wrap=True)
        if len(names) > NAMED:
            self._warnings.print(f"  ... and {len(names) - NAMED} more")

    def _print(self, text: str) -> None:
        self._console.print(shown(text), soft_wrap=True)

    def _start(self, bars: RenderableType) -> None:
        """Put bars on the screen in place of those that are there."""
        if self._live is not None and self._shown is bars:
            return
        if self._live:
            self._live.transient = self._shown is self._run  # finished downloads stay on the screen
        self._stop()
        self._shown = bars
        # A new `Live` each time: one that starts again would overwrite the lines printed in between.
        self._live = Live(bars, console=self._console, refresh_per_second=10)
        self._live.start()

    def _stop(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None


class _Silence(ProgressColumn):
    """How long a line has not changed, once that is `QUIET_S`."""

    max_refresh = None

    def render(self, task: Task) -> Text:
        seconds = time.monotonic() - task.fields["since"]
        return Text(f"{seconds:.0f} s" if seconds >= QUIET_S else "", style="dim")


def _progress(console: Console, *columns: ProgressColumn) -> Progress:
    return Progress(*columns, console=console, auto_refresh=False)
