"""``report.html``: one self-contained page that says what was asked for, what came out, and why."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from segsmith.config import Config, config_toml
from segsmith.files import write_atomic
from segsmith.ids import make_id
from segsmith.memory.ledger import Ledger
from segsmith.memory.prompt_memory import stored_vectors
from segsmith.memory.run_folder import RunFolder
from segsmith.report import charts, prompt_map, statistics
from segsmith.report.cards import make_cards
from segsmith.report.reader import finite
from segsmith.report.run_data import ProbabilityBins, RunData, read_run
from segsmith.report.sheets import Selection, arrange, image_index, image_sheets
from segsmith.report.theme import percent_step, theme_css
from segsmith.types import Evaluation

SCRIPTS = ("base", "marks", "sheets", "images", "lightbox", "prompts", "nav")
HELD_OUT = {
    "synthetic_val": "held-out generated images",
    "real_val": "held-out real images",
    "real_val_guessed": "held-out real images, against masks that the models made",
}
TEST_SET = "simulator test set"


@dataclass(frozen=True)
class Histogram:
    """A class's chart of probabilities, and how many images are in it."""

    class_name: str
    accepted: int
    rejected: int
    chart: Markup


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix: rows of (true class, [(predicted class, share of the true pixels in [0, 1])])."""

    title: str
    rows: list[tuple[str, list[tuple[str, float]]]]


def build_report(run: RunFolder, ledger: Ledger, config: Config) -> Path:
    """Write ``report.html`` into the run folder and return its path.

    The page needs no network and no other file, and the same run gives the same bytes. For a run that stopped early
    or is damaged the page says what is missing. Class names, prompts and reasons are treated as hostile text: they
    are escaped, and the page's content policy allows no script and no style but its own. The page shows the run's
    command and ``run.toml`` as recorded, with the paths in them; it adds no path of this machine.
    """
    page = "".join(render(run, read_run(run, ledger), config))
    run.clean_up()
    # Lone surrogates, which JSON in a damaged ledger can hold, have no UTF-8 form.
    write_atomic(run.report, page.encode(errors="replace"))
    return run.report


def render(run: RunFolder, data: RunData, config: Config) -> Iterator[str]:
    """The page as HTML, piece by piece: first everything that is visible at once, then the sheets of images."""
    cards = make_cards(run, data, config.classes)
    selection = arrange(data, config.classes)
    script = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    css = _asset("style.css") + theme_css(config.classes)
    rows = statistics.class_rows(data, config)
    yield (
        _environment(config)
        .get_template("page.html.j2")
        .render(
            data=data,
            config=config,
            css=Markup(css),
            css_digest=_digest(css),
            script=Markup(script),
            script_digest=_digest(script),
            cards=cards,
            when=_when(data.last_event),
            wanted=sum(config.wanted.values()),
            prompt_steps=statistics.prompt_funnel(data),
            image_steps=statistics.image_funnel(data),
            reject_reasons=statistics.reject_reasons(data),
            undrawn_reasons=statistics.undrawn_reasons(data),
            drop_reasons=statistics.drop_reasons(data),
            rows=rows,
            shortfalls=statistics.shortfalls(rows, data),
            histograms=_histograms(data, config),
            visits=statistics.visit_counts(data),
            costs=statistics.costs(data),
            config_toml=_config_text(run, config),
            **_prompts_and_index(run, data, config, selection),
            **_training(data),
        )
    )
    for number, sheet in enumerate(image_sheets(selection, run, data, config.classes)):
        yield f'\n<script type="application/json" id="sheet-{number}">{htmlsafe_json_dumps(sheet)}</script>'
    yield "\n</body>\n</html>\n"


def _prompts_and_index(run: RunFolder, data: RunData, config: Config, selection: Selection) -> dict[str, Any]:
    """The map of the prompts, and the two tables that the page's script works on."""
    memory = Path(config.memory) if config.memory else run.memory
    admitted = [p.id for p in data.prompts.values() if p.status == "admitted"]
    found = prompt_map.prompt_map(data, config.classes, stored_vectors(memory, admitted))
    table = prompt_map.prompt_table(data, config.classes, found.points if found else {})
    place = {prompt_id: k for k, prompt_id in enumerate(table["id"])}
    # The browser stores marks by run id. A ledger from before run ids gets one that differs from other runs'.
    run_id = data.run_id or make_id("r", *(image.id for image in selection.images))
    index = {"run": run_id, **image_index(selection, data, config.classes, place)}
    return {"map": found, "prompt_table": table, "index": index}


def _histograms(data: RunData, config: Config) -> list[Histogram]:
    probabilities = data.image_counts.probabilities
    return [
        Histogram(
            name,
            sum(bins.accepted),
            sum(bins.rejected),
            charts.histogram(bins.accepted, bins.rejected, data.thresholds.get(name), name),
        )
        for name in config.classes
        if (bins := probabilities.get(name, ProbabilityBins())) != ProbabilityBins()
    ]


def _training(data: RunData) -> dict[str, Any]:
    curves = []
    for key, name, top in (("loss", "Training loss", None), ("val_miou", "Validation mIoU", 1.0)):
        values = ((e["epoch"], finite(e.get(key))) for e in data.epochs)
        points = [(float(x), y) for x, y in values if y is not None]
        if points:
            curves.append((name, charts.line_chart(points, name, top=top)))
    held_out, test_set = data.held_out, data.test_set
    scores = [(TEST_SET, test_set), (_held_out_name(data), held_out)]
    names = dict.fromkeys(name for score in (held_out, test_set) if score for name in score.iou)
    return {
        "curves": curves,
        "iou_bars": [
            (name, *(s.iou.get(name) if s else None for s in (held_out, test_set))) for name in names
        ],
        "confusions": [Confusion(t, _confusion_rows(s)) for t, s in scores if s and s.confusion],
        "held_out": held_out,
        "held_out_name": _held_out_name(data),
        "test_set": test_set,
    }


def _held_out_name(data: RunData) -> str:
    if "real_val_guessed" in data.evaluation:
        return HELD_OUT["real_val_guessed"]
    real = data.real_images is not None or "real_val" in data.evaluation
    return HELD_OUT["real_val" if real else "synthetic_val"]


def _confusion_rows(score: Evaluation) -> list[tuple[str, list[tuple[str, float]]]]:
    return [
        (name, [(o, statistics.ratio(n, sum(row)) or 0.0) for o, n in zip(score.classes, row, strict=True)])
        for name, row in zip(score.classes, score.confusion, strict=True)
    ]


def _config_text(run: RunFolder, config: Config) -> str:
    try:
        return run.config.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return config_toml(config)


def _environment(config: Config) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    indices = {name: index for index, name in enumerate(config.classes, 1)}
    environment.filters.update(
        percent=_percent,
        number=_number,
        duration=_duration,
        plural=_plural,
        step=percent_step,
        index=lambda name: indices.get(name, 0),
    )
    return environment


def _percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _when(at: float | None) -> str:
    """The time of the last event; "" where there is none or it is no date."""
    try:
        moment = datetime.datetime.fromtimestamp(at, datetime.UTC) if at is not None else None
    except (OverflowError, OSError, ValueError):
        moment = None
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC" if moment else ""


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (resources.files("segsmith.report") / "page" / name).read_text("utf-8")
