"""Commands that read and question a run's ledger: `ledger`, `rejudge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from segsmith.commands.console import app, out, settings_of
from segsmith.errors import SegsmithError
from segsmith.terminal_text import shown


@app.command()
def ledger(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    class_name: Annotated[str, typer.Option("--class", help="only this class")] = "",
    prompts: Annotated[bool, typer.Option("--prompts", help="one line for each admitted prompt")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the same as JSON")] = False,
) -> None:
    """Where a run's pictures went: the funnel, the refusals by reason, class by class, prompt by prompt."""
    from segsmith.graph.context import RunContext
    from segsmith.memory.funnel import read_funnel

    deps = RunContext.open(run)
    if class_name and class_name not in deps.config.classes:
        raise SegsmithError(
            f"This run has no class {class_name!r}.", f"Name one of: {', '.join(deps.config.classes)}."
        )
    book = read_funnel(deps.ledger, (class_name,) if class_name else deps.config.classes)
    deps.close()
    if as_json:
        typer.echo(
            json.dumps(book if prompts else {k: v for k, v in book.items() if k != "prompts"}, indent=1)
        )
        return
    _steps(book)
    _reasons(book)
    if prompts:
        _prompts(book["prompts"])


def _steps(book: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for step in book["steps"]:
        table.add_column(step, justify="right")
    for name, counts in {**book["classes"], "all": book["all"]}.items():
        table.add_row(shown(name), *(str(counts[step]) for step in book["steps"]))
    out.print(table)


def _reasons(book: dict[str, Any]) -> None:
    for title, counts in (
        ("refused pictures", book["image_rejects"]),
        ("dropped or rewritten prompts", book["prompt_rejects"]),
    ):
        said = ", ".join(f"{shown(reason)} {n}" for reason, n in counts.items()) or "none"
        out.print(f"{title}: {said}", soft_wrap=True)


def _prompts(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("prompt", "class", "drawn", "accepted", "text"):
        table.add_column(heading, justify="right" if heading in ("drawn", "accepted") else "left")
    for row in rows:
        table.add_row(
            shown(row["id"]), shown(row["class"]), str(row["drawn"]), str(row["accepted"]), shown(row["text"])
        )
    out.print(table)


@app.command()
def rejudge(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    threshold: Annotated[
        list[str] | None,
        typer.Option(help="probability asked of every class (0.4), or of one (cat=0.4); may be repeated"),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="any setting of the judge, e.g. --set judge.top_k=3")
    ] = None,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="back to the settings the run was started with")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would change")] = False,
) -> None:
    """Decide about every picture again from what was measured; draws nothing and loads no model."""
    from segsmith.agents.judge.agent import record as write_decision
    from segsmith.agents.judge.rejudge import rejudge as judge_again
    from segsmith.memory.ledger import Ledger
    from segsmith.memory.run_config import RunRecord, read_record, write_record
    from segsmith.memory.run_folder import RunFolder

    folder = RunFolder(run)
    if not folder.config.exists():
        raise SegsmithError(f"{run} is not a run folder (no run.toml).", "Start one with `segsmith build`.")
    before = read_record(folder.config)
    changes = _judge_settings(threshold or [], set_ or [], before.config.classes)
    if not changes and not calibrated:
        raise SegsmithError("Nothing to decide by is named.", "Type e.g. --threshold 0.4, or --calibrated.")
    thresholds = {**({} if calibrated else before.rejudged.get("thresholds", {}))}
    kept = {} if calibrated else dict(before.rejudged)
    thresholds |= changes.pop("thresholds", {})
    rejudged = {**kept, **changes, **({"thresholds": thresholds} if thresholds else {})}
    record = RunRecord(before.asked, before.versions, rejudged)
    config = record.config
    with folder.held():
        book = Ledger(folder.ledger)
        try:
            result = judge_again(book, config.classes, config.judge, config.wanted)
            _show_changes(result, config)
            if not dry_run:
                # The settings first: a build that goes on from here would decide by them, too.
                write_record(folder.config, record)
                write_decision(book, result.decision, config.classes, config.judge)
                book.log("rejudged", settings=rejudged, gained=result.gained, lost=result.lost)
        finally:
            book.close()
    _say_what_is_left(result, config, dry_run)


def _judge_settings(thresholds: list[str], pairs: list[str], classes: tuple[str, ...]) -> dict[str, Any]:
    tree = settings_of(pairs)
    if set(tree) - {"judge"}:
        raise SegsmithError(
            f"--set {sorted(set(tree) - {'judge'})[0]} is no setting of the judge.",
            "Only judge.* can be decided again without drawing.",
        )
    settings: dict[str, Any] = dict(tree.get("judge", {}))
    for text in thresholds:
        name, sign, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            raise SegsmithError(
                f"--threshold {text!r} is no number.", "Type --threshold 0.4 or --threshold cat=0.4."
            ) from None
        if sign and name not in classes:
            raise SegsmithError(f"This run has no class {name!r}.", f"Name one of: {', '.join(classes)}.")
        settings.setdefault("thresholds", {}).update(dict.fromkeys([name] if sign else classes, number))
    return settings


def _show_changes(result: Any, config: Any) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("class", "threshold", "newly accepted", "newly refused", "accepted", "wanted"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name in config.classes:
        mine = [change for change in result.changes if change.class_name == name]
        gained = sum(change.after.accepted for change in mine)
        table.add_row(
            shown(name), f"{result.decision.thresholds[name]:.3f}", str(gained), str(len(mine) - gained),
            str(result.accepted[name]), str(config.wanted[name]),
        )  # fmt: skip
    out.print(table)


def _say_what_is_left(result: Any, config: Any, dry_run: bool) -> None:
    if not result.changes:
        out.print("No verdict changes; labels, masks and dataset stand.")
        return
    todo = "labels, masks, dataset, training and evaluation"
    short = {c: config.wanted[c] - n for c, n in result.accepted.items() if n < config.wanted[c]}
    more = ", ".join(f"{shown(c)} {n}" for c, n in short.items())
    drawing = f" It draws more first, for these are short: {more} (a cap such as --max-images holds)." * bool(
        more
    )
    words = "Nothing was written. With these verdicts" if dry_run else "Written. Now"
    out.print(f"{words} {todo} are to be made again: the same `segsmith build` command does that.{drawing}",
              soft_wrap=True)  # fmt: skip
