"""The progress display in a terminal: bars keep their place, silence is counted; and Ctrl-C is answered."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from segsmith import cli, events
from segsmith.types import ClassTally
from segsmith.workflows import progress
from segsmith.workflows.progress import ConsoleDisplay, Screen


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=100)


def lines(display):
    coloured = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor")
    coloured.print(display._shown)
    return Text.from_ansi(coloured.file.getvalue()).plain.rstrip("\n").split("\n")


@pytest.fixture
def display():
    with ConsoleDisplay(Screen(terminal(), terminal())) as display:
        yield display


def test_bars_keep_their_place_whatever_the_stage_says(display):
    tallies = {"cat": ClassTally(9, 9, 9, 1), "potted plant": ClassTally(9, 120, 120, 100)}
    display.show(events.SessionStarted(False, {"cat": 10, "potted plant": 200}, tallies))
    columns = set()
    for event in (
        events.RoundPlanned("draw"),
        events.ImagesDrawn(3, 1000),
        events.RoundJudged(tallies),
        events.StageStarted(events.Stage.RELABELLING),
        events.EpochFinished(1, 12, 0.5, 1e-3, 0.5, 1.0, 10.0),
    ):
        display.show(event)
        shown = lines(display)
        assert len(shown) == 3
        columns |= {line.index("━") for line in shown}
    assert len(columns) == 1


def test_silence_is_counted_from_the_start_and_after_each_event(display, monkeypatch):
    now = progress.time.monotonic()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now + 2)
    assert "starting 2 s" in lines(display)[-1]
    display.show(events.StageStarted(events.Stage.TRAINING))
    assert " s" not in lines(display)[-1].split("segmenter")[1]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now + 9)
    assert "training the segmenter 7 s" in lines(display)[-1]


def test_every_epoch_is_a_line_outside_a_terminal():
    console = Console(file=io.StringIO(), width=100)
    with ConsoleDisplay(Screen(console, console)) as display:
        for epoch in (1, 2, 3):
            display.show(events.EpochFinished(epoch, 3, 0.5, 1e-3, 0.25, 1.0, 10.0))
    assert console.file.getvalue().count("mIoU on split val 0.250") == 3
    assert "starting" not in console.file.getvalue()


def test_the_first_ctrl_c_is_answered_and_the_second_stops_at_once(monkeypatch):
    console = Console(file=io.StringIO(), width=100)
    monkeypatch.setattr(cli, "err", console)
    left = []
    monkeypatch.setattr(cli.os, "_exit", left.append)
    interrupt = cli._Interrupt()
    with pytest.raises(KeyboardInterrupt):
        interrupt(2, None)
    assert "finishing this batch" in console.file.getvalue()
    assert left == []
    with pytest.raises(KeyboardInterrupt):
        interrupt(2, None)
    assert left == [cli.INTERRUPTED]
