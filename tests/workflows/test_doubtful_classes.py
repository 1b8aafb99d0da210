"""A class that the judge's CLIP does not know is named while images are drawn, at the end, and in the report."""

import re

import numpy as np
import pytest

from segsmith.commands.summary import print_summary
from segsmith.events import Notice, RoundJudged, SessionEnded
from segsmith.testing import InstantEncoder, instant_config, instant_parts
from segsmith.workflows.build import build_run
from segsmith.workflows.run import Run

CLASSES = ("cat", "dog", "bus")


class DoesNotKnow(InstantEncoder):
    """Takes every image of a class for one of another, and a sixth of all others for its own."""

    def __init__(self, classes, unknown):
        super().__init__(classes)
        self._unknown = classes.index(unknown)

    def embed_images(self, images):
        shown = []
        for image in images:
            image = np.array(image)
            if image[0, 0, 0] == self._unknown:
                image[0, 0, 0] = (self._unknown + 1 + int(image[0, 2, 0]) % 2) % len(self._classes)
            elif image[0, 3, 0] % 6 == 0:
                image[0, 0, 0] = self._unknown
            shown.append(image)
        return super().embed_images(shown)


def built(folder, **changes):
    """A run whose encoder does not know dogs, and the events of its build."""
    config = instant_config(CLASSES, 30, **changes)
    parts = instant_parts(config, folder) | {"encoder": DoesNotKnow(CLASSES, "dog")}
    events = list(build_run(config, folder, parts=parts))
    assert isinstance(events[-1], SessionEnded)
    return Run(folder, events[-1]), events


@pytest.fixture(scope="module")
def run_and_events(tmp_path_factory):
    return built(tmp_path_factory.mktemp("run") / "run")


def test_the_build_warns_once_as_soon_as_enough_images_are_there(run_and_events):
    _, events = run_and_events
    doubts = [i for i, e in enumerate(events) if isinstance(e, Notice) and "hardly tells" in e.message]
    assert len(doubts) == 1
    notice = events[doubts[0]]
    assert notice.warning
    assert "images of dog" in notice.message
    rounds = [i for i, e in enumerate(events) if isinstance(e, RoundJudged)]
    assert len(rounds) > 1
    assert doubts[0] < rounds[1]


def test_the_run_the_closing_lines_and_the_report_name_it(run_and_events, capsys):
    run, _ = run_and_events
    assert list(run.doubtful_classes) == ["dog"]
    assert run.doubtful_classes["dog"] < 0.6
    print_summary(run)
    assert re.search(r"hardly tells images of dog .*judge\.clip", capsys.readouterr().out)
    page = run.report.read_text()
    assert "Told apart" in page
    assert f">{run.doubtful_classes['dog']:.2f}<" in page


def test_with_the_judge_off_nothing_is_doubted(tmp_path):
    run, events = built(tmp_path / "run", judge={"enabled": False})
    assert not run.doubtful_classes
    assert not [e for e in events if isinstance(e, Notice) and "hardly tells" in e.message]
