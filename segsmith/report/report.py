"""One self-contained ``report.html``: what was asked, what came out, and why."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Iterator
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
from segsmith.memory.real_images import RealSet
from segsmith.memory.run_folder import RunFolder
from segsmith.report import cards, charts, costs, prompt_map, sheets, statistics, theme
from segsmith.report.statistics import Book, finite, held_out
from segsmith.types import Evaluation

SCRIPTS = ("base", "marks", "sheets", "images", "lightbox", "prompts", "nav")


def build_report(run: RunFolder, ledger: Ledger, config: Config) -> Path:
    """Write ``report.html`` into the run folder and return its path.

    The page needs no network and no other file. A run that stopped early gives a page that says in
    place of each missing section what is missing. Class names, prompts and reasons are treated as
    hostile text: they are escaped, and the page's policy lets no script and no style in but its own.
    """
    book = statistics.read_book(ledger)
    write_atomic(run.report, "".join(render(run, book, config)).encode())
    return run.report


def render(run: RunFolder, book: Book, config: Config) -> Iterator[str]:
    """The page as HTML, piece by piece: first all that one sees at once, then the sheets of pictures."""
    rooms = cards.hang(run, book, config.classes)
    shelf = sheets.fill_shelf(book, config.classes, first=rooms.ids)
    script = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    css = _asset("style.css") + theme.style(config.classes)
    rows = statistics.class_rows(book, config)
    decisions, decision_counts = costs.decided(book)
    yield (
        _environment(config)
        .get_template("page.html.j2")
        .render(
            book=book,
            config=config,
            css=Markup(css),
            css_digest=_digest(css),
            script=Markup(script),
            script_digest=_digest(script),
            rooms=rooms,
            when=_when(book.last_event),
            wanted=sum(config.wanted.values()),
            enlarged=RealSet.open(run.real),
            prompt_steps=statistics.prompt_funnel(book),
            image_steps=statistics.image_funnel(book),
            rejects=statistics.reject_reasons(book),
            drops=statistics.drop_reasons(book),
            rows=rows,
            gaps=statistics.gaps(rows, book),
            histograms=_histograms(book, config),
            visits=statistics.visit_map(book),
            spent=costs.spent(book),
            decisions=decisions,
            decision_counts=decision_counts,
            config_toml=_config_text(run, config),
            **_data(run, book, config, shelf),
            **_training(book),
        )
    )
    for number, sheet in enumerate(sheets.sheets(shelf, run, book, config.classes)):
        yield f'\n<script type="application/json" id="sheet-{number}">{htmlsafe_json_dumps(sheet)}</script>'
    yield "\n</body>\n</html>\n"


def _data(run: RunFolder, book: Book, config: Config, shelf: sheets.Shelf) -> dict[str, Any]:
    """The map of the prompts, and the two tables the script works on."""
    memory = Path(config.memory) if config.memory else run.memory
    admitted = [p.id for p in book.prompts.values() if p.status == "admitted"]
    found = prompt_map.prompt_map(book, config.classes, stored_vectors(memory, admitted))
    table = prompt_map.prompt_table(book, config.classes, found.points if found else {})
    place = {prompt_id: k for k, prompt_id in enumerate(table["id"])}
    # A ledger older than run ids still keeps the marks of its page apart from those of another run's.
    run_id = book.run_id or make_id("r", *(image.id for image in book.images))
    index = {"run": run_id, **sheets.index_of(shelf, book, config.classes, place)}
    return {"map": found, "prompt_table": table, "index": index}


def _histograms(book: Book, config: Config) -> list[Any]:
    probabilities = statistics.probabilities(book)
    found = []
    for name in config.classes:
        accepted, rejected = probabilities.get(name, ([], []))
        if accepted or rejected:
            chart = charts.histogram(accepted, rejected, finite(book.thresholds.get(name)), name)
            found.append((name, len(accepted), len(rejected), chart))
    return found


def _training(book: Book) -> dict[str, Any]:
    curves = []
    for key, name, top in (("loss", "Training loss", None), ("val_miou", "Validation mIoU", 1.0)):
        values = ((e["epoch"], finite(e.get(key))) for e in book.epochs)
        points = [(float(x), y) for x, y in values if y is not None]
        if points:
            curves.append((name, charts.line_chart(points, name, top=top)))
    val, real = held_out(book), book.evaluation.get("test_set")
    val_iou, real_iou = (score.iou if score else {} for score in (val, real))
    names = list(dict.fromkeys([*val_iou, *real_iou]))
    bars = [(n, finite(val_iou.get(n)), finite(real_iou.get(n))) for n in names]
    confusions = [
        (title, confusion)
        for title, score in (("test world", real), ("own validation", val))
        if score and (confusion := _confusion(score))
    ]
    return {"curves": curves, "iou_bars": bars, "confusions": confusions, "val": val, "real": real}


def _confusion(score: Evaluation) -> list[tuple[str, list[tuple[str, float]]]]:
    """Rows of (true class, [(predicted class, share of the true pixels)])."""
    names = score.classes
    return [
        (name, [(other, statistics.ratio(n, sum(row)) or 0.0) for other, n in zip(names, row, strict=False)])
        for name, row in zip(names, score.confusion, strict=False)
    ]


def _config_text(run: RunFolder, config: Config) -> str:
    try:
        return run.config.read_text("utf-8")
    except OSError:
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
        step=theme.step,
        index=lambda name: indices.get(name, 0),
    )
    return environment


def _percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _when(at: float | None) -> str:
    if at is None:
        return ""
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (resources.files("segsmith.report") / "page" / name).read_text("utf-8")
