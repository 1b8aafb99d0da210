"""One self-contained ``report.html``: what was asked, what came out, and why."""

from __future__ import annotations

import base64
import datetime
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from segsmith.config import Config, config_toml
from segsmith.memory.ledger import Ledger, PromptRow
from segsmith.memory.store import RunFolder, write_atomic
from segsmith.report import charts, facts, gallery
from segsmith.report.facts import Book, finite
from segsmith.report.pictures import class_colour

PROMPTS_SHOWN = 300
DROPPED_SHOWN = 24


def build_report(run: RunFolder, ledger: Ledger, config: Config) -> Path:
    """Write ``report.html`` into the run folder and return its path.

    The page needs no network and no other file. A run that stopped early gives a page that says in
    place of each missing section what is missing. Class names, prompts and reasons are treated as
    hostile text: they are escaped, and the page's policy lets no script run but its own.
    """
    book = facts.read_book(ledger)
    write_atomic(run.report, render(run, book, config).encode())
    return run.report


def render(run: RunFolder, book: Book, config: Config) -> str:
    """The page as HTML."""
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rows = facts.class_rows(book, config)
    rooms = gallery.hang(run, book, config.classes)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=_percent, number=_number, duration=_duration, colour=_colour(config))
    return environment.from_string(_asset("page.html.j2")).render(
        book=book,
        config=config,
        css=Markup(_asset("style.css")),
        script=Markup(script),
        script_digest=digest,
        rooms=rooms,
        details=rooms.details(),
        when=_when(book.last_event),
        wanted=config.per_class * len(config.classes),
        prompt_steps=facts.prompt_funnel(book),
        image_steps=facts.image_funnel(book),
        rejects=facts.reject_reasons(book),
        drops=facts.drop_reasons(book),
        rows=rows,
        gaps=facts.gaps(rows, book),
        histograms=_histograms(book, config),
        visits=facts.visit_map(book),
        **_prompts(book, config),
        **_training(book),
        config_toml=_config_text(run, config),
    )


def _histograms(book: Book, config: Config) -> list[Any]:
    found = []
    for name in config.classes:
        accepted, rejected = facts.probabilities(book, name)
        if accepted or rejected:
            chart = charts.histogram(accepted, rejected, finite(book.thresholds.get(name)), name)
            found.append((name, len(accepted), len(rejected), chart))
    return found


def _prompts(book: Book, config: Config) -> dict[str, Any]:
    admitted: dict[str, list[PromptRow]] = {name: [] for name in config.classes}
    for prompt in book.prompts.values():
        if prompt.status == "admitted":
            admitted.setdefault(prompt.class_name, []).append(prompt)
    each = max(3, PROMPTS_SHOWN // max(1, len(admitted)))
    dropped = [p for p in book.prompts.values() if p.status == "dropped"]
    return {
        "admitted": [(name, len(rows), rows[:each]) for name, rows in admitted.items() if rows],
        "dropped": dropped[:DROPPED_SHOWN],
        "dropped_total": len(dropped),
    }


def _training(book: Book) -> dict[str, Any]:
    curves = []
    for key, name, top in (("loss", "Training loss", None), ("val_miou", "Validation mIoU", 1.0)):
        values = ((e["epoch"], finite(e.get(key))) for e in book.epochs)
        points = [(float(x), y) for x, y in values if y is not None]
        if points:
            curves.append((name, charts.line_chart(points, name, top=top)))
    val, real = (book.evaluation.get(world) or {} for world in ("synthetic_val", "real"))
    names = list(dict.fromkeys([*val.get("iou", {}), *real.get("iou", {})]))
    bars = [(n, finite(val.get("iou", {}).get(n)), finite(real.get("iou", {}).get(n))) for n in names]
    return {"curves": curves, "iou_bars": bars, "confusion": _confusion(real), "val": val, "real": real}


def _confusion(real: Any) -> list[tuple[str, list[tuple[str, float]]]]:
    """Rows of (true class, [(predicted class, share of the true pixels)])."""
    names, counts = real.get("classes") or [], real.get("confusion") or []
    return [
        (name, [(other, facts.ratio(n, sum(row)) or 0.0) for other, n in zip(names, row, strict=False)])
        for name, row in zip(names, counts, strict=False)
    ]


def _config_text(run: RunFolder, config: Config) -> str:
    try:
        return run.config.read_text("utf-8")
    except OSError:
        return config_toml(config)


def _colour(config: Config) -> Any:
    indices = {name: index for index, name in enumerate(config.classes, 1)}
    return lambda name: class_colour(indices[name]) if name in indices else "#8a8f98"


def _percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _when(at: float | None) -> str:
    if at is None:
        return ""
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _asset(name: str) -> str:
    return (resources.files("segsmith.report") / name).read_text("utf-8")
