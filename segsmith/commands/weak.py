"""Commands on weak labels: `weaken`, `refine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segsmith.commands.console import app, err, out, quiet_libraries, settings_of
from segsmith.commands.train import one_voice, train_and_show
from segsmith.errors import SegsmithError
from segsmith.terminal_text import shown

if TYPE_CHECKING:
    from segsmith.config import Config
    from segsmith.datasets.weak_source import WeakSource
    from segsmith.protocols import PointSegmenter
    from segsmith.segmentation.weak_refiner import WeakRefiner

REFINE = ("trainer.encoder_init=none", "trainer.teacher_weight=1", "labeler.border_px=0")
"""What `refine` sets where the config's defaults are for `build`; ``--set`` comes after."""
NAMED = 10
"""Files named of each sort of trouble; the rest is counted."""


@app.command()
def weaken(
    dataset: Annotated[Path, typer.Option(help="a dataset in PASCAL VOC's layout, fully labelled")],
    out_dir: Annotated[Path, typer.Option("--out", help="new folder for the copy")],
    kind: Annotated[str, typer.Option(help="points, scribbles, coarse or image")] = "points",
    seed: Annotated[int, typer.Option(help="another seed draws other points and lines")] = 0,
) -> None:
    """Make weak labels from full ones in split train, to measure what refines them."""
    quiet_libraries()
    from segsmith.workflows.weak_labels import weaken_dataset

    share = weaken_dataset(dataset, out_dir, _kind("--kind", kind), seed)
    out.print(f"{kind}: {share:.2%} of the pixels of split train keep their label")
    out.print(shown(str(out_dir)), soft_wrap=True)


@app.command()
def refine(
    dataset: Annotated[
        Path, typer.Option(help="VOC, COCO or a folder per class; 255 (VOC) where nobody drew")
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="folder for masks and segmenter; the same goes on")],
    weak: Annotated[
        str | None, typer.Option(help="points, scribbles, coarse or image; else found out")
    ] = None,
    zero_is_undrawn: Annotated[
        bool, typer.Option("--zero-is-undrawn", help="index 0 does not mean background: nobody drew there")
    ] = False,
    truth: Annotated[
        Path | None, typer.Option(help="the same images fully labelled: print how good the masks are")
    ] = None,
    seed: Annotated[int, typer.Option(help="another seed draws other points for SAM")] = 0,
    train: Annotated[bool, typer.Option(help="train a segmenter, and let it improve the masks")] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="labeler or trainer setting, e.g. --set trainer.epochs=40"),
    ] = None,
) -> None:
    """Weak labels to dense masks and a segmenter with SAM (SeSAM).

    What was drawn stays as drawn; what nobody can settle stays 255. Killed, the same command goes on.
    """
    quiet_libraries()
    from segsmith.config import load_config
    from segsmith.segmentation.inference import checkpoint_predictions
    from segsmith.segmentation.trainer import processes
    from segsmith.tools.vision.sam import SamSegmenter
    from segsmith.workflows.weak_labels import write_dense

    one_voice()
    kind = None if weak is None else _kind("--weak", weak)
    config = load_config(flags=settings_of([*REFINE, *(set_ or [])]))
    segmenter = SamSegmenter.load(config.labeler.sam, config.compute.device, config.compute.precision)
    together = processes()
    with together.main_process_first():  # the others find everything done
        given, kind = _given(dataset, out_dir, kind, zero_is_undrawn, config, seed)
        seeds = _seeds(given, out_dir / "seeds.zip", config, seed) if kind == "image" else None
    refiner = _refiner(segmenter, config, seed, seeds)
    checkpoints, views = out_dir / "checkpoints", None
    if train:
        train_and_show(given, checkpoints, config, seed, refiner)
        views = checkpoint_predictions(checkpoints, given, config.trainer.drawn_classes_only)
    voc = out_dir / "voc"
    if together.is_main_process and not voc.exists():
        with out.status("asking SAM"):
            write_dense(given, voc, refiner, views, config.trainer.teacher_threshold)
        _show_pieces(refiner)
    together.wait_for_everyone()
    if truth is not None and together.is_main_process:
        _show_quality(truth, given, out_dir)
    out.print(shown(str(voc)), soft_wrap=True)


def _kind(option: str, name: str) -> Any:
    from segsmith.datasets.weak_labels import KINDS

    if name not in KINDS:
        raise SegsmithError(
            f"There is no weak label {name!r}.", f"Type {option} with one of: {', '.join(KINDS)}."
        )
    return name


def _given(
    dataset: Path, out_dir: Path, kind: Any, zero_is_undrawn: bool, config: Config, seed: int
) -> tuple[Path, Any]:
    """The dataset as it will be trained on, in VOC's layout: ``OUT/given``; and what kind its labels are."""
    from segsmith.datasets.voc_layout import write_voc
    from segsmith.datasets.weak_source import open_weak

    source = open_weak(dataset, kind, not zero_is_undrawn)
    record = f"{dataset.resolve()}\n{source.kind}\n{zero_is_undrawn}\n{seed}\n{config.model_dump_json()}\n"
    given = out_dir / "given"
    if not _claimed(out_dir, record) or not given.exists():
        _show_source(source)
        pairs = {split: source.pairs(split) for split in source.splits}
        write_voc(given, source.classes, pairs, source.image_labels)
    return given, source.kind


def _claimed(out_dir: Path, record: str) -> bool:
    """Is the folder of this very command? A new one is marked as such; one of another command is refused."""
    from segsmith.files import write_atomic

    note = out_dir / "refine.txt"
    if note.exists() and note.read_text("utf-8") == record:
        return True
    if out_dir.exists() and any(out_dir.iterdir()):
        raise SegsmithError(
            f"{out_dir} exists already, and not by this command with these settings.",
            "Name a new folder with --out.",
        )
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(note, record.encode())
    except OSError as error:
        raise SegsmithError(f"Cannot write to {out_dir}: {error.strerror}.", "Name another folder.") from None
    return False


def _seeds(given: Path, path: Path, config: Config, seed: int) -> Path:
    """Seeds from patch scores, for image labels."""
    from segsmith.datasets.voc_folder import read_classes
    from segsmith.segmentation.masks import MaskSettings
    from segsmith.tools.vision.clip import OpenClipEncoder
    from segsmith.tools.vision.vit import open_classifier
    from segsmith.workflows.weak_labels import find_seeds

    if not path.exists():
        compute = config.compute
        classifier = open_classifier(
            config,
            read_classes(given),
            seed,
            lambda: OpenClipEncoder.load(config.judge.clip, compute.device, compute.precision),
        )
        with out.status("training the patch classifier on image labels"):
            find_seeds(given, path, classifier, MaskSettings.of(config.labeler), seed)
    return path


def _refiner(segmenter: PointSegmenter, config: Config, seed: int, seeds: Path | None) -> WeakRefiner:
    from segsmith.segmentation.masks import MaskSettings
    from segsmith.segmentation.sources import load_maps, pixels_of
    from segsmith.segmentation.weak_refiner import WeakRefiner

    return WeakRefiner(
        segmenter,
        MaskSettings.of(config.labeler),
        seed,
        threshold=config.trainer.teacher_threshold,
        step0=config.trainer.step0,
        seeds=None if seeds is None else lambda name: pixels_of(load_maps(seeds, [name])[0]),
    )


# -- what is printed -----------------------------------------------------------------------------------------


def _show_source(source: WeakSource) -> None:
    counts = ", ".join(f"{split} {len(items)}" for split, items in source.splits.items())
    out.print(f"weak labels: {source.kind}; images: {counts}")
    if not source.zero_is_drawn:
        out.print("0 is taken as not drawn: no pixel of split train is known to be background")
    _name("skipped or mended", [str(problem) for problem in source.skipped])
    _name("nothing is labelled in", list(source.empty))
    _name("no training image shows class", list(source.never))


def _name(what: str, names: list[str]) -> None:
    """On stderr: how many, and which."""
    if names:
        err.print(f"[yellow]{what}[/yellow]: {len(names)}", soft_wrap=True)
    for name in names[:NAMED]:
        err.print(f"  {shown(name)}", soft_wrap=True)
    if len(names) > NAMED:
        err.print(f"  ... and {len(names) - NAMED} more")


def _show_pieces(refiner: WeakRefiner) -> None:
    refused = {reason.removeprefix("sam:"): n for reason, n in refiner.how.items() if reason != "sam:ok"}
    words = ", ".join(f"{reason} {n}" for reason, n in sorted(refused.items())) or "none"
    out.print(f"pieces SAM outlined: {refiner.how['sam:ok']}; refused: {words}")


def _show_quality(truth: Path, given: Path, out_dir: Path) -> None:
    """How good the masks are at each stage, as far as the truth is known."""
    from segsmith.datasets.imports import ImportedSplit
    from segsmith.datasets.voc_folder import VocFolder
    from segsmith.workflows.weak_labels import maps_of_file, maps_of_split, quality

    data = VocFolder(given, "train")
    exact = ImportedSplit(truth, "train", data.classes)
    maps = {item.id: exact.raw(i)[1] for i, item in enumerate(exact.source.records)}
    seeds, first = out_dir / "seeds.zip", out_dir / "checkpoints" / "training" / "sam-0.zip"
    stages = {
        "patch scores, before SAM": maps_of_file(seeds, data.ids) if seeds.exists() else None,
        "weak labels, before SAM": None if seeds.exists() else maps_of_split(given),
        "SAM, first asked": maps_of_file(first, data.ids) if first.exists() else None,
        "final masks": maps_of_split(out_dir / "voc"),
    }
    for name, pairs in stages.items():
        if pairs is not None:
            found = quality(pairs, maps, data.classes)
            out.print(f"{name}: {found.known:.1%} of the pixels labelled, mIoU there {found.miou:.3f}")
