"""Commands on an existing run: `ledger`, `rejudge`, `report`, `gallery`, `export`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from segsmith.commands.console import app, busy, err, out, print_path, quiet_libraries, settings_of
from segsmith.commands.options import (
    Address,
    AsJson,
    ExportEngine,
    Lock,
    OneProcess,
    RunArgument,
    UnitTimeout,
    Workers,
)
from segsmith.errors import SegsmithError
from segsmith.terminal_text import shown

if TYPE_CHECKING:
    from segsmith.memory.funnel import Funnel, PromptYield
    from segsmith.workflows.rejudge import Rejudged


@app.command()
def ledger(
    run: RunArgument,
    class_name: Annotated[str, typer.Option("--class", help="only this class")] = "",
    prompts: Annotated[bool, typer.Option("--prompts", help="also list every admitted prompt")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how many prompts and images reached each step, and why the others did not."""
    from segsmith.workflows.run import open_run

    opened = open_run(run)
    if class_name and class_name not in opened.classes:
        raise SegsmithError(
            f"This run has no class {class_name!r}.", f"Name one of: {', '.join(opened.classes)}."
        )
    funnel = opened.funnel((class_name,) if class_name else (), prompts=prompts)
    if as_json:
        typer.echo(json.dumps(funnel.as_json(prompts=prompts), indent=1))
        return
    _print_steps(funnel)
    _print_reasons(funnel)
    if prompts:
        _print_prompts(funnel.prompts)


def _print_steps(funnel: Funnel) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for step in funnel.total.STEPS:
        table.add_column(step, justify="right")
    for name, counts in (*funnel.classes.items(), ("all", funnel.total)):
        table.add_row(shown(name), *map(str, counts.values))
    out.print(table)


def _print_reasons(funnel: Funnel) -> None:
    for title, counts in (
        ("rejected images", funnel.image_rejects),
        ("dropped or rewritten prompts", funnel.prompt_rejects),
    ):
        reasons = ", ".join(f"{shown(reason)} {n}" for reason, n in counts.items()) or "none"
        out.print(f"{title}: {reasons}", soft_wrap=True)


def _print_prompts(rows: Sequence[PromptYield]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("prompt", "class", "drawn", "accepted", "text"):
        table.add_column(heading, justify="right" if heading in ("drawn", "accepted") else "left")
    for row in rows:
        table.add_row(
            shown(row.id), shown(row.class_name), str(row.drawn), str(row.accepted), shown(row.text)
        )
    out.print(table)


@app.command()
def rejudge(
    run: RunArgument,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[CLASS=]NUMBER",
            help="probability that an image must reach, for all classes (0.4) or one (cat=0.4); may be repeated",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="a setting of the judge, e.g. judge.top_k=3"),
    ] = None,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="return to the settings that the run was built with")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would change")] = False,
    lock: Lock = "auto",
    engine: OneProcess = "local",
) -> None:
    """Judge every image again with other settings, from stored measurements; draws nothing and loads no model."""
    from segsmith.workflows.rejudge import rejudge as judge_again
    from segsmith.workflows.run import open_run

    result = judge_again(
        run,
        thresholds=_thresholds(threshold or [], open_run(run).classes),
        settings=settings_of(set_),
        calibrated=calibrated,
        dry_run=dry_run,
    )
    _print_changes(result)
    _print_what_is_left(result)


def _thresholds(texts: list[str], classes: tuple[str, ...]) -> dict[str, float] | None:
    """``["0.4", "cat=0.5"]`` as a threshold by class."""
    thresholds: dict[str, float] = {}
    for text in texts:
        name, sign, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            raise SegsmithError(
                f"--threshold {text!r} is not a number.", "Type --threshold 0.4 or --threshold cat=0.4."
            ) from None
        thresholds.update(dict.fromkeys([name] if sign else classes, number))
    return thresholds or None


def _print_changes(result: Rejudged) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("class", "threshold", "newly accepted", "newly rejected", "accepted", "wanted"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name in result.config.classes:
        changes = [change for change in result.judgement.changes if change.class_name == name]
        gained = sum(change.after.accepted for change in changes)
        table.add_row(
            shown(name), f"{result.judgement.decision.thresholds[name]:.3f}", str(gained),
            str(len(changes) - gained), str(result.judgement.accepted[name]), str(result.config.wanted[name]),
        )  # fmt: skip
    out.print(table)


def _print_what_is_left(result: Rejudged) -> None:
    if not result.judgement.changes:
        out.print("No verdict changes; labels, masks and dataset stay as they are.")
        return
    written = "The verdicts are recorded." if result.written else "Nothing was written."
    missing = ", ".join(f"{shown(name)} {n}" for name, n in result.missing.items())
    more = f" It first draws more images, because some are missing: {missing}." if missing else ""
    out.print(
        f"{written} Rerun the same `segsmith build` command to update labels, masks, dataset, segmenter and "
        f"evaluation.{more}",
        soft_wrap=True,
    )


@app.command()
def merge(
    runs: Annotated[list[Path], typer.Argument(help="two or more run folders of the same classes")],
    out_dir: Annotated[Path, typer.Option("--out", help="the new run folder")],
    lock: Lock = "auto",
) -> None:
    """Join runs of the same classes into a new one; duplicates across them are rejected."""
    quiet_libraries()
    with busy("loading"):
        from segsmith.workflows.merge import merge as merge_runs

    with busy("joining the runs"):
        merged = merge_runs(runs, out_dir)
    for name, tally in merged.tallies.items():
        out.print(f"{shown(name)}: {tally.accepted} of {merged.config.wanted[name]} images")
    command = shlex.join(["segsmith", "build", "--out", str(out_dir)])
    rejected = merged.funnel().image_rejects.get("duplicate", 0)
    out.print(
        f"{rejected} images are duplicates. Label, export and train with: {shown(command)}",
        soft_wrap=True,
    )
    print_path(out_dir)


@app.command()
def report(
    run: RunArgument,
    open_: Annotated[bool, typer.Option("--open", help="open it in the web browser")] = False,
) -> None:
    """Write report.html of a run again, whatever state the run is in."""
    import webbrowser

    from segsmith.workflows.run import open_run

    path = open_run(run).write_report()
    print_path(path)
    if open_ and not webbrowser.open(path.resolve().as_uri()):
        err.print("No web browser was found. Open the file above in one.")


@app.command()
def gallery(run: RunArgument) -> None:
    """Write gallery.png: the best images of each class above their masks."""
    from segsmith.workflows.run import open_run

    print_path(open_run(run).write_gallery())


@app.command()
def export(
    run: RunArgument,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="voc, voc2012 (torchvision's folders), coco, coco-stuff (one annotation per class), yolo, cvat, "
            "webdataset, hf (Hugging Face), fiftyone or label-studio",
        ),
    ] = "voc",
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="folder or s3:// URL to write; default: dataset/FORMAT in the run folder or below its URL",
        ),
    ] = None,
    engine: ExportEngine = "local",
    address: Address = None,
    workers: Workers = None,
    unit_timeout: UnitTimeout = None,
    lock: Lock = "auto",
) -> None:
    """Write the dataset of a run in a format that other tools read."""
    quiet_libraries()
    with busy("loading"):
        from segsmith.engine.options import engine_options
        from segsmith.workflows.run import open_run

    where = engine_options(engine, address, workers, unit_timeout)
    with busy("writing the dataset"):
        summary = open_run(run).export_summary(format_, out_dir, where)
    splits = ", ".join(f"{name} {n}" for name, n in summary.splits.items())
    out.print(f"{summary.images} images: {splits}{'' if summary.written else ' (already exported)'}")
    for note in summary.notes:
        out.print(note, soft_wrap=True)
    print_path(summary.folder)


@app.command()
def push(
    run: RunArgument,
    to: Annotated[str, typer.Option("--to", metavar="ORG/NAME", help="dataset repository on the Hub")],
    public: Annotated[bool, typer.Option("--public", help="a new repository is public")] = False,
    lock: Lock = "auto",
) -> None:
    """Upload the dataset of a run to the Hugging Face Hub; rerun the command to resume an upload."""
    quiet_libraries()
    with busy("loading"):
        from segsmith.workflows.run import open_run

    # huggingface_hub shows its own progress
    out.print(open_run(run).push(to, private=not public), markup=False)
