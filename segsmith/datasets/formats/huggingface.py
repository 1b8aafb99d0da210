"""A Hugging Face image folder: one folder per split with ``metadata.jsonl``, and a dataset card.

``load_dataset(DIR)`` gives the columns image, mask (grey indices), classes and the provenance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from segsmith.datasets.dataset_files import (
    MAX_YAML_BYTES,
    DatasetFiles,
    labels_in,
    name_problem,
    parse_json,
    parse_yaml,
)
from segsmith.datasets.records import (
    IMAGE_SUFFIXES,
    DataError,
    LabelledDataset,
    Problem,
    Record,
    Sample,
    lossless,
)
from segsmith.datasets.run_dataset import RunDataset
from segsmith.datasets.staging import Sink
from segsmith.datasets.writing import Writer, Written

FOLDERS = {"train": "train", "val": "validation", "test": "test"}
METADATA = "metadata.jsonl"
CARD = "README.md"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
FILES = """`datasets.load_dataset(<this folder>)` gives the columns `image`, `mask` (grey values are class indices),
`classes`, and the origin of each image: `source` (generated or real), `original` (the id of a real image in its
dataset), `prompt`, `prompt_family`, `seed`, `backend`, `scores` (JSON). Images are as the run stored them."""


def _write_one(sink: Sink, data: RunDataset, record: Record) -> str:
    """Store image and mask; returns the line of the metadata."""
    files = data.read(record)
    folder = FOLDERS[record.split]
    image, mask = f"images/{record.id}{files.suffix}", f"masks/{record.id}.png"
    files.store_image(sink, f"{folder}/{image}")
    sink.put(f"{folder}/{mask}", files.grey_mask)
    # Scores are text: pyarrow would want the same keys in every row of every split.
    origin = record.provenance()
    stated = {**origin, "scores": json.dumps(origin["scores"]), "original": origin.get("original", "")}
    return json.dumps({"file_name": image, "mask_file_name": mask, **stated}, ensure_ascii=False)


def _finish(sink: Sink, data: RunDataset, written: Written) -> list[str]:
    """The card's metadata names the classes and the files of each split."""
    with ExitStack() as stack:
        tables = {
            split: stack.enter_context(sink.path(f"{folder}/{METADATA}").open("w", encoding="utf-8"))
            for split, folder in FOLDERS.items()
            if data.counts[split]
        }
        for record, line in written:
            tables[record.split].write(f"{line}\n")
    for split in tables:
        sink.adopt(f"{FOLDERS[split]}/{METADATA}")
    sink.put(CARD, _card(data, [FOLDERS[split] for split in tables]))
    return []


WRITER = Writer(_write_one, _finish)


def _card(data: RunDataset, folders: list[str]) -> bytes:
    from huggingface_hub import DatasetCard, DatasetCardData

    text = ("id", "source", "original", "split", "prompt", "prompt_id", "prompt_family", "backend", "scores")
    features: list[dict[str, Any]] = [
        {"name": "image", "dtype": "image"},
        {"name": "mask", "dtype": "image"},
        {"name": "classes", "list": "string"},
        *({"name": name, "dtype": "string"} for name in text),
        {"name": "seed", "dtype": "int64"},
    ]
    size = next((name for limit, name in SIZES if len(data.records) < limit), "n>1M")
    about = DatasetCardData(
        pretty_name="A synthetic segmentation dataset made by segsmith",
        license="other",
        license_name="licences-of-the-models-named-below",
        annotations_creators=["machine-generated"],
        task_categories=["image-segmentation"],
        size_categories=[size],
        tags=["synthetic", "semantic-segmentation", "segsmith"],
        configs=[
            {
                "config_name": "default",
                "drop_labels": True,
                "features": features,
                "data_files": [{"split": name, "path": f"{name}/**"} for name in folders],
            }
        ],
        class_names=list(data.classes),
    )
    about_yaml = about.to_yaml()
    card = DatasetCard(f"---\n{about_yaml}\n---\n\n{data.readme(FILES).decode()}")
    return str(card).encode()


# -- reading --------------------------------------------------------------------------------------------


def recognises(root: Path) -> bool:
    """Folders with metadata files."""
    return any(root.glob(f"*/{METADATA}"))


def read(root: Path) -> LabelledDataset:
    """Read the card's class names and each folder's metadata.

    `datasets.load_dataset` is not used: a card may name files anywhere, and images are opened in any format.
    """
    files = DatasetFiles(root)
    problems: list[Problem] = []
    classes = _classes(files)
    split_of = {folder: split for split, folder in FOLDERS.items()}
    records = []
    for path in sorted(root.glob(f"*/{METADATA}")):
        folder = path.parent.name
        rows = _rows(files, f"{folder}/{METADATA}", problems)
        problems += _unmatched(files, folder, rows)
        for row in rows:
            image, mask = f"{folder}/{row['file_name']}", f"{folder}/{row['mask_file_name']}"
            name = row["id"] if isinstance(row.get("id"), str) else Path(image).stem
            load = partial(_load, files, image, mask)
            labels = labels_in(row.get("classes"))
            records.append(Record(name, split_of.get(folder, folder), image, load, labels, root / image))
    return LabelledDataset("hf", root, classes, records, problems, exact_images=lossless(records))


def _classes(files: DatasetFiles) -> tuple[str, ...]:
    """``class_names`` in the YAML block at the top of the card."""
    lines = iter(files.text(CARD, MAX_YAML_BYTES).splitlines())
    about: Any = None
    if next(lines, "").strip() == "---":
        block: list[str] = []
        for line in lines:
            if line.strip() == "---":
                about = parse_yaml("\n".join(block), CARD)
                break
            block.append(line)
    names = about.get("class_names") if isinstance(about, dict) else None
    if not isinstance(names, list) or not names:
        raise DataError("no_classes", CARD, "the card's metadata has no class_names")
    if not all(isinstance(name, str | int | float) for name in names):
        raise DataError("bad_file", CARD, "class_names is not a list of names")
    return tuple(str(name) for name in names)


def _rows(files: DatasetFiles, name: str, problems: list[Problem]) -> list[dict[str, Any]]:
    """The rows with two usable file names; the others become problems."""
    rows = []
    for number, line in enumerate(files.text(name).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            row = parse_json(line, where)
        except DataError as error:
            problems.append(error.problem)
            continue
        names: Any = (
            [row.get(key) for key in ("file_name", "mask_file_name")] if isinstance(row, dict) else []
        )
        if not names or not all(isinstance(value, str) for value in names):
            problems.append(Problem("bad_file", where, "is not an object with file_name and mask_file_name"))
        elif wrong := next(filter(None, map(name_problem, names)), None):
            problems.append(Problem("bad_name", where, f"has a file name that {wrong}"))
        else:
            rows.append(row)
    return rows


def _unmatched(files: DatasetFiles, folder: str, rows: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Files that are named but missing, and those that are there but not named."""
    named = {str(row[key]) for row in rows for key in ("file_name", "mask_file_name")}
    there = {path.relative_to(files.root / folder).as_posix() for path in files.walk(folder, *IMAGE_SUFFIXES)}
    missing = [
        Problem("missing_file", f"{folder}/{name}", f"is in {METADATA} but not in the folder")
        for name in sorted(named - there)
        if not files.is_file(f"{folder}/{name}")
    ]
    return missing + [
        Problem("stray_file", f"{folder}/{name}", f"is not in {METADATA}") for name in sorted(there - named)
    ]


def _load(files: DatasetFiles, image: str, mask: str) -> Sample:
    return files.sample(image, lambda: files.index_map(mask).indices)
